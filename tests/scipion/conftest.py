"""A Scipion of the tests' own, in a temporary folder.

pyworkflow reads its settings once, when it is first imported.
"""

import atexit
import contextlib
import os
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

for name in list(os.environ):
    if name.startswith(("SCIPION_", "DYNAMIGHT_")):
        del os.environ[name]

home = Path(tempfile.mkdtemp(prefix="scipion-tests-"))
atexit.register(shutil.rmtree, home, ignore_errors=True)
(home / "data").mkdir()
# A copy: Scipion's own configuration would replace the file that this names.
shutil.copy(Path(find_spec("scipion").origin).parent / "templates" / "hosts.template", home / "hosts.conf")
os.environ.update(
    SCIPION_DOMAIN="pwem",
    SCIPION_HOME=str(home),
    SCIPION_USER_DATA=str(home / "data"),
    SCIPION_HOSTS=str(home / "hosts.conf"),
    SCIPION_PYTHON=sys.executable,
    SCIPION_NOTIFY="False",
    SCIPION_TEST_NOSYNC="True",
)

import pyworkflow

pyworkflow.Config.getDomain().getPlugins()

import pytest
from pwem.protocols import ProtImportParticles, ProtImportVolumes
from pyworkflow.project import Manager

from dynamight_scipion.protocols import DynamightProtDeformations, DynamightProtReconstruct
from tests.support.plugin import BOX, PARTICLES, PIXEL

# Small and quick; enough to find the hinge of particles with little noise.
SMALL = {
    "nGaussians": 200,
    "nEpochs": 8,
    "warmUpEpochs": 2,
    "refits": 0,
    "nLatents": 2,
    "nMotions": 3,
    "batchSize": 64,
    "embedding": 1,
    # So few particles need many for validation.
    "validationFraction": 0.2,
    "numberOfThreads": 1,
}


@pytest.fixture(scope="session")
def simulated(tmp_path_factory):
    """Files of simulated particles: two half-sets, two optics groups, phase shifts, aberrations."""
    from dynamight_core.simulate.dataset import SimulateOptions, simulate

    options = SimulateOptions(
        particles=PARTICLES,
        box=BOX,
        pixel_size=PIXEL,
        snr=8.0,
        optics_groups=2,
        phase_shift=60.0,
        aberrations=True,
        seed=3,
    )
    return simulate(options, tmp_path_factory.mktemp("simulated"))


class Workflow:
    """A Scipion project in which tests launch protocols, as its windows do."""

    def __init__(self, project):
        self.project = project

    def new(self, protocolClass, inputs=None, **parameters):
        """Return a new protocol; `inputs` maps a parameter to a protocol and the name of its output."""
        protocol = self.project.newProtocol(protocolClass, **parameters)
        # So small a run may not support motion; a test of its own asks what happens then.
        if hasattr(protocol, "useUnsupportedMotion") and "useUnsupportedMotion" not in parameters:
            protocol.useUnsupportedMotion.set(True)
        for name, (source, output) in (inputs or {}).items():
            pointer = getattr(protocol, name)
            pointer.set(source)
            pointer.setExtended(output)
        return protocol

    def launch(self, protocol, wait=True):
        """Run a protocol in a process of its own and return it."""
        self.project.launchProtocol(protocol, wait=wait)
        return protocol

    def run(self, protocolClass, inputs=None, **parameters):
        """Run a new protocol, which must finish, and return it."""
        protocol = self.launch(self.new(protocolClass, inputs, **parameters))
        assert protocol.isFinished(), f"{protocol.getErrorMessage()}\n{self.log(protocol)}"
        return protocol

    @staticmethod
    def log(protocol):
        """Return all that a protocol has said."""
        paths = protocol.getStdoutLog(), protocol.getStderrLog()
        return "".join(Path(path).read_text() for path in paths if os.path.exists(path))

    def imported(self, simulated, **parameters):
        """Import particles from a STAR file of RELION."""
        return self.run(
            ProtImportParticles,
            importFrom=ProtImportParticles.IMPORT_FROM_RELION,
            starFile=str(simulated.particles),
            samplingRate=PIXEL,
            magnification=10000,
            **parameters,
        )


@pytest.fixture(scope="session")
def _workflow():
    project = Manager().createProject("dynamight")
    yield Workflow(project)
    project.closeMapper()


@pytest.fixture
def workflow(_workflow, monkeypatch):
    """Return the project, with its folder as the working folder."""
    monkeypatch.chdir(_workflow.project.path)
    return _workflow


@pytest.fixture(scope="session")
def _chain(_workflow, simulated):
    """Import, deformations and reconstruction, run once for all tests."""
    with contextlib.chdir(_workflow.project.path):
        particles = _workflow.imported(simulated)
        volume = _workflow.run(
            ProtImportVolumes,
            filesPath=str(simulated.consensus),
            samplingRate=PIXEL,
            setHalfMaps=True,
            half1map=str(simulated.half_maps[0]),
            half2map=str(simulated.half_maps[1]),
        )
        deformations = _workflow.run(
            DynamightProtDeformations,
            {"inputParticles": (particles, "outputParticles"), "inputVolume": (volume, "outputVolume")},
            opticsStar=str(simulated.particles),
            **SMALL,
        )
        reconstruction = _workflow.run(
            DynamightProtReconstruct,
            {"inputModel": (deformations, "outputModel")},
            numberOfThreads=1,
        )
    return {
        "particles": particles,
        "volume": volume,
        "deformations": deformations,
        "reconstruction": reconstruction,
    }


@pytest.fixture
def chain(workflow, _chain):
    """Return finished protocols by name: particles, volume, deformations, reconstruction."""
    return _chain
