"""Scipion plugin that estimates molecular motions from cryo-EM particles and corrects maps for them.

The engine, `dynamight-core`, runs as a program in its own Python environment. Nothing here imports it, or torch.
"""

import os
import shlex
import shutil
import sys
from glob import glob
from pathlib import Path

import pwem
import pyworkflow.utils as pwutils
from pyworkflow import VarTypes

from .constants import DYNAMIGHT_ENV_ACTIVATION, DYNAMIGHT_HOME, DYNAMIGHT_OPTIONS, ENGINE, ENGINE_VERSION, PROGRAM

__version__ = "0.1.0"
_logo = "dynamight_icon.png"
_references = ["Schwab2024"]


class Plugin(pwem.Plugin):
    """Location, installation and start of the engine."""

    _homeVar = DYNAMIGHT_HOME
    _supportedVersions = [ENGINE_VERSION]
    _url = "https://doi.org/10.1038/s41592-024-02377-5"

    def getName(self):
        """Return the prefix of the protocols' labels; the module's name would be too long for the tree."""
        return PROGRAM

    @classmethod
    def _defineVariables(cls):
        cls._defineEmVar(
            DYNAMIGHT_HOME,
            f"{PROGRAM}-{ENGINE_VERSION}",
            description="Folder with the engine's Python environment.",
            var_type=VarTypes.FOLDER,
        )
        cls._defineVar(
            DYNAMIGHT_ENV_ACTIVATION,
            cls._getDefaultActivation(),
            description=f"Command that puts the program {PROGRAM} on the PATH, "
            "e.g. 'conda activate my-env' or '. /path/to/env/bin/activate'.",
            var_type=VarTypes.STRING,
        )
        cls._defineVar(
            DYNAMIGHT_OPTIONS,
            os.path.join(os.path.dirname(__file__), "options.json"),
            description=f"File that '{PROGRAM} options' wrote, for forms with the decoders and loss terms that other "
            "packages add to the engine.",
            var_type=VarTypes.FILENAME,
        )

    @classmethod
    def getEnviron(cls):
        """Return the environment variables for the engine: Scipion's, without its Python path."""
        environ = pwutils.Environ(os.environ)
        environ.pop("PYTHONPATH", None)
        return environ

    @classmethod
    def getProgram(cls, command):
        """Return the shell command that starts a command of the engine, such as 'train'.

        An engine of another version refuses to run.
        """
        activation = cls.getVar(DYNAMIGHT_ENV_ACTIVATION)
        if activation.startswith("conda "):
            activation = f"{cls.getCondaActivationCmd()} {activation}"
        return f"{activation} && {PROGRAM} --require-version {ENGINE_VERSION} {command}"

    @classmethod
    def validateInstallation(cls):
        """Return the errors of the engine's installation, as a list of messages."""
        if cls.getVar(DYNAMIGHT_ENV_ACTIVATION) != cls._getDefaultActivation():
            return []  # The user's own environment can be checked only by starting it, which takes seconds.
        environment = cls._getEnvironment()
        version = getEngineVersion(environment)
        if not version:
            return [
                f"The program {PROGRAM} is not installed in {environment}.",
                f"Install it with 'scipion3 installb {PROGRAM}', or set {DYNAMIGHT_ENV_ACTIVATION} "
                "in Scipion's configuration to the command that activates an environment with it.",
            ]
        if version != ENGINE_VERSION:
            return [
                f"{ENGINE} {version} is installed in {environment}, but this plugin needs {ENGINE_VERSION}.",
                f"Run: {environment}/bin/python -I -m pip install {cls._getEngineSource()}",
            ]
        return []

    @classmethod
    def defineBinaries(cls, env):
        """Define the engine's environment as a package that Scipion can install."""
        makeEnvironment, neededProgs = cls._getEnvironmentCommand()
        # -I: ignore packages of Scipion's own Python.
        installEngine = f"./env/bin/python -I -m pip install {cls._getEngineSource()}"
        env.addPackage(
            PROGRAM,
            version=ENGINE_VERSION,
            tar="void.tgz",
            commands=[(makeEnvironment, "env/bin/python"), (installEngine, f"env/bin/{PROGRAM}")],
            neededProgs=neededProgs,
            default=True,
        )

    @classmethod
    def _getEnvironment(cls):
        """Return the engine's environment: the one in its home, or Scipion's own if only that has the engine."""
        own = cls.getHome("env")
        return sys.prefix if getEngineVersion(sys.prefix) and not getEngineVersion(own) else own

    @classmethod
    def _getDefaultActivation(cls):
        return f'export PATH="{cls._getEnvironment()}/bin:$PATH"'

    @classmethod
    def _getEnvironmentCommand(cls):
        """Return the command that creates `env` in the current folder, and the programs that it needs."""
        activateConda = cls.getCondaActivationCmd()
        if not activateConda and not shutil.which("conda") and sys.version_info >= (3, 11):
            return f"{shlex.quote(sys.executable)} -m venv env", []
        makeEnvironment = f"{activateConda} conda create -y -p ./env python=3.11".strip()
        return makeEnvironment, [] if activateConda else ["conda"]

    @classmethod
    def _getEngineSource(cls):
        """Return what pip installs: the engine beside the plugin in a checkout, else its release."""
        checkout = Path(__file__).resolve().parent.parent / "dynamight_core"
        if (checkout / "pyproject.toml").exists():
            return f"-e {shlex.quote(f'{checkout}[film,umap]')}"
        return f"'{ENGINE}[film,umap]=={ENGINE_VERSION}'"


def getEngineVersion(environment):
    """Return the version of the engine in the Python environment in a folder, or '' if it has none."""
    prefix = f"{ENGINE.replace('-', '_')}-"
    for path in glob(f"{environment}/lib/python3*/site-packages/{prefix}*.dist-info"):
        return Path(path).name[len(prefix) : -len(".dist-info")]
    return ""
