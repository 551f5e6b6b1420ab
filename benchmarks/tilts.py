"""Particles of tilt series: motion against an oracle, and the map against the rigid one.

    python -m benchmarks.tilts --seeds 0 1 2
    python -m benchmarks.tilts --seeds 0 --alone

Data: 400 particles of the hinge with 41 tilts from -60 to 60 degrees and 120 e/A^2 in all, box 32 at 6 A. Signal fades
with exposure and thickness. They are simulated when they are first needed and kept in the temporary folder. With
`--alone`, each image is a particle of its own, as if the tilts did not belong together. With `--unweighted`, the model
has no fading with exposure.

Prints one JSON object per data set. `r` correlates decoded and true angles, over training and validation particles,
mean over half-sets; `oracle_r` is that of the posterior means of who knows structure, poses, CTF, exposure and noise.
Then the verdict and its gain in nats per held-out particle, and the mean FSC with the true map at rest in a mask around
each domain, of the mean of the half-maps, with and without motion corrected.
"""

import argparse
import json
import time
from dataclasses import replace

import mrcfile
import numpy as np
import torch

from benchmarks.common.motion import compare
from benchmarks.common.runs import data_set, kept_run
from dynamight_core.files import read_map
from dynamight_core.options import ReconstructOptions, TrainOptions
from dynamight_core.particles.star import read_blocks, write_star
from dynamight_core.reconstruction.stage import reconstruct_run
from dynamight_core.reporter import QUIET
from dynamight_core.simulate.measures import mean_fsc, oracle_angles
from dynamight_core.simulate.truth import load_truth

PARTICLES, TILTS, DOSE, RANGE = 400, 41, 120.0, 20.0
BOX, PIXEL_SIZE = 32, 6.0


def separated(folder):
    """Return the STAR file of a data set in which each image is a particle, and images of one stay in its half-set."""
    blocks = read_blocks(folder / "particles.star")
    path = folder / "alone.star"
    table = blocks["particles"].drop(columns=["rlnTomoParticleName"])
    write_star(path, table, blocks["optics"])
    return path


def benchmark(seed, snr, options, alone=False, **inputs):
    """Return the figures of one data set."""
    folder = data_set(
        f"tilts-{seed}-{snr:g}",
        **{"seed": seed, "snr": snr, "particles": PARTICLES, "tilts": TILTS, "tilt_dose": DOSE / TILTS},
        **{"box": BOX, "pixel_size": PIXEL_SIZE},
    )
    truth, started = load_truth(folder / "truth.npz"), time.monotonic()
    name = "alone" if alone else "keep" if inputs.get("dose_weighting", True) else "unweighted"
    if alone:
        inputs["star"] = str(separated(folder))
    run = kept_run(folder, replace(options, seed=seed), name, **inputs)
    figures = {"seed": seed, "snr": snr, "way": name, "seconds": round(time.monotonic() - started)}
    with mrcfile.mmap(folder / "particles.mrcs", mode="r", permissive=True) as stack:
        oracle = oracle_angles(stack.data, truth, float(np.deg2rad(RANGE)))
    particles = truth if alone else truth.of_particles()
    for share in ("train", "validation"):
        figures[f"r_{share}"] = compare(run, run, particles, share)["r"]
    figures["oracle_r"] = oracle[2]
    figures |= {key: run.summary["verdict"][key] for key in ("verdict", "gain", "gain_error")}
    reconstruct_run(run, ReconstructOptions(conformation="reference"), QUIET)
    at_rest = truth.true_map()
    for name, sub in {"corrected": "", "rigid": "rigid/"}.items():
        paths = (run.path / "reconstruction" / f"{sub}half{half}_unfil.mrc" for half in (1, 2))
        volume = sum(torch.from_numpy(read_map(path)[0]) for path in paths)
        for domain, label in {"moving": 1, "static": 0}.items():
            figures[f"{name}_{domain}"] = mean_fsc(volume, at_rest, truth.domain_mask(label))
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--snr", type=float, default=0.13, help="of one tilt before exposure")
    parser.add_argument("--epochs", type=int, default=TrainOptions().epochs)
    parser.add_argument("--alone", action="store_true", help="take each image for a particle")
    parser.add_argument("--unweighted", action="store_true", help="without dose weighting")
    arguments = parser.parse_args()
    options = TrainOptions(n_gaussians=1000, epochs=arguments.epochs)
    inputs = {"dose_weighting": False} if arguments.unweighted else {}
    for seed in arguments.seeds:
        print(json.dumps(benchmark(seed, arguments.snr, options, arguments.alone, **inputs)), flush=True)


if __name__ == "__main__":
    main()
