"""How every protocol starts the engine, and what it says when the engine fails."""

import json
import os
import shlex
import subprocess
import time

import pyworkflow.protocol.params as params
from pyworkflow.exceptions import PyworkflowException
from pyworkflow.protocol.constants import GPU_LIST, USE_GPU
from pyworkflow.utils import cleanPath, makePath

from dynamight_scipion import Plugin
from dynamight_scipion.constants import DYNAMIGHT_ENV_ACTIVATION, PROGRAM

# Shared file systems show a file of another node with a delay, seconds.
_FILE_DELAY = 10


class Between(params.Conditional):
    """A number between two others, neither of them included; or none, where a parameter may be left empty.

    Scipion's own conditions fail on parameters that were emptied.
    """

    def __init__(self, low, high=float("inf"), allowsNull=False):
        error = f"must be above {low:g}" + (f" and below {high:g}" if high != float("inf") else "")
        super().__init__(error, allowsNull)
        self._condition = lambda value: value is not None and low < value < high


POSITIVE = Between(0)
NOT_NEGATIVE = params.GE(0, "must not be negative")
POSITIVE_OR_EMPTY = Between(0, allowsNull=True)


class EngineError(PyworkflowException):
    """A failure of the engine, in the one sentence that it gave."""


class EngineProtocol:
    """What the protocols share: they start the engine, on a GPU or the CPU, as one self-contained command.

    To be inherited from beside one of Scipion's protocol classes.
    """

    _COMPUTE_HELP = (
        "Without a GPU on the machine that runs the protocol, the CPU is used; the log says which. "
        "One GPU is used: the first of the list."
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
            label="GPU ID",
            help="Number of the GPU, from 0. Under a queue numbers count the GPUs of the job. " + self._COMPUTE_HELP,
        )

    def _defineThreadParams(self, form):
        """Add the number of threads; call it after the last section."""
        form.addParallelSection(threads=4, mpi=0)

    # ------------------------------------------------------------------ execution

    def _getComputeOptions(self):
        """Return the engine's options for the processor, as a list; to be called inside a step that may use a GPU."""
        device = "cpu"
        if self.usesGpu():
            gpus = self._stepsExecutor.getGpuList()
            device = f"auto:{gpus[0]}" if gpus else "auto"
        return ["--device", device, "--threads", str(max(1, self.getBinThreads()))]

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
            return message
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


def _readStatus(path):
    """Return how a command of the engine ended, a dict that is empty if it does not say."""
    if not os.path.exists(path):
        return {}
    with open(path) as file:
        return json.load(file)


def addOption(arguments, name, value):
    """Append an option to the engine's arguments unless its value is None or empty (the engine's default).

    Booleans become a flag: '--name' or, where False, '--no-name'; use it for options that have both.
    """
    if value is None or value == "":
        return
    if isinstance(value, bool):
        arguments.append(f"--{name}" if value else f"--no-{name}")
    else:
        arguments += [f"--{name}", str(value)]
