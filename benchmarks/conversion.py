"""Time and memory to take a large set of particles out of Scipion and its results back in.

    python -m benchmarks.conversion [--particles 100000]

Data: a set as RELION refines it, with CTFs, phase shifts, alignment, coordinates, half-sets and two optics groups with
aberrations. The results have six latents and six motions. The writer of the RELION plugin is timed beside ours.
"""

import argparse
import logging
import os
import random
import resource
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import mrcfile
import numpy as np
from scipy.spatial.transform import Rotation

OPTICS = """
data_optics

loop_
_rlnOpticsGroup
_rlnOpticsGroupName
_rlnVoltage
_rlnSphericalAberration
_rlnAmplitudeContrast
_rlnImagePixelSize
_rlnImageSize
_rlnImageDimensionality
_rlnBeamTiltX
_rlnBeamTiltY
_rlnOddZernike
_rlnEvenZernike
1 opticsGroup1 300.000000 2.700000 0.100000 1.200000 16 2 0.100000 -0.100000 [0,0,40,0,0,-30] [0,0,0,0,300,0,0,0,-200]
2 opticsGroup2 300.000000 2.700000 0.100000 1.200000 16 2 -0.200000 0.300000 [0,0,40,0,0,-30] [0,0,0,0,300,0,0,0,-200]
"""
PER_STACK = 500
FOUND = ["dynHalf", "dynValidation", *(f"dynLatent{i}" for i in range(1, 7)), *(f"dynMotion{i}" for i in range(1, 7))]
FOUND += ["dynMotionRms", "dynMotionError", "dynMotionDisagreement"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--particles", type=int, default=100_000)
    n = parser.parse_args().particles
    with tempfile.TemporaryDirectory() as folder:
        start_scipion(Path(folder))
        os.chdir(folder)
        os.mkdir("extra")
        from pwem.constants import ALIGN_PROJ
        from relion.convert import writeSetOfParticles

        from dynamight_scipion import convert

        particles = timed("a set is made", build_set, n)
        timed("checks before a run", convert.checkParticles, particles)
        timed("out: the STAR file is written", convert.writeParticles, particles, "extra/out.star", "extra/stacks")
        pretend_results("extra/out.star", "extra/back.star")
        timed("in: the set with the results is filled", bring_back, convert, particles)
        relions = "extra/relion.star"
        timed("(RELION's writer, to compare)", writeSetOfParticles, particles, relions, alignType=ALIGN_PROJ)
        os.chdir("/")


def start_scipion(folder):
    """Give Scipion a home before it is imported."""
    os.environ.update(
        SCIPION_DOMAIN="pwem",
        SCIPION_HOME=str(folder),
        SCIPION_USER_DATA=str(folder),
        SCIPION_NOTIFY="False",
        SCIPION_HOSTS=str(Path(find_spec("scipion").origin).parent / "templates" / "hosts.template"),
        SCIPION_PYTHON=sys.executable,
    )
    import pyworkflow

    pyworkflow.Config.getDomain().getPlugins()
    logging.disable(logging.CRITICAL)


def timed(what, function, *args, **kwargs):
    """Call a function and print its time (and processor time), and the most memory of the process until then."""
    started, busy = time.monotonic(), time.process_time()
    result = function(*args, **kwargs)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    took = f"{time.monotonic() - started:6.1f} s ({time.process_time() - busy:.1f} s of a processor)"
    print(f"{what:<42} {took}   peak {peak:.2f} GB", flush=True)
    return result


def build_set(n):
    """Return a set of n particles in stacks of a few hundred; their images are never read."""
    from pwem.objects import Acquisition, Coordinate, CTFModel, Particle, SetOfParticles, Transform
    from pyworkflow.object import Integer

    generator = np.random.default_rng(0)
    with mrcfile.new("extra/stack00000.mrcs") as mrc:
        mrc.set_data(np.zeros((2, 16, 16), np.float32))
    for number in range(1, -(-n // PER_STACK)):
        os.link("extra/stack00000.mrcs", f"extra/stack{number:05d}.mrcs")
    acquisition = Acquisition(voltage=300.0, sphericalAberration=2.7, amplitudeContrast=0.1, magnification=50000.0)
    acquisition.opticsGroupInfo.set(OPTICS)
    particles = SetOfParticles(filename="particles.sqlite")
    particles.setSamplingRate(1.2)
    particles.setAcquisition(acquisition)
    particles.setAlignmentProj()
    particles.setHasCTF(True)
    matrices = np.tile(np.eye(4), (n, 1, 1))
    matrices[:, :3, :3] = Rotation.random(n, random_state=0).as_matrix()
    matrices[:, :2, 3] = generator.normal(0, 3, (n, 2))
    particle = Particle()
    particle.setCTF(CTFModel())
    particle.setTransform(Transform())
    particle.setCoordinate(Coordinate())
    particle._rlnRandomSubset, particle._rlnOpticsGroup = Integer(), Integer()
    for i in range(n):
        particle.setObjId(i + 1)
        particle.setLocation(i % PER_STACK + 1, f"extra/stack{i // PER_STACK:05d}.mrcs")
        particle.getCTF().setStandardDefocus(12000.0 + i % 997, 11900.0 + i % 991, float(i % 180))
        particle.getCTF().setPhaseShift(float(i % 120))
        particle.getTransform().setMatrix(matrices[i])
        particle.getCoordinate().setPosition(i % 4096, i % 3001)
        particle.getCoordinate().setMicName(f"mic{i // PER_STACK:05d}.mrc")
        particle.setMicId(i // PER_STACK + 1)
        particle._rlnRandomSubset.set(1 + i % 2)
        particle._rlnOpticsGroup.set(1 + i % 3 // 2)
        particles.append(particle)
    particles.write()
    return particles


def pretend_results(star, out):
    """Add the columns that the engine adds to a STAR file, with random numbers in them."""
    generator = random.Random(0)
    text = Path(star).read_text()
    head, _, rows = text.rpartition("#" + str(text.count("_rln", text.index("data_particles"))) + "\n")
    head += f"#{text.count('_rln', text.index('data_particles'))}\n"
    with open(out, "w") as file:
        file.write(head + "".join(f"_{label}\n" for label in FOUND))
        for row in rows.splitlines():
            if row:
                numbers = [f"{generator.gauss(0, 1):.6g}" for _ in FOUND[2:]]
                file.write(" ".join([row, str(generator.randint(1, 2)), "0", *numbers]) + "\n")


def bring_back(convert, particles):
    """Make the set that the protocol puts out."""
    from pwem.objects import SetOfParticlesFlex

    output = SetOfParticlesFlex(filename="flex.sqlite")
    output.copyInfo(particles)
    columns = convert.readMotions("extra/back.star")
    convert.fillParticles(output, particles, columns, convert.motionCoordinates(columns)[:, :2])
    output.write()
    assert len(output) == len(particles)


if __name__ == "__main__":
    main()
