"""Particles of tilt series: motion against an oracle, and the map against the rigid one.

    python -m benchmarks.tilts --seeds 0 1 2
    python -m benchmarks.tilts --seeds 0 --alone
    python -m benchmarks.tilts --seeds 0 --unweighted

Data: 400 particles of the hinge with 41 tilts from -60 to 60 degrees and 120 e/A^2 in all, box 32 at 6 A. Signal fades
with exposure and thickness. They are simulated and trained when they are first needed, and kept in the temporary
folder. With `--alone`, each image is a particle of its own, as if the tilts did not belong together. With
`--unweighted`, the model has no fading with exposure.

Prints one JSON object per data set. `r` correlates decoded and true angles, over training and validation particles,
mean over half-sets; `oracle_r` is the same for an oracle's posterior means. It knows structure, poses, CTF, exposure
and noise. Then the mean FSC with the true map at rest in a mask around each domain, of the mean of the half-maps by
weighted backprojection, with all motion corrected as learned, and rigid.
"""

import argparse
import json
from dataclasses import replace

import mrcfile
import numpy as np
import torch

from benchmarks.common.motion import compare
from benchmarks.common.runs import data_set
from dynamight_core.options import InputOptions, ReconstructOptions, TrainOptions
from dynamight_core.particles.star import read_blocks, write_star
from dynamight_core.reconstruction.deformation import deforming_region, half_modes
from dynamight_core.reconstruction.half_map import MIN_REGULARISATION, HalfReconstruction
from dynamight_core.reconstruction.images import FullImages
from dynamight_core.reporter import QUIET
from dynamight_core.run import Run
from dynamight_core.simulate.measures import mean_fsc, oracle_angles
from dynamight_core.simulate.truth import load_truth
from dynamight_core.training.stage import train

PARTICLES, TILTS, DOSE, RANGE = 400, 41, 120.0, 20.0
BOX, PIXEL_SIZE = 32, 6.0


def separated(folder):
    """Return the STAR file of a data set in which each image is a particle, and images of one stay in its half-set."""
    blocks = read_blocks(folder / "particles.star")
    path = folder / "alone.star"
    write_star(path, blocks["particles"].drop(columns=["rlnTomoParticleName"]), blocks["optics"])
    return path


def trained(folder, options, name, **inputs):
    """Return the run `name` of a data set's folder, trained if it is not there."""
    if not (folder / name / "latents.safetensors").exists():
        given = {"star": str(folder / "particles.star"), "map": str(folder / "consensus.mrc")} | inputs
        train(InputOptions(**given), options, folder / name, overwrite=True, reporter=QUIET)
    return Run(folder / name)


def against_truth(run, truth):
    """Return the mean FSC of maps with the truth, with motion corrected as learned, and rigid."""
    options = ReconstructOptions(shrink=False)
    images = FullImages(run, torch.device("cpu"))
    weights, maps = images.noise_weights(options.seed), {"corrected": 0, "rigid": 0}
    for half, model in enumerate(run.models, 1):
        modes, _ = half_modes(run, half, images, options)
        region = deforming_region(model.consensus_positions, images.box, images.pixel_size, options.region_radius)
        rows = torch.where(run.halves == half)[0]
        summed = HalfReconstruction.of(images.data(weights), rows, modes, region, batch_size=128)
        for name in maps:
            maps[name] = maps[name] + summed.backprojected(MIN_REGULARISATION, name == "corrected")
    state, masks = truth.true_map(), {"moving": truth.domain_mask(1), "static": truth.domain_mask(0)}
    return {
        f"{name}_{domain}": mean_fsc(volume, state, mask)
        for name, volume in maps.items()
        for domain, mask in masks.items()
    }


def benchmark(seed, snr, options, alone=False, **inputs):
    """Return the figures of one data set."""
    folder = data_set(
        f"tilts-{seed}-{snr:g}",
        **{"seed": seed, "snr": snr, "particles": PARTICLES, "tilts": TILTS, "tilt_dose": DOSE / TILTS},
        **{"box": BOX, "pixel_size": PIXEL_SIZE},
    )
    truth = load_truth(folder / "truth.npz")
    name = "alone" if alone else "keep" if inputs.get("dose_weighting", True) else "unweighted"
    if alone:
        inputs["star"] = str(separated(folder))
    run = trained(folder, replace(options, seed=seed), name, **inputs)
    figures, particles = {"seed": seed, "snr": snr, "way": name}, truth if alone else truth.of_particles()
    for share in ("train", "validation"):
        figures[f"r_{share}"] = compare(run, run, particles, share)["r"]
    with mrcfile.mmap(folder / "particles.mrcs", mode="r", permissive=True) as stack:
        figures["oracle_r"] = oracle_angles(stack.data, truth, float(np.deg2rad(RANGE)))[2]
    return figures | against_truth(run, truth)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--snr", type=float, default=0.13, help="of one tilt before exposure")
    parser.add_argument("--alone", action="store_true", help="take each image for a particle")
    parser.add_argument("--unweighted", action="store_true", help="without dose weighting")
    arguments = parser.parse_args()
    options = TrainOptions(n_gaussians=1000)
    inputs = {"dose_weighting": False} if arguments.unweighted else {}
    for seed in arguments.seeds:
        print(json.dumps(benchmark(seed, arguments.snr, options, arguments.alone, **inputs)), flush=True)


if __name__ == "__main__":
    main()
