"""The trained model and deformation fields as objects of Scipion: outputs of one protocol, inputs of others."""

import json
import os
import re
import shutil

import mrcfile
import numpy as np
from pwem.objects import EMObject, EMSet, Transform
from pyworkflow.object import Boolean, CsvList, Float, Integer, Pointer, String
from pyworkflow.utils import cleanPath, createLink, makePath

RUN_FOLDER = "run"
SUMMARY_FILE = "analysis/summary.json"
# Name of this plugin in FlexInfo, for programs that read flexible objects. It appears in file names. Some programs
# use "Dynamight" for RELION's own, so it differs from that.
FLEX_PROGRAM = "DynamightScipion"


def readConclusion(summary):
    """Return the engine's conclusion from a run's summary, a dict: `motion`, and `lines`, the title first.

    Of runs of earlier versions it is the verdict.
    """
    verdict = summary["verdict"]
    return summary.get("conclusion", {"motion": verdict["verdict"], "lines": [verdict["sentence"]]})


class DynamightModel(EMObject):
    """Deformations of both half-sets, learned by the engine.

    Stores the folder of the engine's run (relative to the project), its main results, and a pointer to the particles
    with their motions. All values are attributes, so copies are complete.
    """

    RUN_FILES = (
        "config.yaml",
        "metrics.jsonl",
        "particles.star",
        "latents.safetensors",
        "half1/model.safetensors",
        "half2/model.safetensors",
        "analysis/motions.safetensors",
        SUMMARY_FILE,
    )
    # What particles and files belong to a run; runs of earlier versions lack them.
    BELONGING_FILES = ("identity.safetensors", "files.json")

    def __init__(self, runFolder=None, **kwargs):
        EMObject.__init__(self, **kwargs)
        self._runFolder = String(runFolder)
        self._engineVersion = String()
        # Input files of the run, relative to the project
        self._consensusMap = String()
        self._mask = String()
        self._atomicModel = String()
        # Whether coordinates count from the first voxel of the consensus map, instead of the centre of its box
        self._originInCorner = Boolean(False)
        # Of the input particles: Å per pixel, and pixels
        self._samplingRate = Float()
        self._boxSize = Integer()
        self._nParticles1 = Integer()
        self._nParticles2 = Integer()
        # "input" (rlnRandomSubset) or "random" (split by the engine)
        self._halfSets = String()
        self._nGaussians = Integer()
        self._nLatents = Integer()
        self._nMotions = Integer()
        # "supported", "not supported" or "undecided"; and the engine's conclusion in its own words
        self._verdict = String()
        self._verdictSentence = String()
        # Motion of the particles and its estimated error, Å rms
        self._motionRms = Float()
        self._motionError = Float()
        # To the protocol, extended by the name of its output, so that it is valid in the database of every protocol
        self._particlesPointer = Pointer()

    def __str__(self):
        if not self._nGaussians.hasValue():
            return f"{self.getClassName()} (empty)"
        # Short, because the project window shows it beside the output's name.
        return (
            f"{self.getClassName()} ({self.getNumberOfParticles()} particles, {self._nGaussians} Gaussians, "
            f"motion {self._verdict})"
        )

    # ------------------------------------------------------------------ the run

    def getRunFolder(self):
        """Return the folder of the engine's run, relative to the project."""
        return self._runFolder.get()

    def getRunPath(self, *names):
        """Return the path of a file of the run, e.g. getRunPath('particles.star')."""
        return os.path.join(self.getRunFolder(), *names)

    def getFiles(self):
        """Return the files of the model."""
        return [self.getRunPath(name) for name in self.RUN_FILES]

    def getMissingFiles(self):
        """Return the missing files of the model."""
        return [path for path in self.getFiles() if not os.path.exists(path)]

    def linkRun(self, folder):
        """Create a run folder with links to the model's files, for an engine command with its own results.

        The engine writes beside its input. A folder of its own leaves the model unchanged for other protocols.

        Parameters
        ----------
        folder
            relative to the project; previous contents are removed.

        Returns
        -------
        str
            the folder.
        """
        cleanPath(folder)
        belonging = [name for name in self.BELONGING_FILES if os.path.exists(self.getRunPath(name))]
        for name in (*self.RUN_FILES, *belonging):
            path = os.path.join(folder, name)
            makePath(os.path.dirname(path))
            if name == "config.yaml":
                shutil.copyfile(self.getRunPath(name), path)
            else:
                createLink(self.getRunPath(name), path)
        return folder

    def getParticlesStar(self):
        """Return the table of all particles: input columns, half-sets, latents, motions and errors."""
        return self.getRunPath("particles.star")

    def loadSummary(self):
        """Return the run's summary from its file, a dict: verdict, motions, errors, warnings."""
        with open(self.getRunPath(SUMMARY_FILE)) as file:
            return json.load(file)

    def getPreset(self):
        """Return the name of the engine's preset that the model was estimated with."""
        # Models of earlier versions do not say.
        return self.loadSummary()["model"].get("preset", "default")

    def readRun(self):
        """Set the attributes from the run's summary."""
        summary = self.loadSummary()
        model = summary["model"]
        self._engineVersion.set(model["dynamight_core"])
        self._samplingRate.set(model["pixel_size"])
        self._boxSize.set(model["box"])
        self._nParticles1.set(model["particles"][0])
        self._nParticles2.set(model["particles"][1])
        self._halfSets.set("random" if model["halves_are_random"] else "input")
        self._nGaussians.set(model["gaussians"])
        self._nLatents.set(model["latents"])
        self._nMotions.set(model["motions"])
        conclusion = readConclusion(summary)
        self._verdict.set(conclusion["motion"])
        self._verdictSentence.set(" ".join(conclusion["lines"]))
        self._motionRms.set(summary["motion_rms"])
        self._motionError.set(summary["error_rms"])

    # ------------------------------------------------------------------ input

    def getConsensusMap(self):
        """Return the path of the consensus map, in the box and sampling rate of the particles."""
        return self._consensusMap.get()

    def setConsensusMap(self, path):
        """Set the path of the consensus map, relative to the project."""
        self._consensusMap.set(path)

    def getMask(self):
        """Return the path of the mask of the flexible region, or None if motion is allowed everywhere."""
        return self._mask.get()

    def setMask(self, path):
        """Set the path of the mask of the flexible region, relative to the project; None if there is no mask."""
        self._mask.set(path)

    def getAtomicModel(self):
        """Return the path of the atomic model that defines the Gaussians, or None if the map does."""
        return self._atomicModel.get()

    def setAtomicModel(self, path):
        """Set the path of the atomic model, relative to the project; None if there is no model."""
        self._atomicModel.set(path)

    def isOriginInCorner(self):
        """Whether coordinates in the consensus frame count from the first voxel, not from the centre."""
        return self._originInCorner.get()

    def setOriginInCorner(self, value):
        """Set whether coordinates in the consensus frame count from the first voxel."""
        self._originInCorner.set(value)

    def placeVolume(self, volume):
        """Set the sampling rate of the particles and the origin of the consensus map for a Volume in their box."""
        volume.setSamplingRate(self.getSamplingRate())
        # By default, the origin of a Scipion volume is its centre.
        volume.setOrigin(Transform() if self.isOriginInCorner() else None)

    def getParticlesPointer(self):
        """Return the pointer to the particles with their motions (protocol and output name)."""
        return self._particlesPointer

    def getParticles(self):
        """Return the SetOfParticlesFlex with the motions, or None if it was deleted."""
        return self._particlesPointer.get()

    def setParticles(self, pointer):
        """Set the particles by a pointer to the protocol, extended by the output name."""
        self._particlesPointer.copy(pointer)

    # ------------------------------------------------------------------ numbers

    def getEngineVersion(self):
        """Return the version of the engine that trained the model."""
        return self._engineVersion.get()

    def getSamplingRate(self):
        """Return the pixel size of the particles, Å."""
        return self._samplingRate.get()

    def getBoxSize(self):
        """Return the box of the particles, pixels."""
        return self._boxSize.get()

    def getXDim(self):
        """Return the box of the particles, pixels, as Scipion's images do."""
        return self._boxSize.get()

    def getNumberOfParticles(self, half=None):
        """Return the number of particles in half-set 1 or 2, or in both."""
        counts = self._nParticles1.get(0), self._nParticles2.get(0)
        return sum(counts) if half is None else counts[half - 1]

    def areHalfSetsRandom(self):
        """Whether the engine split the particles at random, because they had no half-sets."""
        return self._halfSets.get() == "random"

    def getNumberOfGaussians(self):
        """Return the number of Gaussians of each half-set's model."""
        return self._nGaussians.get()

    def getNumberOfLatents(self):
        """Return the dimensions of the latent spaces."""
        return self._nLatents.get()

    def getNumberOfMotions(self):
        """Return the number of principal motions, the length of the particles' zFlex."""
        return self._nMotions.get()

    def getVerdict(self):
        """Return what the engine concludes of the motion: 'supported', 'not supported' or 'undecided'."""
        return self._verdict.get()

    def getVerdictSentence(self):
        """Return the engine's conclusion as one paragraph."""
        return self._verdictSentence.get()

    def isMotionSupported(self):
        """Whether the motion is supported, after all that the engine knows of it."""
        return self.getVerdict() == "supported"

    def getMotionRms(self):
        """Return the motion, Å rms over particles and molecule."""
        return self._motionRms.get()

    def getMotionError(self):
        """Return the estimated error of the motion, Å rms."""
        return self._motionError.get()


