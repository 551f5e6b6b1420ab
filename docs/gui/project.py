"""Make a Scipion project with the whole chain of protocols on simulated particles, for the pictures of the windows.

python -m docs.gui.project FOLDER

FOLDER gets a Scipion home with settings, data and project of its own. What is there already is kept, so that the script
goes on where it was interrupted.
"""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

NAME = "hinge"
BOX, PIXEL, PARTICLES = 48, 4.0, 600


def scipion_environment(folder):
    """Return the environment variables of a Scipion whose files are all in a folder."""
    folder = Path(folder).resolve()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SCIPION_", "DYNAMIGHT_"))}
    return kept | {
        "SCIPION_DOMAIN": "pwem",
        "SCIPION_HOME": str(folder),
        "SCIPION_USER_DATA": str(folder / "data"),
        "SCIPION_PROTOCOLS": str(folder / "protocols.conf"),
        "SCIPION_HOSTS": str(folder / "hosts.conf"),
        "SCIPION_PYTHON": sys.executable,
        "SCIPION_NOTIFY": "False",
        "SCIPION_TEST_NOSYNC": "True",
    }


def project_folder(folder):
    """Return the folder of the project."""
    return Path(folder).resolve() / "data" / "projects" / NAME


def simulated_files(folder):
    """Simulate particles of a molecule with a hinge, and an atomic model of it; return the folder of the files."""
    from dynamight_core.simulate.dataset import SimulateOptions, simulate
    from dynamight_core.simulate.draw import make_molecule
    from tools.structures import write_chains

    out = Path(folder).resolve() / "simulated"
    if (out / "model.cif").exists():
        return out
    options = SimulateOptions(
        particles=PARTICLES,
        box=BOX,
        pixel_size=PIXEL,
        snr=2.0,
        optics_groups=2,
        angle_distribution="two-peaks",
    )
    simulate(options, out)
    molecule = make_molecule(options)
    write_chains(out / "model.cif", molecule.positions[::5])
    return out


def make_project(files):
    """Run every protocol once; files are those of `simulated_files`."""
    import pyworkflow

    pyworkflow.Config.getDomain().getPlugins()
    from pwem.protocols import ProtImportParticles, ProtImportPdb, ProtImportVolumes
    from pyworkflow.project import Manager

    from dynamight_scipion import protocols

    manager = Manager()
    project = manager.loadProject(NAME) if manager.hasProject(NAME) else manager.createProject(NAME)
    os.chdir(project.path)
    done = {run.getObjLabel(): run for run in project.getRuns()}

    def run(label, protocol_class, inputs=None, **parameters):
        protocol = done.get(label) or project.newProtocol(protocol_class, **parameters)
        protocol.setObjLabel(label)
        if protocol.isFinished() or protocol.isFailed():
            return protocol
        for name, (source, output) in (inputs or {}).items():
            getattr(protocol, name).set(source)
            getattr(protocol, name).setExtended(output)
        print(label, flush=True)
        project.launchProtocol(protocol, wait=True)
        print("   ", protocol.getStatus(), protocol.getErrorMessage() or "", flush=True)
        return protocol

    particles = run(
        "particles of the refinement",
        ProtImportParticles,
        importFrom=ProtImportParticles.IMPORT_FROM_RELION,
        starFile=str(files / "particles.star"),
        samplingRate=PIXEL,
        magnification=10000,
    )
    volume = run(
        "consensus map",
        ProtImportVolumes,
        filesPath=str(files / "consensus.mrc"),
        samplingRate=PIXEL,
        setHalfMaps=True,
        half1map=str(files / "consensus_half1.mrc"),
        half2map=str(files / "consensus_half2.mrc"),
    )
    given = {"inputParticles": (particles, "outputParticles"), "inputVolume": (volume, "outputVolume")}
    settings = {"opticsStar": str(files / "particles.star"), "nGaussians": 600, "numberOfThreads": 2}
    deformations = run("deformations", protocols.DynamightProtDeformations, given, **settings)
    model = {"inputModel": (deformations, "outputModel")}
    threads = {"numberOfThreads": 2}
    run("map with motion corrected", protocols.DynamightProtReconstruct, model, localResolution=True, **threads)
    states = run("states along motion 1", protocols.DynamightProtStates, model, nStates=8, **threads)
    run("conformations", protocols.DynamightProtSelect, model, nClusters=3, maxError=5.0, **threads)
    run("is it the particles' motion", protocols.DynamightProtControl, model, **threads)
    structure = run(
        "atomic model",
        ProtImportPdb,
        inputPdbData=ProtImportPdb.IMPORT_FROM_FILES,
        pdbFile=str(files / "model.cif"),
        skipChimera=True,
    )
    displaced = model | {"inputStructure": (structure, "outputPdb"), "inputStates": (states, "outputStates")}
    run("atomic model along motion 1", protocols.DynamightProtDisplaceModel, displaced, **threads)


def main():
    """Simulate and run."""
    folder = Path(sys.argv[1]).resolve()
    environment = scipion_environment(folder)
    if os.environ.get("SCIPION_HOME") != environment["SCIPION_HOME"]:
        # Scipion reads its settings when it is first imported.
        (folder / "data").mkdir(parents=True, exist_ok=True)
        templates = Path(find_spec("scipion").origin).parent / "templates"
        for name in ("hosts", "protocols"):
            shutil.copy(templates / f"{name}.template", folder / f"{name}.conf")
        raise SystemExit(subprocess.call([sys.executable, "-m", "docs.gui.project", *sys.argv[1:]], env=environment))
    make_project(simulated_files(folder))


if __name__ == "__main__":
    main()
