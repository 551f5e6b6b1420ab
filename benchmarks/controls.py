"""How often the controls find a motion that is there, and one that is not.

    python -m benchmarks.controls good --cases hinge igg rigid --seeds 0 1 2
    python -m benchmarks.controls small --snr 8 2 0.5 --seeds 0 1 2 3
    python -m benchmarks.controls rest --snr 8 2 0.5 --seeds 0 1 2 3
    python -m benchmarks.controls borrowed --snr 8 2 0.5 --seeds 0 1 2 3
    python -m benchmarks.controls permuted --snr 8 2 0.5 --seeds 0 1 2 3
    python -m benchmarks.controls free --snr 0.15 --seeds 0 1
    python -m benchmarks.controls wrong --seeds 0 1 2

Data, simulated and trained when first needed and kept in the temporary folder:

- `good`: the cases of benchmarks/common/runs.py;
- `small`: hinges of 600 particles, 32 pixels of 6 A, at several signal-to-noise ratios;
- `rest`: the same molecules at rest;
- `borrowed`: the decoders of `small` with the images of `rest`, latents inferred again: sound deformations for a motion
  that is not there;
- `permuted`: the runs of `small` with latents permuted among the particles of a half;
- `free`: hinges as in `good`, trained without regularisation;
- `wrong`: the control wrong-model on the antibody of benchmarks/prior.py with the right atomic model. The control
  chooses the part that it replaces; with --given, the Fc replaces the Fab.

`borrowed` and `permuted` are judged without shrinking, since held-out images would leave little of such motions.

Prints a line for each control. For each kind it then prints how often the control answered yes, with the 95 % interval:
motion improves the map, noise makes a map, or a wrong model draws the map. For `wrong` it also prints how much of the
wrong structure the map with the right model contains. For `good` and `free` it also prints the density that the noise
of the run's own particles adds to the moving domain, by regression on the true map.
"""

import argparse
import functools
import shutil
import sys
import time
from collections import defaultdict

import safetensors.torch
import torch
from scipy.stats import binomtest

from benchmarks.common.priors import CASES as PRIOR_CASES
from benchmarks.common.priors import prior_run
from benchmarks.common.runs import data_set, kept_run, trained_run
from dynamight_core.analysis.controls.maps import ControlImages, HalfDeformations, maps_of
from dynamight_core.analysis.controls.noise import model_fraction
from dynamight_core.analysis.controls.stage import control_run
from dynamight_core.analysis.controls.wrong_model import densities, moving_domain, wrong_fractions
from dynamight_core.imaging.fourier import fourier_to_image
from dynamight_core.judging.evidence import controls_folder
from dynamight_core.options import ControlOptions, TrainOptions
from dynamight_core.particles.preprocess import Preprocessing, prepare_images
from dynamight_core.reporter import PRINT, QUIET
from dynamight_core.run import Run
from dynamight_core.simulate.truth import load_truth
from dynamight_core.training.inference import infer_latents

KINDS = ("shuffled-latents", "held-out", "noise-particles")
POSITIVE = {
    "from the motion",
    "improves the map",
    "a map appears from noise",
    "drawn to the model",
    "follows the model",
}
# Validation particles enough for a map of them; the rest is as small as it may be.
TRAINING = {"n_gaussians": 300, "n_latents": 2, "epochs": 6, "refits": 1, "warm_up_epochs": 2}
TRAINING["validation_fraction"] = 0.25


def small_set(snr, seed, motion_range=20.0):
    """Return the folder of a small data set, made if it is not there; 0 degrees is the same molecule at rest."""
    return data_set(
        f"control-{'rest' if motion_range == 0 else 'hinge'}-{snr:g}-{seed}",
        particles=600,
        box=32,
        pixel_size=6.0,
        snr=snr,
        motion_range=motion_range,
        seed=seed,
        particle_diameter=150.0,
    )


def small_run(snr, seed, motion_range=20.0):
    """Return the run of a small data set, trained if it is not there."""
    return kept_run(small_set(snr, seed, motion_range), TrainOptions(seed=seed, **TRAINING))


def free_run(snr, seed):
    """Return truth and run of a hinge trained without regularisation, made if they are not there."""
    folder = data_set(f"free-{snr:g}-{seed}", snr=snr, seed=seed)
    options = TrainOptions(seed=seed, n_gaussians=2000, stiffness=0.0, rigidity=0.0)
    return load_truth(folder / "truth.npz"), kept_run(folder, options)


def changed(run, name, tensors):
    """Return a copy of a run, with other latents perhaps, in a folder beside it."""
    path = run.path.parent / name
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(run.path, path, ignore=shutil.ignore_patterns("checkpoints", "reconstruction"))
    before = safetensors.torch.load_file(path / "latents.safetensors")
    safetensors.torch.save_file(before | tensors, path / "latents.safetensors")
    return Run(path)


def borrowed_run(snr, seed):
    """Return a run whose decoders are those of a hinge and whose images show the molecule at rest."""
    run, rest = small_run(snr, seed), small_set(snr, seed, motion_range=0.0)
    run.config.inputs.star = str(rest / "particles.star")
    images = ControlImages(run, torch.arange(len(run.halves)), torch.device("cpu"))
    rows = torch.arange(len(images))
    found = [
        infer_latents(model, images.training, rows, model.latent_starts(len(rows)), 6, integrate=True)
        for model in run.models
    ]
    tensors = {"latents": torch.stack([f.latents for f in found]).contiguous()}
    tensors["covariances"] = torch.stack([f.covariances for f in found]).contiguous()
    run = changed(run, "borrowed", tensors)
    run.config.inputs.star = str(rest / "particles.star")
    run.config.inputs.map = str(rest / "consensus.mrc")
    return run


