"""Viewer of a model: the conclusion, training, particles and motion."""

import numpy as np
import pyworkflow.protocol.params as params
from pwem.objects import SetOfClassesFlex, SetOfParticlesFlex
from pyworkflow import Config
from pyworkflow.viewer import DESKTOP_TKINTER

from dynamight_scipion.objects import DynamightModel, readConclusion
from dynamight_scipion.protocols import DynamightProtDeformations, DynamightProtInfer, DynamightProtSelect

from .chimera import colouredByMotion
from .figures import (
    HALF_COLOURS,
    Colouring,
    Layer,
    describeShare,
    drawCoordinates,
    drawDistributions,
    drawMolecule,
    drawParticles,
    drawTraining,
    paletteOf,
    trainingSize,
)
from .forms import ResultsViewer, view
from .pages import BrowserView, ExplorerView
from .results import Results, readVolume
from .windows import figureView, slicesView

PRINCIPAL_MOTIONS, UMAP, LATENTS = range(3)
IN_THIS_SET = "in this set"


class DynamightModelViewer(ResultsViewer):
    """The motion: conclusion, training curves, particles, and moving parts of the molecule.

    Opens from the protocol that estimates deformations, also while it is running, from the model, and from particles
    and classes that carry its motions.
    """

    _label = "motion of the particles"
    _targets = [
        DynamightProtDeformations,
        DynamightProtInfer,
        DynamightProtSelect,
        DynamightModel,
        SetOfParticlesFlex,
        SetOfClassesFlex,
    ]

    # ------------------------------------------------------------------ what is shown

    def _findMissing(self, obj):
        self._given, self._results = obj, Results(self._findModel(obj))
        if self._isFinished() or self._results.readTraining() is not None:
            return None
        return "There is nothing to show yet: the first epoch of training is not done."

    @staticmethod
    def _findModel(obj):
        """Return the model that an object belongs to; of an unfinished run, only the folder is known."""
        if isinstance(obj, (DynamightProtDeformations, DynamightProtInfer)):
            return getattr(obj, "outputModel", None) or DynamightModel(obj._getRunFolder())
        if isinstance(obj, DynamightProtSelect):
            return obj.inputModel.get()
        if isinstance(obj, DynamightModel):
            return obj
        info = (obj.getFirstItem() if isinstance(obj, SetOfClassesFlex) else obj).getFlexInfo()
        model = DynamightModel(info.getAttr("modelPath"))
        model.setConsensusMap(info.getAttr("refMap"))
        if not model.getMissingFiles():
            model.readRun()
        return model

    def _isFinished(self):
        return not self._results.model.getMissingFiles()

    def _findClasses(self):
        """Return the SetOfClassesFlex of the model's particles by a name: those given, or of all selections."""
        if isinstance(self._given, SetOfClassesFlex):
            return {"class": self._given}
        if isinstance(self._given, DynamightProtSelect):
            return {"class": self._given.outputClasses} if hasattr(self._given, "outputClasses") else {}
        folder = self._results.model.getRunFolder()
        found = {}
        for run in self._project.getRuns():
            if isinstance(run, DynamightProtSelect) and hasattr(run, "outputClasses"):
                model = run.inputModel.get()
                if model is not None and model.getRunFolder() == folder:
                    found[f"class in '{run.getRunName()}'"] = run.outputClasses
        return found

    def _findChosen(self):
        """Return the set of particles whose members are to be told from others, or None."""
        chosen = self._given
        if isinstance(chosen, DynamightProtSelect):
            chosen = getattr(chosen, "outputParticles", None)
        if isinstance(chosen, SetOfParticlesFlex) and len(chosen) < len(self._results.particles.ids):
            return chosen
        return None

    # ------------------------------------------------------------------ form

    def _defineParams(self, form):
        form.addSection(label="Results")
        if self._isFinished():
            title, *lines = readConclusion(self._results.summary)["lines"]
            self.addViews(form, "verdict", label=title.rstrip("."), help="\n".join(lines))
            self.addViews(form, "report", "explorer")
        self.addViews(form, "training")
        if self._isFinished():
            self._defineParticleParams(form.addGroup("Particles"))
            self.addViews(form.addGroup("Molecule"), "molecule", "slices", "chimera")

    def _defineParticleParams(self, group):
        self._classes = self._findClasses()
        self._chosen = self._findChosen()
        colours = ["motion", "uncertainty", "half", "density", "held out", "coordinate along motion 1"]
        inSet = [IN_THIS_SET] if self._chosen is not None else []
        # What the window was opened from comes first.
        if isinstance(self._given, (DynamightProtSelect, SetOfClassesFlex)):
            self._colours = [*self._classes, *inSet, *colours]
        else:
            self._colours = [*inSet, *colours, *self._classes]
        count = len(self._results.shares)
        group.addParam(
            "plane",
            params.EnumParam,
            default=PRINCIPAL_MOTIONS,
            label="Plane",
            choices=["principal motions (PCA)", "UMAP", "latents of each half (PCA)"],
            help="*Principal motions*: coordinates (Å rms) that both halves share.\n*UMAP*: neighbourhoods in all of "
            "these coordinates; distances mean little.\n*Latents of each half*: all particles in both latent spaces, "
            "side by side. The halves were trained independently: colours that vary alike in both were found twice.",
        )
        line = group.addLine("Motions", condition=f"plane=={PRINCIPAL_MOTIONS}", help=f"Numbers from 1 to {count}.")
        for name, label, default in (("acrossMotion", "X", 1), ("upMotion", "Y", min(2, count))):
            line.addParam(
                name,
                params.IntParam,
                default=default,
                label=label,
                validators=[params.Range(1, count, f"must be from 1 to {count}")],
            )
        group.addParam(
            "colour",
            params.EnumParam,
            choices=self._colours,
            default=0,
            label="Colour",
            help="*motion*, *uncertainty*: of each particle, Å rms over the molecule.\n*density*: local density of "
            "particles.\n*held out*: validation particles, not used in training.\n*class*: from selections of this "
            "model.",
        )
        self.addViews(group, "drawing", "distributions", "coordinates", "table")

    # ------------------------------------------------------------------ views

    @view("Conclusion", important=True)
    def _showVerdict(self):
        summary = self._results.summary
        warnings = [f"{warning[:1].upper()}{warning[1:]}." for warning in summary["warnings"]]
        return self.infoMessage("\n\n".join([*readConclusion(summary)["lines"], *warnings]), "Conclusion")

    @view("Report", "Open the report of the run in the browser: all figures of this window and more, explained.")
    def _showReport(self):
        return BrowserView(self._results.findFile("report.html"))

    @view(
        "Explorer",
        "Open a page in the browser in which the molecule follows the pointer over the landscape of the particles. "
        "Make selections and movies there; they are saved in the run's folder (extra/run/analysis). The page closes "
        "with Scipion.",
    )
    def _showExplorer(self):
        return ExplorerView(self._results.model, self._tkRoot)

    @view(
        "Training curves",
        "Loss, KL term, distance restraints and motion of both halves, by epoch. Can be opened while the protocol "
        "runs.",
    )
    def _showTraining(self):
        curves = self._results.readTraining()
        if curves is None:
            return self.infoMessage(
                "An older version of the engine trained this model and kept no table of its curves; they are in its "
                "report.",
                "Training",
            )
        rows, columns = trainingSize(curves)
        return figureView("Training", (max(4.4 * columns, 6), 1 + 3 * rows), drawTraining, curves)

    @view("Particles in the plane", "Draw every particle in the chosen plane and colour.")
    def _showDrawing(self):
        plane = self.plane.get()
        if plane == UMAP and not self._results.embedding[1]:
            return self.infoMessage(
                "There is no UMAP of these particles: it was not chosen, or is not installed in the engine's "
                "environment. Continue the protocol with *Plot particles by* UMAP (advanced level); training is kept.",
                "No UMAP",
            )
        panels = self._panels(plane)
        return figureView("Particles", (11 if len(panels) > 1 else 7.5, 6), drawParticles, panels, self._colouring())

    def _panels(self, plane):
        """Return what `drawParticles` takes for the chosen plane."""
        particles = self._results.particles
        everyone = np.arange(len(particles.ids))
        if plane == UMAP:
            return [("UMAP of the motions", ("", ""), self._results.embedding[0], everyone)]
        if plane == PRINCIPAL_MOTIONS:
            chosen = [self.acrossMotion.get() - 1, self.upMotion.get() - 1]
            names = [f"motion {k + 1}, {describeShare(self._results.shares[k])} (Å rms)" for k in chosen]
            return [("Principal motions", names, particles.coordinates[:, chosen], everyone)]
        latents, components = (self._results.readTable(name) for name in ("latents", "latent_components"))
        panels = []
        for half in HALF_COLOURS:
            places = np.stack([latents[f"half_{half}_pc_{k}"] for k in (1, 2)], -1)
            explained = components["explained_variance_percent"][components["half"] == half]
            names = [f"component {k} ({describeShare(part / 100)})" for k, part in enumerate(explained, 1)]
            panels.append((f"Latents of half {half}", names, places, latents["particle"].astype(int) - 1))
        return panels

    def _colouring(self):
        """Return the chosen `Colouring`."""
        particles, name = self._results.particles, self._colours[self.colour.get()]
        if name in self._classes:
            return self._byClass(name)
        if name == IN_THIS_SET:
            chosen = np.isin(particles.ids, list(self._chosen.getIdSet()))
            return Colouring("", np.where(chosen, 0, -1), (f"{IN_THIS_SET} ({chosen.sum():,})",), paletteOf("1"))
        if name == "half":
            return Colouring("", particles.halves - 1, ("half 1", "half 2"), tuple(HALF_COLOURS.values()))
        if name == "held out":
            return Colouring("", np.where(particles.heldOut, 0, -1), ("held out",), ("#b3412c",))
        if name == "density":
            return Colouring("density of particles", None, palette="cividis")
        if name == "uncertainty":
            return Colouring("uncertainty (Å rms)", particles.error, palette="cividis")
        if name == "motion":
            return Colouring("motion (Å rms)", particles.motion)
        return Colouring("coordinate along motion 1 (Å rms)", particles.coordinates[:, 0], palette="coolwarm")

    def _byClass(self, name):
        """Return a `Colouring` by class of a selection."""
        values, names = np.full(len(self._results.particles.ids), -1), []
        for number, cluster in enumerate(self._classes[name].iterItems()):
            members = cluster.getIdSet()
            values[np.isin(self._results.particles.ids, list(members))] = number
            names.append(f"{cluster.getObjId()} ({len(members):,})")
        return Colouring(name, values, tuple(names), paletteOf(names))

    @view(
        "Histograms of motion and uncertainty",
        "Training and held-out (validation) particles. Both histograms should look alike.",
    )
    def _showDistributions(self):
        tables = [self._results.readTable(name) for name in ("motion_and_error", "error_against_motion")]
        ((above,),) = self._results.readTable("above_error").values()
        return figureView("Motion and uncertainty of the particles", (12, 4.2), drawDistributions, *tables, above)

    @view(
        "Distribution along each motion",
        "Coordinates of the particles in each half-set. Both histograms match where the halves agree.",
    )
    def _showCoordinates(self):
        shares = self._results.shares[:6]
        size = 11, 0.6 + 2.7 * (1 + (len(shares) > 3))
        table = self._results.readTable("coordinates")
        return figureView("Distribution along the motions", size, drawCoordinates, table, shares)

    @view("Table of the particles", "List the particles with their ids, motions and uncertainties.")
    def _showTable(self):
        particles = self._chosen if self._chosen is not None else self._given
        if not isinstance(particles, SetOfParticlesFlex):
            particles = getattr(self.protocol, "outputParticles", None) or self._results.model.getParticles()
        if particles is None:
            return self.infoMessage("The particles of the model were deleted.", "Particles")
        for viewer in Config.getDomain().findViewers(particles, DESKTOP_TKINTER):
            if viewer is not type(self):
                return viewer(project=self._project, protocol=self.protocol)._visualize(particles)
        return self.infoMessage("Scipion has no viewer for tables of particles.", "Particles")

    @view(
        "Motion and uncertainty in the molecule",
        "Points of the molecule from three sides, coloured by their rms motion over all particles and by the "
        "uncertainty (standard error) of a displacement.",
    )
    def _showMolecule(self):
        return figureView("Motion in the molecule", (11, 5), drawMolecule, self._results.points)

    @view("Map of the motion in slices", "The consensus map, and the motion of each voxel (Å rms).")
    def _showSlices(self):
        model = self._results.model
        motion = readVolume(self._results.findFile("motion.mrc"))
        layers = [
            Layer("consensus map", readVolume(model.getConsensusMap())),
            Layer("motion", motion, "viridis", (0, float(motion.max())), "Å rms"),
        ]
        return slicesView("Motion of the map", layers, model.getSamplingRate())

    @view(
        "Map coloured by motion in ChimeraX",
        "Also shows the Gaussians of both halves, coloured by their motion. The session's script is kept in the "
        "protocol's folder.",
    )
    def _showChimera(self):
        model = self._results.model
        gaussians = [self._results.findFile(f"gaussians_half{half}.cif") for half in (1, 2)]
        commands = colouredByMotion(
            model.getConsensusMap(),
            self._results.findFile("motion.mrc"),
            gaussians,
            float(self._results.points["rms_motion"].max()),
        )
        return self._openChimera("motion.cxc", commands)