class DeformationField(EMObject):
    """How far each point of the reference map is displaced, and in which direction.

    Displacements are vectors (x, y, z; Å) on a grid, or on points. They lead from the frame of the reference map, the
    consensus, to a conformation, or along a motion. The file is the engine's (.npz, or .mrc with three components); see
    docs/fields.md. All values are attributes, so copies are complete.
    """

    MOTION, STATE, PARTICLE, IMPORTED = "motion", "state", "particle", "imported"
    CONSENSUS = "consensus"

    def __init__(self, location=None, **kwargs):
        EMObject.__init__(self, **kwargs)
        # Relative to the project
        self._filename = String(location)
        self._kind = String(self.IMPORTED)
        self._frame = String(self.CONSENSUS)
        # Spacing of the grid, Å; 0 on points
        self._samplingRate = Float(0.0)
        # Map that the displacements start from, its box and its Å per voxel
        self._referenceMap = String()
        self._referenceBox = Integer()
        self._referenceSampling = Float()
        # Folder of the engine's run, coordinates along its principal motions (Å rms), and id of the particle
        self._runFolder = String()
        self._zFlex = CsvList(pType=float)
        self._particleId = Integer(0)
        # Rms over the molecule, Å: displacement, its uncertainty, and the difference between the half-sets' fields
        self._rms = Float()
        self._error = Float()
        self._difference = Float()

    def __str__(self):
        size = f", {self._rms.get():.1f} Å rms" if self._rms.hasValue() else ""
        return f"{self.getClassName()} ({self.getName()}, {self._kind}{size})"

    def getFileName(self):
        """Return the path of the field's file, relative to the project."""
        return self._filename.get()

    def setFileName(self, path):
        """Set the path of the field's file, relative to the project."""
        self._filename.set(path)

    def getName(self):
        """Return what the field is called: the label, or the name of its file."""
        return self.getObjLabel() or os.path.splitext(os.path.basename(self.getFileName() or ""))[0]

    def getKind(self):
        """Return what the field is of: "motion", "state", "particle" or "imported"."""
        return self._kind.get()

    def getFrame(self):
        """Return the frame that the displacements start from: "consensus", the one of the reference map."""
        return self._frame.get()

    def getSamplingRate(self):
        """Return the spacing of the grid, Å; 0 for a field on points."""
        return self._samplingRate.get()

    def isOnGrid(self):
        """Whether the field is on a grid, not on points."""
        return self._samplingRate.get() > 0

    def getReferenceMap(self):
        """Return the path of the map whose frame the field is in, or None if it is not known."""
        return self._referenceMap.get()

    def getReferenceGrid(self):
        """Return the box (voxels) and the sampling rate (Å) of the reference map."""
        return self._referenceBox.get(), self._referenceSampling.get()

    def setReference(self, path, box, samplingRate):
        """Set the map whose frame the field is in: path, box (voxels) and sampling rate (Å)."""
        self._referenceMap.set(path)
        self._referenceBox.set(box)
        self._referenceSampling.set(samplingRate)

    def getRunFolder(self):
        """Return the folder of the run that the field is from, or None of an imported field."""
        return self._runFolder.get()

    def getZFlex(self):
        """Return the coordinates along the principal motions (Å rms), as an array; empty if they are not known."""
        return np.array(self._zFlex, dtype=float)

    def getParticleId(self):
        """Return the id of the particle that the field is of, 0 if it is of none."""
        return self._particleId.get()

    def getRms(self):
        """Return the displacement, Å rms over the molecule, None if it is not known."""
        return self._rms.get()

    def getError(self):
        """Return the uncertainty of the displacement, Å rms over the molecule, None if it is not known."""
        return self._error.get()

    def getDifference(self):
        """Return the difference between the half-sets' fields, Å rms over the molecule, None if it is not known."""
        return self._difference.get()

    def loadField(self):
        """Return the field's arrays, a dict.

        `displacement` is (nz, ny, nx, 3) or (m, 3), x, y, z in Å. `points` are their places, Å from the centre of the
        reference map's box. `error` and `difference` (Å) have the shape of the places, or are missing.
        """
        if self.getFileName().endswith(".npz"):
            return _readNpz(self.getFileName())
        return _readMrc(self.getFileName())


