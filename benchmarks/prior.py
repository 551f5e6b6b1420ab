"""What a prior does to the map: none, smoothness, the right atomic model or a wrong one.

    python -m benchmarks.prior igg --seeds 0
    python -m benchmarks.prior fab --seeds 0 1
    python -m benchmarks.prior size

Data (benchmarks/common/priors.py): `igg` is the antibody 1HZH with one moving Fab; in the wrong model the Fc of the
same file replaces that Fab. `fab` is the Fab alone, a small case at SNR 2, whose variable half moves; in the wrong
model the constant half replaces it.

Maps are those of `dynamight reconstruct`. Each FSC is a mean over shells 1 to Nyquist in a mask: around the moving
part, around the rest, or around the moving part and its replacement. `share of the wrong structure` is c / (b + c) in
the least-squares fit of the map's transform by b right + c wrong + d rest, in the last mask, over the shells where
right and wrong have an FSC below 0.5. `size` prints the seconds to coarse-grain a model of 120,000 atoms.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import torch

from benchmarks.common.motion import compare
from benchmarks.common.priors import CASES, PRIORS, prior_run, prior_set
from dynamight_core.files import read_map
from dynamight_core.imaging.correlation import fourier_shell_correlation
from dynamight_core.imaging.fourier import shells, volume_to_fourier
from dynamight_core.model.atomic import coarse_grain
from dynamight_core.reconstruction.deformation import model_map, model_points
from dynamight_core.simulate.measures import mean_fsc
from dynamight_core.simulate.molecules import DATA
from dynamight_core.simulate.truth import load_truth


def structures(truth, paths):
    """Return maps of the moving part, and of what replaced it, both alone; and the mask around both."""
    right = truth.molecule.domain(1)
    model = coarse_grain(paths["wrong"])
    new = ~np.isin(np.array(model.chains), list("HKLMAB"))[model.atom_groups]
    wrong = replace(
        right,
        positions=torch.tensor(model.atom_positions[new], dtype=torch.float32),
        weights=torch.tensor(model.atom_numbers[new], dtype=torch.float32),
        moving=torch.ones(int(new.sum())).long(),
    )
    truths = [replace(truth, molecule=molecule) for molecule in (right, wrong)]
    mask = torch.maximum(*(one.domain_mask(1) for one in truths))
    return [one.true_map() for one in truths], mask


def share_of_wrong(volume, right, wrong, rest, mask):
    """Return c / (b + c) in the least-squares fit of a map by b right + c wrong + d rest in a mask."""
    box = volume.shape[-1]
    curve = fourier_shell_correlation(right, wrong, mask)
    radius = shells(box, 3)
    chosen = (radius > 0) & (radius < box // 2) & (curve[radius.clamp(max=box // 2)] < 0.5)
    target, *terms = (
        torch.view_as_real(volume_to_fourier(part * mask)[chosen]).flatten() for part in (volume, right, wrong, rest)
    )
    b, c, _ = torch.linalg.lstsq(torch.stack(terms, 1), target[:, None]).solution[:, 0].tolist()
    return c / (b + c)


def measure(case, prior, particles, seed, n_gaussians):
    """Train and reconstruct, unless that was done before, and compare with the truth; return figures by name."""
    folder, paths = prior_set(case, particles, seed)
    truth, run = load_truth(folder / "truth.npz"), prior_run(case, prior, particles, seed, n_gaussians)
    found = compare(run, run, truth, "train")
    figures = {"prior": prior, "seed": seed, "particles": len(truth), "verdict": run.summary["verdict"]["verdict"]}
    figures |= {name: found[name] for name in ("r", "error", "motion", "static")}
    state = truth.true_map()
    masks = {"moving": truth.domain_mask(1), "rest": truth.domain_mask(0)}
    (right, wrong), both = structures(truth, paths)
    rest = state - right
    gaussians = model_map(run, model_points(run, [None, None]))
    for way in ("", "rigid/") if prior == "smoothness" else ("",):
        where = run.path / "reconstruction" / way
        halves = [torch.from_numpy(read_map(where / f"half{half}_unfil.mrc")[0]) for half in (1, 2)]
        volume, label = (halves[0] + halves[1]) / 2, " rigid" if way else ""
        for name, mask in masks.items():
            figures[f"map and truth, {name}{label}"] = mean_fsc(volume, state, mask)
        figures[f"halves, moving{label}"] = mean_fsc(*halves, masks["moving"])
        if not way:
            figures |= {f"model and map, {name}": mean_fsc(gaussians, volume, mask) for name, mask in masks.items()}
            figures["model and truth, moving"] = mean_fsc(gaussians, state, masks["moving"])
        figures[f"map and right structure{label}"] = mean_fsc(volume, right, both)
        figures[f"map and wrong structure{label}"] = mean_fsc(volume, wrong, both)
        figures[f"share of the wrong structure{label}"] = share_of_wrong(volume, right, wrong, rest, both)
    figures["right and wrong structure"] = mean_fsc(right, wrong, both)
    return figures


def table(arguments):
    """Print the figures of every prior and seed, then their means over seeds."""
    results = []
    for seed in arguments.seeds:
        for prior in arguments.priors:
            results.append(measure(arguments.what, prior, arguments.particles, seed, arguments.n_gaussians))
            line = {k: round(v, 4) if isinstance(v, float) else v for k, v in results[-1].items()}
            print(json.dumps(line), flush=True)
    names = [name for name, value in max(results, key=len).items() if isinstance(value, float)]
    print(f"\n{'mean over seeds':34s}" + "".join(f"{prior:>20s}" for prior in arguments.priors))
    for name in names:
        cells = []
        for prior in arguments.priors:
            values = [r[name] for r in results if r["prior"] == prior and name in r]
            cells.append(f"{np.mean(values):20.3f}" if values else f"{'':20s}")
        print(f"{name:34s}" + "".join(cells))


def size():
    """Print the time that it takes to coarse-grain a model of 120,000 atoms: copies of the antibody."""
    structure = gemmi.read_structure(str(DATA / "1hzh.pdb.gz"))
    structure.remove_waters()
    chains = [chain.clone() for chain in structure[0]]
    for copy in range(1, 12):
        for chain in chains:
            moved = chain.clone()
            moved.name = f"{chain.name}{copy}"
            for residue in moved:
                for atom in residue:
                    atom.pos += gemmi.Position(200.0 * copy, 0, 0)
            structure[0].add_chain(moved)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.cif"
        structure.setup_entities()
        structure.make_mmcif_document().write_file(str(path))
        started, used = time.monotonic(), time.process_time()
        model = coarse_grain(path)
        seconds = time.monotonic() - started, time.process_time() - used
    print(
        f"{len(model.atom_numbers)} atoms became {len(model)} Gaussians in {seconds[0]:.1f} s, "
        f"{seconds[1]:.1f} s of a core"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=(*CASES, "size"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--particles", type=int, help="number of particles, if not that of the case")
    parser.add_argument("--n-gaussians", type=int, default=2000, help="Gaussians of runs without an atomic model")
    parser.add_argument("--priors", nargs="+", choices=PRIORS, default=["none", "smoothness", "right", "wrong"])
    arguments = parser.parse_args()
    if arguments.what == "size":
        size()
    else:
        table(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
