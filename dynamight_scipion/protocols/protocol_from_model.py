"""Shared code of protocols on a model: the input, its checks, and the choice of states."""

from __future__ import annotations

import csv
import os
import re

import pyworkflow.protocol.params as params
from pwem.objects import VolumeFlex
from pyworkflow.object import Float, Integer
from pyworkflow.protocol.constants import LEVEL_ADVANCED

from dynamight_scipion.convert import motionCoordinates, readMotions
from dynamight_scipion.objects import FLEX_PROGRAM, DynamightModel, readConclusion

from .protocol_base import EngineProtocol, Limits, readOptions

ALONG_MOTION, AT_CLUSTERS, BETWEEN_PARTICLES, ALONG_PATH = range(4)
# Maps of states: rendered models, or reconstructions from the particles near them.
MODEL, LOCAL = range(2)
# Columns of states that were reconstructed from particles.
_LOCAL_COLUMNS = "bandwidth_A", "effective_particles", "trust", "resolution_A", "moving_resolution_A"


class ModelProtocol(EngineProtocol):
    """A protocol on an estimated model (the parameter inputModel)."""

    def _defineModelParam(self, form, condition="True"):
        form.addParam(
            "inputModel",
            params.PointerParam,
            pointerClass=DynamightModel.__name__,
            important=True,
            condition=condition,
            label="Model",
            help="Model from 'estimate deformations'.",
        )

    def _identifyModel(self):
        """Return text that identifies the input model and its estimation."""
        model = self.inputModel.get()
        return f"{model.getRunFolder()} {model.strId()}"

    def _linkRun(self):
        """Make a run folder of this protocol that shares the model's files, and return it."""
        return self.inputModel.get().linkRun(self._getRunFolder())

    def _validateModel(self):
        """Return why the input model cannot be used, as a list of sentences; empty if there is no model."""
        model = self.inputModel.get()
        missing = [] if model is None else model.getMissingFiles()
        if not missing:
            return []
        return [
            f"{len(missing)} files of the model are missing, e.g. {missing[0]}: restore them, or estimate the "
            "deformations again."
        ]

    def _warnUnsupported(self):
        """Return the engine's conclusion, as a list, if the model's motion is not supported."""
        model = self.inputModel.get()
        if model is None or model.isMotionSupported():
            return []
        return [model.getVerdictSentence()]

    def _validateMotion(self):
        """Return the engine's conclusion and what to set, as a list, if the motion is not supported and not allowed."""
        conclusion = [] if self.useUnsupportedMotion else self._warnUnsupported()
        label = readOptions()["states"]["use-unsupported-motion"]["label"].rstrip("?")
        return [f"{line} Set *{label.lower()}* to Yes to write these results all the same." for line in conclusion]

    def _getMotionOptions(self):
        """Return the engine's option that allows motion that is not supported, as a list of words."""
        return ["--use-unsupported-motion"] if self.useUnsupportedMotion else []

    def _warnings(self):
        return self._warnUnsupported()

    def _summary(self):
        return [*self._warnUnsupported(), *self._summarise()] if self.isFinished() else ["No results yet."]

    def _methods(self):
        return [self._describeMethod()] if self.isFinished() else []


