"""How every protocol starts the engine, what its form takes from the engine's options, and what failures say."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pyworkflow.protocol.params as params
from pyworkflow.exceptions import PyworkflowException
from pyworkflow.protocol.constants import GPU_LIST, LEVEL_ADVANCED, LEVEL_NORMAL, USE_GPU
from pyworkflow.utils import cleanPath, makePath

from dynamight_scipion import Plugin
from dynamight_scipion.constants import DYNAMIGHT_ENV_ACTIVATION, DYNAMIGHT_OPTIONS, PROGRAM
from dynamight_scipion.objects import RUN_FOLDER

# Shared file systems show a file of another node with a delay, seconds.
_FILE_DELAY = 10


_PARAMS = {
    "boolean": params.BooleanParam,
    "integer": params.IntParam,
    "number": params.FloatParam,
    "string": params.StringParam,
}


@lru_cache(maxsize=None)
def readOptions():
    """Read what the engine declares: of every stage, its options by name, each a JSON schema with texts for a form."""
    return {stage: found["properties"] for stage, found in _readDeclared()["$defs"].items()}


@lru_cache(maxsize=None)
def readPresets():
    """Read the engine's presets: of each, the values of options by stage and name."""
    return _readDeclared()["presets"]


def _readDeclared():
    with open(Plugin.getVar(DYNAMIGHT_OPTIONS), encoding="utf-8") as file:
        return json.load(file)


class Limits(params.Conditional):
    """The limits of a number as the engine declares them; none where a parameter may be left empty.

    Scipion's own conditions fail on parameters that were emptied.
    """

    _CHECKS = {
        "minimum": ("at least", lambda value, limit: value >= limit),
        "exclusiveMinimum": ("more than", lambda value, limit: value > limit),
        "maximum": ("at most", lambda value, limit: value <= limit),
        "exclusiveMaximum": ("less than", lambda value, limit: value < limit),
        "multipleOf": ("a multiple of", lambda value, limit: value % limit == 0),
    }

    def __init__(self, option, allowsNull=False):
        limits = [(*self._CHECKS[word], option[word]) for word in self._CHECKS if word in option]
        super().__init__(f"must be {' and '.join(f'{text} {limit:g}' for text, _, limit in limits)}", allowsNull)
        self._condition = lambda value: value is not None and all(holds(value, limit) for _, holds, limit in limits)


class EngineError(PyworkflowException):
    """A failure of the engine, in the one sentence that it gave."""


