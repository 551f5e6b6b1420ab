"""What Scipion knows of a trained model: an object that protocols take as an input."""

import json
import os
import shutil

from pwem.objects import EMObject, Transform
from pyworkflow.object import Boolean, Float, Integer, Pointer, String
from pyworkflow.utils import cleanPath, createLink, makePath

RUN_FOLDER = "run"
SUMMARY_FILE = "analysis/summary.json"
# What FlexInfo calls this plugin, for programs that read flexible objects of many. It goes into file names, and is
# not "Dynamight": some programs take that for RELION's own.
FLEX_PROGRAM = "DynamightScipion"


class DynamightModel(EMObject):
    """Deformations of both half-sets, as the engine learned them.

    It holds the folder of the engine's run (relative to the project), what a person wants to know of it, and the
    particles with their motions. Everything is in attributes, so a copy is as good as the original.
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

    def __init__(self, runFolder=None, **kwargs):
        EMObject.__init__(self, **kwargs)
        self._runFolder = String(runFolder)
        self._engineVersion = String()
        # Files that the run was trained on, relative to the project
        self._consensusMap = String()
        self._mask = String()
        self._atomicModel = String()
        # Whether coordinates count from the first voxel of the consensus map, and not from the centre of its box
        self._originInCorner = Boolean(False)
        # Of the particles, as they were given: A per pixel, and pixels
        self._samplingRate = Float()
        self._boxSize = Integer()
        self._nParticles1 = Integer()
        self._nParticles2 = Integer()
        # "input" (rlnRandomSubset) or "random" (split by the engine)
        self._halfSets = String()
        self._nGaussians = Integer()
        self._nLatents = Integer()
        self._nMotions = Integer()
        # "supported", "not supported" or "undecided", and the sentence with the numbers
        self._verdict = String()
        self._verdictSentence = String()
        # A rms: the mean motion of the particles, and its estimated error
        self._motionRms = Float()
        self._motionError = Float()
        # To the protocol, extended by the name of its output: valid in every protocol's own database
        self._particlesPointer = Pointer()

    def __str__(self):
        if not self._nGaussians.hasValue():
            return f"{self.getClassName()} (empty)"
        # Short enough for the project's window, which shows it beside the output's name.
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
        """Return the files that the model consists of."""
        return [self.getRunPath(name) for name in self.RUN_FILES]

    def getMissingFiles(self):
        """Return which of the model's files are not there."""
        return [path for path in self.getFiles() if not os.path.exists(path)]

    def linkRun(self, folder):
        """Make a run folder that shares the model's files, for an engine command whose results go elsewhere.

        The engine writes beside what it reads; in this folder that leaves the model as it is, for others that use it
        at the same time.

        Parameters
        ----------
        folder
            relative to the project; what an earlier execution left there is removed.

        Returns
        -------
        str
            the folder.
        """
        cleanPath(folder)
        for name in self.RUN_FILES:
            path = os.path.join(folder, name)
            makePath(os.path.dirname(path))
            if name == "config.yaml":
                shutil.copyfile(self.getRunPath(name), path)
            else:
                createLink(self.getRunPath(name), path)
        return folder

    def getParticlesStar(self):
        """Return the table of all particles: input columns, halves, latents, motions and errors."""
        return self.getRunPath("particles.star")

    def loadSummary(self):
        """Return the run's summary: verdict, motions, errors, warnings (a dict, read from its file)."""
        with open(self.getRunPath(SUMMARY_FILE)) as file:
            return json.load(file)

    def readRun(self):
        """Fill in everything that the run's summary says."""
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
        self._verdict.set(summary["verdict"]["verdict"])
        self._verdictSentence.set(summary["verdict"]["sentence"])
        self._motionRms.set(summary["motion_rms"])
        self._motionError.set(summary["error_rms"])

    # ------------------------------------------------------------------ what it was made from

    def getConsensusMap(self):
        """Return the path of the consensus map, in the box and sampling of the particles."""
        return self._consensusMap.get()

    def setConsensusMap(self, path):
        """Set the path of the consensus map, relative to the project."""
        self._consensusMap.set(path)

    def getMask(self):
        """Return the path of the mask of allowed motion, or None if motion is allowed everywhere."""
        return self._mask.get()

    def setMask(self, path):
        """Set the path of the mask of allowed motion, relative to the project; None if there is none."""
        self._mask.set(path)

    def getAtomicModel(self):
        """Return the path of the atomic model whose Gaussians these are, or None if they were filled into the map."""
        return self._atomicModel.get()

    def setAtomicModel(self, path):
        """Set the path of the atomic model, relative to the project; None if there is none."""
        self._atomicModel.set(path)

    def isOriginInCorner(self):
        """Whether coordinates in the consensus map's frame count from its first voxel, not from its centre."""
        return self._originInCorner.get()

    def setOriginInCorner(self, value):
        """Say whether coordinates in the consensus map's frame count from its first voxel."""
        self._originInCorner.set(value)

    def placeVolume(self, volume):
        """Give a Volume in the particles' box the sampling rate of the particles and the consensus map's origin."""
        volume.setSamplingRate(self.getSamplingRate())
        # Without an origin a volume of Scipion has it in its centre.
        volume.setOrigin(Transform() if self.isOriginInCorner() else None)

    def getParticlesPointer(self):
        """Return the pointer to the particles with their motions (protocol and name of its output)."""
        return self._particlesPointer

    def getParticles(self):
        """Return the SetOfParticlesFlex with the motions, or None if it was deleted."""
        return self._particlesPointer.get()

    def setParticles(self, pointer):
        """Set the particles by a pointer to the protocol, extended by the output's name."""
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
        """Return the box of the particles, pixels; the name that Scipion's images have for it."""
        return self._boxSize.get()

    def getNumberOfParticles(self, half=None):
        """Return the number of particles, of half-set 1 or 2 or of both."""
        counts = self._nParticles1.get(0), self._nParticles2.get(0)
        return sum(counts) if half is None else counts[half - 1]

    def areHalfSetsRandom(self):
        """Whether the engine split the particles itself, because they had no half-sets."""
        return self._halfSets.get() == "random"

    def getNumberOfGaussians(self):
        """Return the number of Gaussians of each half's model."""
        return self._nGaussians.get()

    def getNumberOfLatents(self):
        """Return the dimensions of the latent spaces."""
        return self._nLatents.get()

    def getNumberOfMotions(self):
        """Return the number of principal motions, the length of the particles' zFlex."""
        return self._nMotions.get()

    def getVerdict(self):
        """Return what held-out particles say of the motion: 'supported', 'not supported' or 'undecided'."""
        return self._verdict.get()

    def getVerdictSentence(self):
        """Return the verdict with its numbers."""
        return self._verdictSentence.get()

    def isMotionSupported(self):
        """Whether held-out particles support the motion."""
        return self.getVerdict() == "supported"

    def getMotionRms(self):
        """Return the displacement over particles and molecule, Å rms."""
        return self._motionRms.get()

    def getMotionError(self):
        """Return the estimated error of a displacement, Å rms."""
        return self._motionError.get()
