"""What a reconstruction refuses, and what it notes."""

import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dynamight_core.errors import InputError
from dynamight_core.files import read_map
from dynamight_core.imaging.geometry import nearest_voxels
from dynamight_core.imaging.wide_kernel import MAX_MISSING, missing_directions, views_are_uneven
from dynamight_core.options import ReconstructOptions
from dynamight_core.particles.memory import available_memory
from dynamight_core.reconstruction.deformation import deforming_region
from dynamight_core.reporter import Reporter
from dynamight_core.run import Run
from dynamight_core.training.read import read_volume
from dynamight_core.training.validate import check_mask_range, check_model_box

# Notes are made of: half-sets whose sizes differ by this factor, and this percentage of the molecule cut off.
_UNEVEN, _CUT = 1.5, 2.0
# A domain's region is this near (A) to its Gaussians.
_DOMAIN_REACH = 7.0
# Smallest percentage of the molecule in a mask.
_MIN_INSIDE = 1.0
# Volumes of the box held at a time, images of twice the box for each particle of a batch, and rows of the least-squares
# matrix for each voxel that moves (at most a quarter of all voxels).
_VOLUMES, _GRIDS, _CG_ROWS = 16, 4, 40
# Further volumes of the box that are held while densities compete.
_COMPETING = 50


def check_run(run: Run) -> None:
    """Refuse a run without a summary, and one trained on particles of another size."""
    _ = run.summary  # raises here and not after minutes of work
    for half, model in enumerate(run.models, 1):
        check_model_box(model, half, run.particles)


def check_halves(halves: torch.Tensor, reporter: Reporter) -> None:
    """Note half-sets of very different size; `halves` are (n,), 1 or 2."""
    sizes = [int((halves == half).sum()) for half in (1, 2)]
    if max(sizes) > _UNEVEN * min(sizes):
        reporter.note(
            f"the half-sets have {sizes[0]} and {sizes[1]} particles; the smaller one limits the FSC, which is too "
            "pessimistic for the final map; split the particles evenly (rlnRandomSubset)"
        )


def check_views(denominator: torch.Tensor, half: int, pixel_size: float, reporter: Reporter) -> bool:
    """Return whether some viewing directions are missing, or have many more views than others; note it."""
    if not views_are_uneven(denominator):
        return False
    missing = missing_directions(denominator)
    if missing > MAX_MISSING:
        reporter.note(
            f"{missing:.0f} % of the directions at {4 * pixel_size:.1f} A are almost unsampled in half-set {half}; the "
            "map is smeared along them, and the FSC does not show this"
        )
    else:
        reporter.note(
            f"some directions have many more views than others in half-set {half}; the resolution of the map differs "
            "between directions, and the FSC does not show this"
        )
    return True


def memory_needed(box: int, device: torch.device, options: ReconstructOptions) -> tuple[int, int]:
    """Return the bytes needed by sums of both half-sets, transforms and least-squares fields, and the free bytes."""
    volume = 4 * box**3
    needed = _VOLUMES * volume + options.batch_size * _GRIDS * 4 * (2 * box) ** 2
    if options.method == "cg":
        needed += volume * _CG_ROWS // 4
    return needed, torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()


def choose_method(uneven: bool, box: int, device: torch.device, options: ReconstructOptions, reporter: Reporter) -> str:
    """Return the method of `--method auto`: cg if directions are missing or uneven and memory is sufficient, else wbp.

    A filter that is diagonal in Fourier space cannot fill a missing cone; least squares can, from the extent of the
    molecule. And a part that rotates is seen from other directions than the rest, which only least squares knows.
    """
    if not uneven:
        return "wbp"
    needed, free = memory_needed(box, device, replace(options, method="cg"))
    if needed <= free:
        return "cg"
    reporter.note(
        f"least squares would make a better map of so uneven views, but needs about {needed / 1e9:.1f} GB and "
        f"{free / 1e9:.1f} GB are free; using weighted backprojection"
    )
    return "wbp"


def may_compete(box: int, device: torch.device, options: ReconstructOptions, reporter: Reporter) -> bool:
    """Return whether memory is sufficient for densities to compete; note if it is not."""
    needed, free = memory_needed(box, device, options)
    needed += 4 * _COMPETING * box**3
    if needed > free:
        reporter.note(
            f"choosing the density in each region needs about {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free; "
            "motion is corrected everywhere, as with --no-choose-density"
        )
    return needed <= free