class EngineProtocol:
    """What the protocols share: they start the engine, on a GPU or the CPU, as one self-contained command.

    To be inherited from beside one of Scipion's protocol classes.
    """

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Scipion sets the parameters of the form, and its protocol classes have the methods."""

    _COMPUTE_HELP = (
        "Without a GPU on the machine that runs the protocol, the CPU is used; the log says which. "
        "Training, inference, reconstruction and controls use all GPUs of the list, with a process on each."
    )

    # ------------------------------------------------------------------ form

    def _defineGpuParams(self, form):
        """Add the choice between GPU and CPU; call it before the first section."""
        form.addHidden(
            USE_GPU, params.BooleanParam, default=True, label="Use GPU for execution", help=self._COMPUTE_HELP
        )
        form.addHidden(
            GPU_LIST,
            params.StringParam,
            default="0",
            label="GPU IDs",
            help="Numbers of the GPUs, from 0, separated by commas. Under a queue, numbers count the GPUs of the job. "
            + self._COMPUTE_HELP,
        )

    def _defineThreadParams(self, form, processes=False):
        """Add the number of threads and, where processes share the work, their number; call it after the last section.

        MPI is Scipion's name for processes. The engine starts its own; on GPUs, it starts one for each.
        """
        form.addParallelSection(threads=4, mpi=1 if processes else 0)

    # Stages of the engine whose options the form has; options that the form calls otherwise, as "stage/option".
    _stages: tuple[str, ...] = ()
    _optionNames: dict[str, str] = {}

    def addOption(self, form, name, without=(), more="", **changed):
        """Add the parameter of an engine's option: label, default, help, choices, limits and level as it declares them.

        Parameters
        ----------
        form
            or a section, group or line of it.
        name
            of the parameter: the option's name in camelCase, or one of `_optionNames`.
        without
            choices that the form does not offer.
        more
            sentences to add to the help.
        changed
            what the parameter has otherwise than the option.
        """
        stage, _, word = self._optionNames.get(name, f"/{_inKebab(name)}").partition("/")
        stage = stage or next(stage for stage in self._stages if word in readOptions()[stage])
        option = readOptions()[stage][word]
        kind, *nullable = [option["type"]] if isinstance(option["type"], str) else option["type"]
        unit = f" ({option['unit']})" if "unit" in option else ""
        given = {
            "label": option["label"] + unit,
            "help": " ".join(filter(None, (option["description"], option.get("more"), more))),
            "default": "" if kind == "string" and nullable else option.get("default"),
            "allowsNull": bool(nullable),
            "expertLevel": LEVEL_NORMAL if option["level"] == "basic" else LEVEL_ADVANCED,
        }
        paramClass, words = _PARAMS[kind], None
        if "enum" in option or (kind == "boolean" and nullable):
            paramClass, words, labels = params.EnumParam, (None, True, False), ("automatic", "yes", "no")
            if "enum" in option:
                offered = zip(option["enum"], option["choice_labels"])
                words, labels = zip(*(choice for choice in offered if choice[0] not in without))
            given.update(choices=list(labels), default=words.index(option.get("default", words[0])))
        elif kind in ("integer", "number") and Limits._CHECKS.keys() & option.keys():
            given["validators"] = [Limits(option, bool(nullable))]
        param = form.addParam(name, paramClass, **{**given, **changed})
        param.engineOption = stage, word, words

    def addOptions(self, form, *names):
        """Add the parameters of options as the engine declares them."""
        for name in names:
            self.addOption(form, name)

    def getChoice(self, name):
        """Return the engine's word for the chosen value of a parameter."""
        return self._definition.getParam(name).engineOption[2][getattr(self, name).get()]

    def _getOptionWords(self, stage, without=()):
        """Return the options of a stage that the form has, but for some parameters, as words of a command line.

        In a form with a preset, parameters that keep their defaults are not among them: the preset may change these.
        """
        words, hasPreset = [], self._definition.hasParam("preset")
        for name, param in self._definition.iterParams():
            ofStage, option, choices = getattr(param, "engineOption", (None, None, None))
            if ofStage != stage or name in without:
                continue
            value = getattr(self, name).get() if choices is None else self.getChoice(name)
            if isinstance(value, bool):
                # The engine has both forms of a switch only where there is something to switch off.
                if value != readOptions()[stage][option]["default"]:
                    words.append(f"--{option}" if value else f"--no-{option}")
            elif value not in (None, "") and not (hasPreset and value == readOptions()[stage][option]["default"]):
                words += [f"--{option}", str(value)]
        return words

    # ------------------------------------------------------------------ execution

    def _getComputeOptions(self, shared=False):
        """Return the engine's options for the processor, as a list; to be called inside a step that may use a GPU.

        With `shared`, several processes share the work: one for each GPU, or as many as MPI says.
        """
        processes = max(1, self.numberOfMpi.get()) if shared else 1
        if not self.usesGpu():
            more = ["--processes", str(processes)] if processes > 1 else []
            return ["--device", "cpu", *more, *self._getThreadOptions(processes)]
        gpus = self._stepsExecutor.getGpuList()
        device = f"auto:{','.join(map(str, gpus if shared else gpus[:1]))}" if gpus else "auto"
        return ["--device", device, *self._getThreadOptions(processes)]

    def _getThreadOptions(self, processes=1):
        """Return the option for all threads; in Scipion, the number is that of each process."""
        return ["--threads", str(processes * max(1, self.getBinThreads()))]

    def _getRunFolder(self):
        return self._getExtraPath(RUN_FOLDER)

    def _registerOutputs(self, sources, **results):
        """Define the outputs, and that they were made from those of the sources (pointers) that are set."""
        self._defineOutputs(**results)
        for result in results.values():
            for source in sources:
                if source.get() is not None:
                    self._defineSourceRelation(source, result)

    def runEngine(self, command, arguments):
        """Run a command of the engine in the project's folder and wait for it.

        Parameters
        ----------
        command
            such as "train".
        arguments
            list of words; numbers and paths are turned to text.

        Raises
        ------
        EngineError
            if it failed, with the engine's own sentence.
        """
        statusFile = self._getExtraPath(f"{command}_status.json")
        makePath(os.path.dirname(statusFile))
        cleanPath(statusFile)
        program = Plugin.getProgram(f"--status-file {shlex.quote(statusFile)} {command}")
        try:
            self.runJob(program, shlex.join(map(str, arguments)), numberOfMpi=1)
        except subprocess.CalledProcessError as error:
            raise EngineError(self._explainFailure(command, statusFile, error.returncode)) from None
        # Jobs in a queue do not tell how they ended.
        deadline = time.monotonic() + _FILE_DELAY
        while not os.path.exists(statusFile) and time.monotonic() < deadline:
            time.sleep(1)
        if _readStatus(statusFile).get("exit_code") != 0:
            raise EngineError(self._explainFailure(command, statusFile, None))

    def _citations(self):
        return ["Schwab2024"]

    @staticmethod
    def _explainFailure(command, statusFile, code):
        """Return one sentence on why the engine failed.

        Parameters
        ----------
        command
            of the engine.
        statusFile
            that the engine writes as it ends, if it gets there.
        code
            exit status of the shell, None if it is not known.
        """
        message = _readStatus(statusFile).get("message")
        if message:
            return inWordsOfForms(message, command)
        if code in (126, 127):
            return (
                f"The program {PROGRAM} could not be started: check {DYNAMIGHT_ENV_ACTIVATION} in Scipion's "
                f"configuration ('{Plugin.getVar(DYNAMIGHT_ENV_ACTIVATION)}')."
            )
        if code in (2, 1):
            return (
                f"{PROGRAM} {command} failed before it could say why: see the log, and check that the engine is of "
                "the version that the plugin expects."
            )
        return (
            f"{PROGRAM} {command} was ended from outside before it was done, perhaps for lack of memory or time: give "
            "more of these, or fewer particles at a time (batch size), and continue the protocol."
        )


