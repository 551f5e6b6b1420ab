"""Viewer of deformation fields: arrows with their uncertainty, and slices."""

import os

import mrcfile
import numpy as np
import pyworkflow.protocol.params as params
from pyworkflow.protocol import Protocol

from dynamight_scipion.objects import SetOfDeformationFields
from dynamight_scipion.protocols import DynamightProtImportFields
from dynamight_scipion.protocols.fields import fieldsOf

from .chimera import fieldArrows
from .field_figures import drawArrows
from .figures import Layer
from .forms import ResultsViewer, view
from .results import readTable
from .windows import figureView, slicesView

# Arrows that are drawn of a field that has none of its own, and the displacement below which there is none, of the
# largest.
_ARROWS, _SHORT = 150, 0.05


class DynamightFieldsViewer(ResultsViewer):
    """Deformation fields: how far and where the molecule is displaced, and how sure that is."""

    _label = "deformation fields"
    _targets = [SetOfDeformationFields, DynamightProtImportFields]

    def _findMissing(self, obj):
        given = getattr(obj, "outputFields", None) if isinstance(obj, Protocol) else obj
        self._fields = [] if given is None else fieldsOf(given)
        return None if self._fields else "There are no deformation fields yet: wait until the protocol is done."

    def _defineParams(self, form):
        form.addSection(label="Deformation fields")
        form.addParam(
            "field",
            params.EnumParam,
            choices=[field.getName() for field in self._fields],
            default=0,
            label="Field",
            help="Motions lead from the consensus map one standard deviation along a principal motion; states and "
            "particles to a conformation.",
        )
        self.addViews(form, "overview", "arrows", "chimera")
        if self._fields[0].isOnGrid():
            self.addViews(form, "slices", "difference")

    def _getField(self):
        return self._fields[self.field.get()]

    @view(
        "List of the fields",
        "Displacement, its uncertainty, and the difference between the half-sets' fields, Å rms over the molecule.",
        important=True,
    )
    def _showOverview(self):
        lines = []
        for field in self._fields:
            known = {"displacement": field.getRms(), "uncertainty": field.getError()}
            known["difference of the half-sets"] = field.getDifference()
            values = ", ".join(f"{name} {value:.2f} Å rms" for name, value in known.items() if value is not None)
            particle = f" of particle {field.getParticleId()}" if field.getParticleId() else ""
            lines.append(f"{field.getName()} ({field.getKind()}{particle}): {values or 'sizes are not known'}")
        return self.infoMessage("\n\n".join(lines), "Deformation fields")

    @view(
        "Arrows",
        "Displacements seen along z, y and x, coloured by their uncertainty (standard error), which is that of the "
        "particle for the field of a particle.",
    )
    def _showArrows(self):
        points, shift, error = arrowsOf(self._getField())
        return figureView(
            f"Deformation field {self._getField().getName()}", (12, 4.8), drawArrows, points, shift, error
        )

    @view(
        "Slices",
        "Length of the displacement; its uncertainty, and the difference between the half-sets' fields, where known.",
    )
    def _showSlices(self):
        field = self._getField()
        arrays = field.loadField()
        length = np.linalg.norm(arrays["displacement"], axis=-1)
        # One scale: an uncertainty as large as the displacement has its colour.
        limits = 0, float(length.max())
        layers = [Layer("displacement", length, "viridis", limits, "Å")]
        for name, title in (("error", "uncertainty"), ("difference", "difference of the half-sets")):
            if name in arrays:
                layers.append(Layer(title, arrays[name], "viridis", limits, "Å"))
        return slicesView(f"Deformation field {field.getName()}", layers, field.getSamplingRate())

    @view(
        "Arrows in ChimeraX",
        "Arrows in the reference map. The radius of the sphere at each tip is the uncertainty. The session's script is "
        "kept in the protocol's folder.",
    )
    def _showChimera(self):
        return self._openChimera("field.cxc", self._getCommands())

    @view(
        "Where the half-sets differ, in ChimeraX",
        "The same, with the reference map coloured by the difference between the half-sets' fields in this "
        "conformation.",
    )
    def _showDifference(self):
        field = self._getField()
        arrays = field.loadField()
        if "difference" not in arrays:
            return self.infoMessage("The field's file does not have both half-sets' fields.", "Half-sets")
        path = self.protocol._getExtraPath(f"{field.getName()}_difference.mrc")
        with mrcfile.new(path, overwrite=True) as mrc:
            mrc.set_data(arrays["difference"].astype(np.float32))
            mrc.voxel_size = field.getSamplingRate()
            mrc.header.origin = tuple(arrays["points"][0, 0, 0] + centreOfMap(field))
        commands = self._getCommands((path, max(float(arrays["difference"].max()), 0.1)))
        return self._openChimera("difference.cxc", commands)

    def _getCommands(self, difference=None):
        field = self._getField()
        reference = field.getReferenceMap() if os.path.exists(field.getReferenceMap() or "") else None
        path = self.protocol._getExtraPath(f"{field.getName()}_arrows.bild")
        points, shift, error = arrowsOf(field)
        return fieldArrows(path, points, shift, error, reference, difference)


def arrowsOf(field):
    """Return the arrows of a field: (n, 3) starts and displacements (Å, frame of the reference map) and (n,) errors.

    Errors are not a number if they are not known. The engine wrote arrows that are spread over the molecule beside its
    fields; of others, every n-th point of the grid that moves has one.
    """
    path = f"{os.path.splitext(field.getFileName())[0]}_arrows.csv"
    if os.path.exists(path):
        table = readTable(path)
        points, shift = (np.stack([table[f"{name}{axis}_A"] for axis in "xyz"], -1) for name in ("", "shift_"))
        return points, shift, table["error_A"]
    arrays = field.loadField()
    shift, points = arrays["displacement"].reshape(-1, 3), arrays["points"].reshape(-1, 3)
    error = arrays.get("error", np.full(len(shift), np.nan)).ravel()
    size = np.linalg.norm(shift, axis=1)
    moving = np.flatnonzero(size > _SHORT * size.max(initial=0.0))
    moving = moving[:: max(1, len(moving) // _ARROWS)]
    return points[moving] + centreOfMap(field), shift[moving], error[moving]


def centreOfMap(field):
    """Return the centre of the reference map's box in the coordinates of its file, (x, y, z) Å; 0 without a map."""
    if not os.path.exists(field.getReferenceMap() or ""):
        return np.zeros(3)
    with mrcfile.open(field.getReferenceMap(), permissive=True, header_only=True) as mrc:
        origin = [float(mrc.header.origin[axis]) for axis in "xyz"]
    box, samplingRate = field.getReferenceGrid()
    return np.array(origin) + box // 2 * samplingRate
