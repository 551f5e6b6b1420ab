"""From deformations to a map with the motion corrected."""

from __future__ import annotations

import json
import os

import pyworkflow.protocol.params as params
from emtable import Table
from pwem.objects import FSC, SetOfFSCs, Volume, VolumeMask
from pwem.protocols import ProtRefine3D
from pyworkflow.constants import BETA
from pyworkflow.protocol.constants import LEVEL_ADVANCED

from dynamight_scipion import convert
from dynamight_scipion.objects import SUMMARY_FILE

from .protocol_base import checkStructure, readOptions, readPresets
from .protocol_from_model import ModelProtocol, tellConclusion

METHODS = tuple(readOptions()["reconstruct"]["method"]["enum"])
METHOD_TEXTS = {
    "auto": "weighted backprojection (least squares if viewing directions are missing)",
    "wbp": "weighted backprojection",
    "cg": "least squares",
}
BACKPROJECTION = METHODS.index("wbp")
CONSENSUS, OF_PARTICLE, AT_LATENT, AUTOMATIC = range(4)
RIGID = "rigid"
# FSC threshold of the resolution.
THRESHOLD = 0.143
# FSC columns of the engine's table, and their labels.
CURVES = {
    "rlnFourierShellCorrelationCorrected": "corrected for the mask",
    "rlnFourierShellCorrelationMaskedMaps": "masked",
    "rlnFourierShellCorrelationUnmaskedMaps": "unmasked",
    "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps": "phase-randomised",
    "dynFourierShellCorrelationAtLeast": "conservative",
}
REGION = "in region "
# Columns of the engine's fsc.star: FSC of the map with an atomic model.
ATOMIC = "dynAtomic_"