def inWordsOfForms(message, command):
    """Return a message of a command with labels of the form in the place of options that the form has.

    An option that is switched off, such as --no-premultiplied, becomes its label and "(No)".
    """
    stages = readOptions()
    labels: dict[str, str] = {}
    # Those of the command's own form last, where labels differ.
    own = ("input", "train") if command == "train" else (command,)
    for stage in sorted(stages, key=lambda stage: stage in own):
        labels.update(
            (_inKebab(name), option["label"]) for name, option in stages[stage].items() if option.get("label")
        )

    def labelled(found):
        words = found.group(1)
        if words in labels:
            return f"'{labels[words]}'"
        off = words[len("no-") :] if words.startswith("no-") else ""
        return f"'{labels[off]}' (No)" if off in labels else found.group(0)

    return re.sub(r"(?<![\w-])--([a-z][a-z-]*[a-z])", labelled, message)


def checkStructure(structure, name):
    """Return why an AtomStruct cannot be used, as a list of sentences; `name` is what they call it."""
    path = structure.getFileName() or ""
    if not os.path.exists(path):
        return [f"The file of the {name} is missing ({path}): import it again."]
    if not path.lower().endswith((".pdb", ".ent", ".cif", ".mmcif")):
        return [f"The {name} {path} is not a PDB or mmCIF file: give one."]
    return []


def _readStatus(path):
    """Return how a command of the engine ended, a dict that is empty if it does not say."""
    if not os.path.exists(path):
        return {}
    with open(path) as file:
        return json.load(file)


def _inKebab(name):
    """Return a name in camelCase as options are written."""
    return re.sub("[A-Z]", lambda letter: f"-{letter[0].lower()}", name)