class StatesProtocol(ModelProtocol):
    """A protocol that works at states of a model, chosen in its form."""

    _stages: tuple[str, ...] = ("states",)
    _optionNames = {"doMovie": "states/movie"}

    def _defineStatesParams(self, form, condition="True"):
        """Add the parameters that say which states; they show where the condition holds."""

        def at(kind):
            return f"({condition}) and statesAt == {kind}"

        form.addParam(
            "statesAt",
            params.EnumParam,
            default=ALONG_MOTION,
            condition=condition,
            label="States",
            choices=["along a motion", "centres of clusters", "between two particles", "through a path"],
            help="*Along a motion*: evenly spaced along a principal motion, all other motions at their mean.\n"
            "*Centres of clusters*: one state at the centre of each k-means cluster of the motion coordinates.\n"
            "*Between two particles*: evenly spaced on a straight line between the conformations of two particles.\n"
            "*Through a path*: evenly spaced along straight lines between points, such as a path drawn in a plot of "
            "the particles.",
        )
        self.addOption(form, "nStates", condition=condition, more="For clusters, their number.")
        self.addOption(form, "motion", condition=at(ALONG_MOTION), more="The model's summary lists them.")
        percentiles = readOptions()["states"]["percentiles"]
        line = form.addLine(
            percentiles["label"],
            condition=at(ALONG_MOTION),
            expertLevel=LEVEL_ADVANCED,
            help=f"{percentiles['description']} {percentiles['more']}",
        )
        names = ("lowPercentile", "First"), ("highPercentile", "Last")
        for (name, label), default in zip(names, percentiles["default"]):
            line.addParam(
                name,
                params.FloatParam,
                default=default,
                label=label,
                expertLevel=LEVEL_ADVANCED,
                validators=[Limits(percentiles["items"])],
            )
        for name, label in (("firstParticle", "First particle"), ("lastParticle", "Last particle")):
            form.addParam(
                name,
                params.IntParam,
                condition=at(BETWEEN_PARTICLES),
                allowsNull=True,
                label=label,
                help="Id of a particle: the column 'id' in the table of the particles (Analyze Results of 'estimate "
                "deformations').",
            )
        form.addParam(
            "path",
            params.TextParam,
            condition=at(ALONG_PATH),
            default="",
            width=60,
            height=6,
            label="Points of the path",
            help="One point on each line, or separated by semicolons, two or more. A point is the id of a particle, or "
            "coordinates along motion 1, 2, ... separated by commas (Å rms, at least two). Omitted coordinates are "
            "zero.\nExample:\n   1204\n   -1.5, 0.8\n   377",
        )
        self.addOption(form, "seed", condition=at(AT_CLUSTERS), more="Use the same seed where particles are selected.")

    def _getStatesOptions(self):
        """Return the engine's options for the chosen states, a list of words.

        Raises
        ------
        ValueError
            if the choice is not valid; one sentence that says why.
        """
        kind, n = self.statesAt.get(), str(self.nStates.get())
        model = self.inputModel.get()
        if kind == ALONG_MOTION:
            if self.motion.get() > model.getNumberOfMotions():
                raise ValueError(f"The model has {model.getNumberOfMotions()} motions: set *motion* to one of them.")
            low, high = self.lowPercentile.get(), self.highPercentile.get()
            if not low < high:
                raise ValueError("The percentile of the first state must be below that of the last.")
            return ["--motion", str(self.motion.get()), "--n-states", n, "--percentiles", str(low), str(high)]
        if kind == AT_CLUSTERS:
            if self.nStates.get() > model.getNumberOfParticles():
                raise ValueError(f"The model has only {model.getNumberOfParticles()} particles: set fewer clusters.")
            return ["--clusters", n, "--seed", str(self.seed.get())]
        if kind == BETWEEN_PARTICLES:
            ends = self.firstParticle.get(), self.lastParticle.get()
            if None in ends:
                raise ValueError("Give the ids of both particles.")
            points = [coordinatesOfParticle(model, number) for number in ends]
        else:
            points = parsePath(self.path.get(""), model)
        if all(point == points[0] for point in points):
            raise ValueError("All points of the path are the same: give at least two different points.")
        if self.nStates.get() < 2:
            raise ValueError("A path needs at least 2 states: increase the *number of states*.")
        # With '=', coordinates with a minus sign are not taken for options.
        return [f"--through={','.join(f'{value:.6g}' for value in point)}" for point in points] + ["--n-states", n]

    def _describeStates(self):
        """Return in words which states were chosen."""
        n, kind = self.nStates.get(), self.statesAt.get()
        if kind == ALONG_MOTION:
            return f"{n} states along motion {self.motion}"
        if kind == AT_CLUSTERS:
            return f"{n} states at the centres of clusters"
        if kind == BETWEEN_PARTICLES:
            return f"{n} states between particles {self.firstParticle} and {self.lastParticle}"
        return f"{n} states through a path"

    def _validateStates(self):
        """Return why the chosen states are not valid, as a list of sentences."""
        return [] if self.inputModel.get() is None else explain(self._getStatesOptions)


def tellConclusion(summary):
    """Return the engine's conclusion of a run, a list of lines for a protocol's summary; the first is its title."""
    title, *lines = readConclusion(summary)["lines"]
    return [f"*{title}*", *lines]


def explain(check):
    """Return the sentence of the ValueError that a function raises, as a list; empty if it raises none."""
    try:
        check()
    except ValueError as error:
        return [str(error)]
    return []


# ---------------------------------------------------------------------- states as the plugin handles them


