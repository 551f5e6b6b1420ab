"""Install the plugin into Pythons of Scipion, from its wheel and from a checkout, and try it there.

    python -m tools.scipion_pythons PYTHON...

Each PYTHON is a program, such as ~/.pyenv/versions/3.8.18/bin/python. For each, an environment is made in the temporary
folder, with scipion-em and the plugin from its wheel; then one with the plugin from a checkout in a folder of another
name. In both, every module is imported, forms are made, particles are written and read back, and the command is printed
that would make the engine's environment, with and without conda. One line each is printed. The exit status is the
number of failures.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Runs in the environment, which has neither the engine nor the tests.
CHECK = """
import importlib, os, pkgutil, shutil, sys, tempfile
from pathlib import Path
home = Path(tempfile.mkdtemp())
os.environ.update(SCIPION_DOMAIN="pwem", SCIPION_HOME=str(home), SCIPION_USER_DATA=str(home), SCIPION_NOTIFY="False")
import numpy as np
import pyworkflow
plugins = pyworkflow.Config.getDomain().getPlugins()
assert "dynamight_scipion" in plugins, "Scipion does not find the plugin"
import dynamight_scipion
modules = [each.name for each in pkgutil.walk_packages(dynamight_scipion.__path__, "dynamight_scipion.")]
for name in modules:
    # The protocol beside another plugin, which is not installed here.
    if not name.endswith("annotate_space"):
        importlib.import_module(name)
from dynamight_scipion import convert, protocols
classes = [each for name, each in vars(protocols).items() if name.startswith("DynamightProt")]
forms = [each().getDefinition() for each in classes]
import mrcfile
from pwem.objects import Acquisition, CTFModel, Particle, SetOfParticles, Transform
n = 200
mrcfile.write(home / "stack.mrcs", np.random.default_rng(0).normal(size=(n, 16, 16)).astype(np.float32))
particles = SetOfParticles(filename=str(home / "particles.sqlite"))
particles.setSamplingRate(3.0)
particles.setAcquisition(Acquisition(voltage=300, sphericalAberration=2.7, amplitudeContrast=0.1, magnification=1))
particles.setHasCTF(True)
particles.setAlignmentProj()
for number in range(1, n + 1):
    particle = Particle()
    particle.setLocation(number, str(home / "stack.mrcs"))
    particle.setSamplingRate(3.0)
    particle.setAcquisition(particles.getAcquisition())
    particle.setCTF(CTFModel(defocusU=1e4 + number, defocusV=1e4, defocusAngle=30))
    particle.setTransform(Transform(np.eye(4)))
    particles.append(particle)
particles.write()
errors, _ = convert.checkParticles(particles)
assert not errors, errors
convert.writeParticles(particles, str(home / "particles.star"), str(home / "stacks"))
rows = [line for line in (home / "particles.star").read_text().splitlines() if "@" in line]
assert len(rows) == n, rows
commands = []
Plugin = dynamight_scipion.Plugin
for conda in (None, "/opt/conda/bin/conda"):
    shutil.which = lambda name, path=conda: path
    Plugin.getCondaActivationCmd = classmethod(lambda cls: "")
    command, needs = Plugin._getEnvironmentCommand()
    commands.append(command.replace(sys.executable, "python") + (" (needs conda)" if needs else ""))
print(f"{len(modules)} modules, {len(forms)} forms, {len(rows)} particles; environment by: {' | '.join(commands)}")
"""


def run(*command, **options):
    """Run a command; return what it printed, or raise with its last lines."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise RuntimeError("\n".join((done.stdout + done.stderr).splitlines()[-12:]))
    return done.stdout.strip()


def wheel(folder: Path) -> Path:
    """Build the wheels of both distributions, and check their metadata; return that of the plugin."""
    # From a copy: a build leaves folders behind.
    source = folder / "source"
    run("git", "clone", "--quiet", ROOT, source)
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", folder, source, source / "dynamight_core")
    program = folder / "checker" / "bin" / "python"
    run(sys.executable, "-m", "venv", folder / "checker")
    run(program, "-m", "pip", "install", "-q", "twine")
    run(program, "-m", "twine", "check", "--strict", *folder.glob("*.whl"))
    print(f"Wheels: {', '.join(sorted(path.name for path in folder.glob('*.whl')))}", flush=True)
    (built,) = folder.glob("scipion_em_dynamight-*.whl")
    return built


def try_python(python: str, built: Path, folder: Path) -> int:
    """Try the plugin in a Python, both ways; return the number of failures."""
    version, failures = run(python, "-c", "import sys; print(sys.version.split()[0])"), 0
    checkout = folder / f"any name {version}"
    run("git", "clone", "--quiet", ROOT, checkout)
    for name, what in {"wheel": [built], "checkout": ["-e", checkout]}.items():
        environment = folder / f"{version}-{name}"
        try:
            run(python, "-m", "venv", environment)
            program = environment / "bin" / "python"
            run(program, "-m", "pip", "install", "-q", "scipion-em", "scipion-pyworkflow", *what)
            print(f"Python {version}, {name}: {run(program, '-c', CHECK, cwd=folder).splitlines()[-1]}", flush=True)
        except RuntimeError as error:
            print(f"Python {version}, {name}: failed\n{error}", flush=True)
            failures += 1
        shutil.rmtree(environment, ignore_errors=True)
    return failures


def main() -> int:
    """Try all Pythons of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="+", metavar="PYTHON")
    with tempfile.TemporaryDirectory(prefix="scipion-pythons-") as name:
        folder = Path(name)
        built = wheel(folder)
        return sum(try_python(python, built, folder) for python in parser.parse_args().pythons)


if __name__ == "__main__":
    sys.exit(main())