class DynamightProtReconstruct(ModelProtocol, ProtRefine3D):
    """Reconstruct the map with the estimated motion corrected.

    Every particle is deformed back to the consensus conformation. Each half-set uses its own decoder, so that the
    half-maps stay independent. Motion is down-weighted by its support from held-out particles. For comparison, the same
    particles are reconstructed without deformation, by the same method and in the same mask. The summary says what the
    map gained, and which one to use.

    The half-maps are unfiltered and unmasked, ready for post-processing and local resolution.
    """

    _label = "deformed reconstruction"
    _devStatus = BETA
    _possibleOutputs = {
        "outputVolume": Volume,
        "outputFSC": FSC,
        "outputMask": VolumeMask,
        "outputFSCs": SetOfFSCs,
        "outputSharpened": Volume,
        "outputRigid": Volume,
        "outputLocalResolution": Volume,
    }
    _stages = ("reconstruct",)
    _optionNames = {"inverseEpochs": "invert/epochs", "structureOrigin": "reconstruct/origin"}

    # ------------------------------------------------------------------ form

    def _defineParams(self, form):
        self._defineGpuParams(form)
        form.addSection(label="Input")
        self._defineModelParam(form)
        self.addOption(form, "preset", more="Parameters that keep their defaults follow the preset.")
        self.addOption(form, "method")
        form.addParam(
            "inputMask",
            params.PointerParam,
            pointerClass="VolumeMask",
            allowsNull=True,
            label="Mask of the FSC (optional)",
            help="Soft mask for the FSC between the half-maps, 0 to 1; the maps stay unmasked. Made from the map if "
            "omitted.",
        )
        form.addParam(
            "inputRegions",
            params.MultiPointerParam,
            pointerClass="VolumeMask",
            allowsNull=True,
            label="Masks of regions (optional)",
            expertLevel=LEVEL_ADVANCED,
            help="Masks of regions whose FSC is also calculated, with and without deformation.",
        )
        form.addParam(
            "inputStructures",
            params.MultiPointerParam,
            pointerClass="AtomStruct",
            allowsNull=True,
            label="Atomic models to compare with (optional)",
            expertLevel=LEVEL_ADVANCED,
            help="Atomic models, fitted to the consensus map. The FSC of the maps with each is calculated in the mask "
            "and in each region, with and without deformation. The maps then stay in the frame of the consensus.",
        )
        # The map's header has an origin of its own; the plugin rewrites the map.
        self.addOption(form, "structureOrigin", without=("map",), condition="inputStructures")
        self.addOptions(form, "rigid", "controls", "localResolution")
        self._defineMotionParams(form)
        self._defineMapParams(form)
        self._defineThreadParams(form, processes=True)

    def _defineMotionParams(self, form):
        form.addSection(label="Motion")
        self.addOptions(form, "shrink", "chooseDensity", "errorWeights")
        form.addParam(
            "conformation",
            params.EnumParam,
            choices=["consensus", "of a particle", "at a latent", "automatic"],
            default=AUTOMATIC,
            display=params.EnumParam.DISPLAY_HLIST,
            expertLevel=LEVEL_ADVANCED,
            label="Conformation of the map",
            help="All particles are deformed to this conformation. *Automatic* is the consensus if many particles are "
            "near it, else the densest conformation.",
        )
        form.addParam(
            "particle",
            params.IntParam,
            allowsNull=True,
            condition=f"conformation=={OF_PARTICLE}",
            expertLevel=LEVEL_ADVANCED,
            label="Particle (id)",
            help="Id of a particle: the column 'id' in the table of the particles.",
        )
        form.addParam(
            "latent",
            params.StringParam,
            default="",
            condition=f"conformation=={AT_LATENT}",
            expertLevel=LEVEL_ADVANCED,
            label="Latent",
            help="Point in the latent space of half-set 1's decoder: numbers separated by commas.",
        )
        self.addOption(form, "regionRadius")
        self.addOption(form, "throughInverse", more="The protocol trains it first.")
        self.addOption(form, "modes")
        self.addOption(form, "inverseEpochs", condition="throughInverse", expertLevel=LEVEL_ADVANCED)

    def _defineMapParams(self, form):
        form.addSection(label="Map")
        self.addOptions(form, "bFactor", "regularisation")
        self.addOption(form, "steps", condition=f"method!={BACKPROJECTION}")
        self.addOption(form, "batchSize", expertLevel=LEVEL_ADVANCED)
        self.addOption(form, "seed")

    # ------------------------------------------------------------------ steps

    def _insertAllSteps(self):
        # Each step gets all that its result hangs on: continuing the protocol compares their arguments.
        given = json.dumps([self._describeInputs(), self._getOptions()])
        self._insertFunctionStep(self.convertInputStep, given, needsGPU=False)
        if self._isThroughInverse():
            self._insertFunctionStep(self.invertStep, given, self.inverseEpochs.get())
        self._insertFunctionStep(self.reconstructStep, given, self.inverseEpochs.get())
        self._insertFunctionStep(self.createOutputStep, given, self.inverseEpochs.get(), needsGPU=False)

    def convertInputStep(self, given):
        """Link the model's run, and write the masks on the grid of the particles."""
        self._linkRun()
        grid = self._getGrid()
        for mask, path, name in self._getMasks():
            for note in convert.writeVolume(mask, *grid, path, name, isMask=True):
                self.info(note)

    def invertStep(self, given, epochs):
        """Train the inverse deformation network of both half-sets."""
        options = ["--preset", self.getChoice("preset"), "--epochs", epochs, "--seed", self.seed.get()]
        self.runEngine("invert", [self._getRunFolder(), *options, *self._getComputeOptions()])

    def reconstructStep(self, given, epochs):
        """Reconstruct both half-maps, with and without deformation."""
        arguments = [self._getRunFolder(), "--overwrite", *self._getOptions()]
        for _, path, name in self._getMasks():
            arguments += ["--mask" if name == "mask of the FSC" else "--regions", path]
        for structure in self._getStructures():
            arguments += ["--models", structure.getFileName()]
        if self.conformation.get() == OF_PARTICLE:
            arguments += ["--conformation", f"particle:{self._findRow()}"]
        self.runEngine("reconstruct", arguments + self._getComputeOptions(shared=True))

    def createOutputStep(self, given, epochs):
        """Register maps, half-maps, FSC and mask."""
        model = self.inputModel.get()
        results = {
            "outputVolume": self._createVolume(self._getMapPath()),
            "outputFSC": readFsc(self._getMapPath("fsc.star"), *next(iter(CURVES.items()))),
            "outputMask": VolumeMask(self._getMapPath("mask.mrc")),
            "outputFSCs": self._createFscs(),
            "outputSharpened": Volume(self._getMapPath("map_sharpened.mrc")),
        }
        if self._hasRigid():
            results["outputRigid"] = self._createVolume(self._getMapPath(RIGID))
        if self.localResolution:
            results["outputLocalResolution"] = Volume(self._getMapPath("local_resolution.mrc"))
        for result in results.values():
            if isinstance(result, Volume):
                model.placeVolume(result)
                result.fixMRCVolume(setSamplingRate=True)
        results["outputVolume"].setObjComment("motion corrected where that is better")
        self._registerOutputs([self.inputModel, self.inputMask, *self.inputRegions, *self.inputStructures], **results)

    @staticmethod
    def _createVolume(folder):
        """Return the map of a folder of the engine, with its half-maps."""
        volume = Volume(os.path.join(folder, "map.mrc"))
        volume.setHalfMaps([os.path.join(folder, f"half{half}_unfil.mrc") for half in (1, 2)])
        return volume

    def _createFscs(self):
        """Return all FSC curves, with and without deformation, including those of regions."""
        curves = SetOfFSCs.create(self._getPath())
        # The engine calls a region by its file.
        regions = {f"dynRegion_region{number}": f"{REGION}{number}" for number, _ in self._getRegions()}
        for folder, which in ((), "motion corrected"), ((RIGID,), "without deformation"):
            if folder and not self._hasRigid():
                continue
            path = self._getMapPath(*folder, "fsc.star")
            atomic = {
                column: f"with atomic model {column[len(ATOMIC) :]}"
                for column in Table(fileName=path, tableName="fsc").getColumnNames()
                if column.startswith(ATOMIC)
            }
            for column, label in {**CURVES, **regions, **atomic}.items():
                curves.append(readFsc(path, column, f"{which}, {label}"))
        return curves

    # ------------------------------------------------------------------ what goes to the engine

    def _getMapPath(self, *names):
        return os.path.join(self._getRunFolder(), "reconstruction", *names)

    def _getGrid(self) -> tuple[int, float]:
        model = self.inputModel.get()
        return model.getBoxSize(), model.getSamplingRate()

    def _hasRigid(self):
        """Whether there are maps without deformation: not beside a conformation that the user chose."""
        return self.rigid.get() and self.conformation.get() in (CONSENSUS, AUTOMATIC)

    def _isThroughInverse(self):
        """Whether an inverse deformation network is used: because the user or the preset says so."""
        preset, model = self.getChoice("preset"), self.inputModel.get()
        if preset == "run":
            preset = "default" if model is None else model.getPreset()
        return self.throughInverse.get() or readPresets()[preset].get("reconstruct", {}).get("through-inverse", False)

    def _getMasks(self):
        """Return of each mask the VolumeMask, the path on the particles' grid, and its name."""
        masks = [(self.inputMask.get(), self._getExtraPath("mask.mrc"), "mask of the FSC")]
        for number, region in self._getRegions():
            masks.append((region, self._getExtraPath(f"region{number}.mrc"), f"mask of region {number}"))
        return [mask for mask in masks if mask[0] is not None]

    def _getRegions(self):
        """Return number, from 1, and VolumeMask of the regions."""
        found = [(number, pointer.get()) for number, pointer in enumerate(self.inputRegions, 1)]
        return [(number, region) for number, region in found if region is not None]

    def _getStructures(self):
        """Return the AtomStructs that the maps are compared with."""
        return [pointer.get() for pointer in self.inputStructures if pointer.get() is not None]

    def _describeInputs(self):
        """Return what the inputs are, as a list that differs where another input is given."""
        pointers = [self.inputModel, self.inputMask, *self.inputRegions, *self.inputStructures]
        return [None if p.get() is None else [p.getUniqueId(), p.get().getObjId()] for p in pointers]

    def _getOptions(self):
        """Return the engine's options that change the result, as a list of words."""
        arguments = self._getOptionWords("reconstruct")
        if self.conformation.get() == CONSENSUS:
            arguments.append("--conformation=reference")
        if self.conformation.get() == AT_LATENT:
            arguments.append(f"--conformation=latent:{self.latent.get('').replace(' ', '')}")
        return arguments

    def _findRow(self):
        """Return the row of the engine's table, from 1, of the particle whose conformation is asked for."""
        ids = convert.readColumns(self.inputModel.get().getParticlesStar(), lambda label: False)["rlnImageId"]
        return ids.tolist().index(self.particle.get()) + 1

    # ------------------------------------------------------------------ what the user is told

    def _validate(self):
        errors = self._validateModel()
        if self.inputModel.get() is None or errors:
            return errors
        grid = self._getGrid()
        errors += [convert.describeVolume(mask, *grid, name)[0] for mask, _, name in self._getMasks()]
        for structure in self._getStructures():
            errors += checkStructure(structure, "atomic model to compare with")
        errors += self._validateConformation()
        return [error for error in errors if error]

    def _validateConformation(self):
        model = self.inputModel.get()
        chosen = self.conformation.get() not in (CONSENSUS, AUTOMATIC)
        if chosen and self.shrink and model.getVerdict() == "not supported":
            return [
                "The images do not support the motion of this model, so the map is reconstructed without it: set "
                "*conformation* to consensus, or *down-weight motion* to No to use the motion as learned."
            ]
        if self.conformation.get() == OF_PARTICLE:
            try:
                self._findRow()
            except ValueError:
                return [f"The model has no particle with id {self.particle.get()}: see the table of its particles."]
        if self.conformation.get() == AT_LATENT:
            words = [word for word in self.latent.get("").split(",") if word.strip()]
            try:
                wrong = len([float(word) for word in words]) != model.getNumberOfLatents()
            except ValueError:
                wrong = True
            if wrong:
                return [f"The *latent* needs {model.getNumberOfLatents()} numbers, separated by commas."]
        return []

    def _warnings(self):
        if self.inputModel.get() is None:
            return []
        grid = self._getGrid()
        changes = [convert.describeVolume(mask, *grid, name)[1] for mask, _, name in self._getMasks()]
        return self._warnUnsupported() + [change for change in changes if change]

    def _summary(self):
        # The conclusion knows of the map, unlike that of the model.
        return self._summarise() if self.isFinished() else ["No results yet."]

    def _summarise(self):
        with open(os.path.join(self._getRunFolder(), SUMMARY_FILE)) as file:
            lines = tellConclusion(json.load(file))
        return lines + (self._describeInverse() if self._isThroughInverse() else [])

    def _describeInverse(self):
        """Return the error of the inverse deformation network of each half-set."""
        lines = []
        for half in (1, 2):
            with open(os.path.join(self._getRunFolder(), f"half{half}", "inverse.json")) as file:
                report = json.load(file)
            lines.append(
                f"Error of the inverse of half-set {half}: {report['on_gaussians']:.2f} Å rms at the Gaussians, "
                f"{report['off_gaussians']:.2f} Å between them; the motion is {report['motion']:.2f} Å rms."
            )
        return lines

    def _describeMethod(self):
        found = readResolution(self._getMapPath("fsc.star"))
        through = ", through an inverse deformation network," if self._isThroughInverse() else ""
        return (
            f"Both half-maps were reconstructed with the motion corrected{through} by "
            f"{METHOD_TEXTS[self.getChoice('method')]} [Schwab2024]; their resolution is {found:.2f} Å."
        )


def readResolution(starFile, label="rlnFinalResolution"):
    """Read the resolution (Å) of a reconstruction from the engine's fsc.star; None if it has no such label."""
    found = getattr(Table(fileName=starFile, tableName="general")[0], label, None)
    return None if found is None else float(found)


def readFsc(starFile, column, label):
    """Read a curve of the engine's fsc.star.

    Parameters
    ----------
    starFile
        path.
    column
        of the curve.
    label
        that the curve gets.

    Returns
    -------
    FSC
        from frequency 0 (1/Å), where it is 1.
    """
    table = Table(fileName=starFile, tableName="fsc")
    rows = [(float(row.rlnResolution), float(getattr(row, column))) for row in table]
    frequency, correlation = zip(*rows)
    curve = FSC(objLabel=label)
    # Shell 0 is the mean of the maps, of which no correlation is taken; FSC.setData wants lists.
    values = [1.0, *correlation[1:]]
    if min(values) >= THRESHOLD:
        # pwem would extrapolate such a curve to a resolution beyond Nyquist.
        values[-1] = THRESHOLD - 1e-6
    curve.setData(list(frequency), values)
    return curve