def readStates(path):
    """Read the engine's table of states.

    Returns
    -------
    list
        of dicts: `state` (its name), `file` (of its map, or None), `coordinates` (Å rms, one for each motion),
        `particles` (how many it stands for, or None), `folder` (of its half-maps, or None) and `local` (how it was
        reconstructed, numbers by column; empty for rendered models).
    """
    with open(path, newline="") as file:
        table = list(csv.DictReader(file))
    return [
        {
            "state": row["state"],
            "file": row.get("file"),
            "coordinates": [float(value) for name, value in row.items() if re.fullmatch(r"motion\d+_A", name)],
            "particles": int(row["particles"]) if row.get("particles") else None,
            "folder": row.get("folder"),
            "local": {name: float(row[name]) for name in _LOCAL_COLUMNS if row.get(name)},
        }
        for row in table
    ]


def writeStates(path, names, coordinates):
    """Write a table of states as the engine reads it; coordinates are Å rms, one list for each state."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["state", *(f"motion{number}_A" for number in range(1, len(coordinates[0]) + 1))])
        writer.writerows([name, *values] for name, values in zip(names, coordinates))


def stateVolume(model, row, folder):
    """Return a VolumeFlex of a row of `readStates` whose map is in a folder."""
    volume = VolumeFlex(progName=FLEX_PROGRAM)
    volume.setFileName(os.path.join(folder, row["file"]))
    model.placeVolume(volume)
    volume.setZFlex(row["coordinates"])
    volume.setObjLabel(row["state"])
    if row["particles"] is not None:
        volume._dynParticles = Integer(row["particles"])
    if row["folder"]:
        volume.setHalfMaps([os.path.join(folder, row["folder"], f"half{half}_unfil.mrc") for half in (1, 2)])
        volume._dynEffectiveParticles = Float(row["local"]["effective_particles"])
        volume._dynTrust = Float(row["local"]["trust"])
        volume._dynResolution = Float(row["local"]["resolution_A"])
    setFlexInfo(volume, model)
    return volume


def setFlexInfo(item, model):
    """Store in a flexible object (or set) where its model is, for programs that decode latents."""
    info = item.getFlexInfo()
    info.setProgName(FLEX_PROGRAM)
    info.setAttr("modelPath", model.getRunFolder())
    info.setAttr("refMap", model.getConsensusMap() or "")
    info.setAttr("refMask", model.getMask() or "")


def setFlexInfoOfField(item, field):
    """Store in a flexible object (or set) where the model of a deformation field is."""
    info = item.getFlexInfo()
    info.setProgName(FLEX_PROGRAM)
    info.setAttr("modelPath", field.getRunFolder() or "")
    info.setAttr("refMap", field.getReferenceMap() or "")
    info.setAttr("refMask", "")


def coordinatesOfParticle(model, number):
    """Return the coordinates (Å rms) of a particle of the model, by its id.

    Raises
    ------
    ValueError
        if there is no such particle.
    """
    particles = model.getParticles()
    if particles is None:
        raise ValueError("The particles of the model were deleted: estimate the deformations again.")
    particle = particles[number]
    if particle is None:
        raise ValueError(f"The model has no particle with id {number}: see the table of its particles.")
    if particles.getFlexInfo().hasAttribute("space") and particles.getFlexInfo().getAttr("space") != "motions":
        # zFlex holds latents.
        columns = readMotions(model.getParticlesStar())
        return motionCoordinates(columns)[columns["rlnImageId"].tolist().index(number)].tolist()
    return particle.getZFlex().tolist()


def parsePath(text, model):
    """Return the points of a path, each a list of coordinates (Å rms), from the text of the form.

    Raises
    ------
    ValueError
        if the text is not a path in the model.
    """
    points = []
    for part in filter(None, (part.strip() for part in re.split(r"[;\n]", text))):
        words = [word.strip() for word in part.split(",")]
        try:
            values = [int(part)] if len(words) == 1 else [float(word) for word in words]
        except ValueError:
            raise ValueError(
                f"'{part}' is not a point of a path: give the id of a particle, or coordinates separated by commas."
            ) from None
        if len(words) > model.getNumberOfMotions():
            raise ValueError(
                f"'{part}' has {len(words)} coordinates, but the model has {model.getNumberOfMotions()} motions."
            )
        missing = model.getNumberOfMotions() - len(values)
        points.append(coordinatesOfParticle(model, values[0]) if len(words) == 1 else values + [0.0] * missing)
    if len(points) < 2:
        raise ValueError("A path needs at least two points: give one on each line.")
    return points