def _readNpz(path):
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    if "points" not in arrays:
        arrays["points"] = arrays["corner"] + arrays["spacing"] * _gridIndices(arrays["displacement"].shape[:3])
    return {name: arrays[name] for name in ("displacement", "error", "difference", "points") if name in arrays}


def _readMrc(path):
    with mrcfile.open(path, permissive=True) as mrc:
        components, header, spacing = np.array(mrc.data, dtype=np.float32), mrc.header, float(mrc.voxel_size.x)
        labels = " ".join(label.decode(errors="replace") for label in header.label)
        first = np.array([float(header.origin[axis]) for axis in "xyz"])
    components = components.reshape(3, -1, *components.shape[-2:])
    described = re.search(r"DYNAMIGHT FIELD box=(\d+) pixel=(\S+) origin=([^,\s]+),([^,\s]+),([^,\s]+)", labels)
    if described:
        box, sampling, *origin = map(float, described.groups())
        corner = first - origin - box // 2 * sampling
    else:
        # Of another program: on the voxels of the reference map
        corner = -spacing * (np.array(components.shape[:0:-1]) // 2)
    points = corner + spacing * _gridIndices(components.shape[1:])
    return {"displacement": np.moveaxis(components, 0, -1), "points": points}


def _gridIndices(shape):
    """Return the (nz, ny, nx, 3) indices x, y, z of the points of a grid."""
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")[::-1], -1)


class SetOfDeformationFields(EMSet):
    """Deformation fields in one frame: the motions of a run, states, particles, or imported ones."""

    ITEM_TYPE = DeformationField
    EXPOSE_ITEMS = True

    def __init__(self, **kwargs):
        EMSet.__init__(self, **kwargs)
        self._samplingRate = Float(0.0)
        self._referenceMap = String()

    def __str__(self):
        return f"{self.getClassName()} ({self.getSize()} fields)"

    def getSamplingRate(self):
        """Return the spacing of the grids, Å; 0 for fields on points."""
        return self._samplingRate.get()

    def setSamplingRate(self, samplingRate):
        """Set the spacing of the grids, Å."""
        self._samplingRate.set(samplingRate)

    def getReferenceMap(self):
        """Return the path of the map whose frame the fields are in."""
        return self._referenceMap.get()

    def append(self, field):
        """Add a field; the first one says the spacing and the reference map of the set."""
        if self.isEmpty():
            self._samplingRate.set(field.getSamplingRate())
            self._referenceMap.set(field.getReferenceMap())
        EMSet.append(self, field)

    def copyInfo(self, other):
        """Copy spacing and reference map of another set."""
        self.copyAttributes(other, "_samplingRate", "_referenceMap")

    def getFiles(self):
        """Return the paths of the fields."""
        return [field.getFileName() for field in self.iterItems()]