def permuted_run(snr, seed):
    """Return a small run whose latents are permuted among the particles of each half."""
    run = small_run(snr, seed)
    latents = run.latents.clone()
    for half in (1, 2):
        mine = torch.where(run.halves == half)[0]
        order = mine[torch.randperm(len(mine), generator=torch.Generator().manual_seed(10 * seed + half))]
        latents[half - 1, mine] = latents[half - 1, order]
    return changed(run, "permuted", {"latents": latents})


@torch.no_grad()
def true_share(run, truth, seed):
    """Return what the noise of a run's own particles adds to the moving domain's density, and its error."""
    images = ControlImages(run, torch.arange(len(run.halves)), torch.device("cpu"))
    if images.box != truth.box or not truth.domain_mask(1).any():
        return None
    particles, plain = images.particles, Preprocessing(images.box, normalise="none")
    pair = []
    for half in (1, 2):
        deformations = HalfDeformations.of(images, half, ControlOptions("noise-particles", seed=seed))

        def noise(rows):
            clean = fourier_to_image(truth.clean_transforms(rows), truth.box)
            shifts, ones = particles.shifts[rows], torch.ones(len(rows))
            return images.training.images(rows) - prepare_images(clean, shifts, ones, truth.pixel_size, plain)

        places = torch.where(images.halves == half)[0]
        pair.append(maps_of(deformations.reconstruct(images.data(half, images=noise), places))[0])
    return model_fraction(pair, [truth.true_map()] * 2, truth.domain_mask(1), seed)


@torch.no_grad()
def share_without(run, selection, seed):
    """Return the share of the control's wrong structure in the map of a run that never saw it."""
    images = ControlImages(run, torch.arange(len(run.halves)), torch.device("cpu"))
    pair = []
    for half in (1, 2):
        deformations = HalfDeformations.of(images, half, ControlOptions("wrong-model", seed=seed))
        places = images.chosen(half, len(images), seed)
        pair.append(maps_of(deformations.reconstruct(images.data(half), places))[0])
    right, wrong = (controls_folder(run) / "wrong-model" / f"{name}.cif" for name in ("right", "wrong"))
    found = densities(right, wrong, selection or moving_domain(run, right), images)
    return float(wrong_fractions([(pair[0] + pair[1]) / 2], found)[0][0])


def wrong_controls(seeds, given, counted):
    """Make the control wrong-model on runs with the right atomic model."""
    for seed in seeds:
        run = changed(prior_run("igg", "right", None, seed, 2000), "controls", {})
        selection, replacement = PRIOR_CASES["igg"][2:] if given else (None, None)
        options = ControlOptions("wrong-model", seed=seed, selection=selection, replacement=replacement)
        started = time.process_time()
        control = control_run(run, options, PRINT)
        counted["igg", "wrong-model"].append(control.verdict in POSITIVE)
        print(f"wrong igg {seed}: {control.verdict}; {time.process_time() - started:.0f} s", flush=True)
        print(f"    in the map with the right model: {share_without(run, selection, seed):.3f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("good", "small", "rest", "borrowed", "permuted", "free", "wrong"))
    parser.add_argument(
        "--cases", nargs="+", default=["hinge", "rigid"], help="for good: cases of benchmarks/common/runs.py"
    )
    parser.add_argument("--snr", type=float, nargs="+", default=[8.0, 2.0, 0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--given", action="store_true", help="for wrong: replace the Fab by the Fc")
    arguments = parser.parse_args()
    make = {
        "small": small_run,
        "rest": functools.partial(small_run, motion_range=0.0),
        "borrowed": borrowed_run,
        "permuted": permuted_run,
    }.get(arguments.what)
    trained = {"good": trained_run, "free": free_run}.get(arguments.what)
    counted = defaultdict(list)
    if arguments.what == "wrong":
        wrong_controls(arguments.seeds, arguments.given, counted)
    for case in {"good": arguments.cases, "wrong": []}.get(arguments.what, arguments.snr):
        for seed in arguments.seeds:
            # A copy: others may be reading the run.
            truth, run = trained(case, seed) if trained else (None, make(case, seed))
            run = changed(run, "controls", {}) if trained else run
            shrink = arguments.what not in ("borrowed", "permuted")
            for kind in arguments.kinds:
                started = time.process_time()
                control = control_run(run, ControlOptions(kind, shrink=shrink, seed=seed), QUIET)
                counted[case, kind].append(control.verdict in POSITIVE)
                print(
                    f"{arguments.what} {case} {seed} {kind}: {control.verdict}; {_figures(control.figures)}; "
                    f"{time.process_time() - started:.0f} s",
                    flush=True,
                )
                if kind == "noise-particles" and truth is not None:
                    share = true_share(run, truth, seed)
                    if share is not None:
                        print(f"    the noise of its own particles: {share[0]:.4f}+-{share[1]:.4f}", flush=True)
    print()
    for (case, kind), found in counted.items():
        low, high = binomtest(sum(found), len(found)).proportion_ci()
        print(f"{arguments.what} {case} {kind}: {sum(found)} of {len(found)} ({low:.2f} to {high:.2f})")
    return 0


def _figures(figures):
    names = ("gain", "permuted_map_gain", "permuted_gain", "share_of_model", "share_of_model_alone")
    parts = [f"{n} {figures[n]:.3f}+-{figures[f'{n}_error']:.3f}" for n in names if n in figures]
    if "shells_outside" in figures:
        parts.append(
            f"{figures['shells_outside']} of {figures['shells']} shells (alone "
            f"{figures['shells_outside_alone']}, at rest {figures['shells_outside_rigid']})"
        )
        parts.append(f"motion {figures['invented_motion_rms']:.2f} against {figures['real_motion_rms']:.2f} A")
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