def check_memory(box: int, device: torch.device, options: ReconstructOptions) -> None:
    """Refuse a reconstruction that needs more memory than is free."""
    needed, free = memory_needed(box, device, options)
    if needed > free:
        cure = "use --method wbp" if options.method == "cg" else "bin the particles, or use a machine with more memory"
        raise InputError(
            f"a reconstruction of box {box} needs about {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free; "
            f"{cure}, or close other programs"
        )


def read_mask(
    option: str, path: str, run: Run, points: list[torch.Tensor], reporter: Reporter | None = None
) -> torch.Tensor:
    """Return a (box, box, box) mask on the grid of the maps; note how much of the molecule it cuts off.

    Parameters
    ----------
    option, path
        the option and its file.
    run
        whose particles and Gaussian models are used.
    points
        (m, 3) Gaussians of each half-set in the frame of the map, A.
    reporter
        receives the note; None for a mask of a region.

    Raises
    ------
    InputError
        if it is on another grid, has values outside 0 to 1, or holds no voxel or almost none of the molecule.
    """
    mask = read_volume(option, path, run.particles, constant=True)
    check_mask_range(option, path, mask)
    if mask.max() < 0.5:
        raise InputError(f"{option} {path} is empty (its largest value is {mask.max():.2g}); set it to 1 inside")
    inside = 100 * _fraction_inside(mask.numpy() >= 0.5, run, points)
    if inside < _MIN_INSIDE:
        raise InputError(f"{option} {path} holds {inside:.1f} % of the molecule's density; use a mask on the molecule")
    if reporter is not None and inside < 100 - _CUT:
        reporter.note(f"mask {path} cuts off {100 - inside:.0f} % of the molecule's density; the FSC excludes it")
    return mask


def read_regions(paths: Iterable[str], run: Run, points: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the masks of regions by name: the file's stem, valid in a column name of a STAR file.

    Raises
    ------
    InputError
        as `read_mask`, and if two masks have the same name.
    """
    regions = {}
    for path in paths:
        name = re.sub(r"\W+", "_", Path(path).stem)
        if name in regions:
            raise InputError(f"two files of --regions are called {name}; rename one of them")
        regions[name] = read_mask("--regions", path, run, points)
    return regions


def found_regions(
    run: Run, points: list[torch.Tensor], moving: torch.Tensor | None, taken: Collection[str]
) -> dict[str, torch.Tensor]:
    """Return masks of the regions that a run has found, by name: its moving part, and domains of ``dynamight analyse``.

    Parameters
    ----------
    run
        finished.
    points
        (m, 3) Gaussians of each half-set in the frame of the map, A.
    moving
        (box, box, box) mask of the moving part, None if nothing moves.
    taken
        names of other regions.
    """
    box, pixel_size = run.particles.box, run.particles.pixel_size
    regions = {} if moving is None else {"moving": moving}
    placed = torch.cat([each.cpu() for each in points])
    consensus = torch.cat([model.consensus_positions.detach().cpu() for model in run.models]).numpy()
    for number, path in enumerate(_domain_masks(run), 1):
        mask, size = read_map(path)
        voxels = nearest_voxels(consensus, len(mask), size).clip(0, len(mask) - 1)
        inside = torch.from_numpy(mask[tuple(voxels.T)] >= 0.5)
        if inside.any():
            regions[f"domain{number}"] = deforming_region(placed[inside], box, pixel_size, _DOMAIN_REACH)
    return {name: mask for name, mask in regions.items() if name not in taken}


def _domain_masks(run: Run) -> list[Path]:
    """Return the masks of the domains in their order, none if there is one domain alone."""
    names = sorted(
        (run.path / "analysis" / "domains").glob("domain*_mask.mrc"), key=lambda path: (len(path.name), path)
    )
    return names if len(names) > 1 else []


def _fraction_inside(inside: np.ndarray, run: Run, points: list[torch.Tensor]) -> float:
    """Return the fraction of the Gaussians' density that lies where (box, box, box) voxels are True."""
    held, total = 0.0, 0.0
    for model, positions in zip(run.models, points, strict=True):
        masses = model.gaussians.masses(model.pixel_size).sum(0).clamp(min=0).detach().cpu().numpy()
        voxels = nearest_voxels(positions.cpu().numpy(), len(inside), run.particles.pixel_size)
        within = inside[tuple(voxels.clip(0, len(inside) - 1).T)]
        held, total = held + masses[within].sum(), total + masses.sum()
    return float(held / total)
