"""What a reconstruction refuses, and what it warns of."""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dynamight_core.errors import InputError
from dynamight_core.files import read_map
from dynamight_core.imaging.fourier import shells
from dynamight_core.imaging.geometry import nearest_voxels
from dynamight_core.options import ReconstructOptions
from dynamight_core.particles.memory import available_memory
from dynamight_core.reporter import Reporter
from dynamight_core.run import Run

# Sizes that differ by no more than rounding in headers.
_SAME_SIZE = 0.005
# What is worth a note: half-sets this much larger than the other, per cent of a molecule cut off, per cent of a
# shell whose denominator is below this share of its mean.
_UNEVEN, _CUT, _MISSING, _SEEN = 1.5, 2.0, 3.0, 0.05
# Per cent of the molecule that a mask must hold.
_LEAST = 1.0
# Volumes of the box held at a time, images of twice the box for a particle of a batch, and rows of least squares'
# matrix for a voxel, at most a quarter of which move.
_VOLUMES, _GRIDS, _CG_ROWS = 16, 4, 40

Say = Callable[[str], None]


def check_run(run: Run) -> None:
    """Refuse a run that was stopped before it was judged, and deformations learned on particles of another size."""
    _ = run.summary  # refuses a run that has none: now, and not after minutes of work
    particles = run.particles
    extent = particles.box * particles.pixel_size
    for half, model in enumerate(run.models, 1):
        learned = model.box * model.pixel_size
        if abs(learned / extent - 1) > _SAME_SIZE:
            raise InputError(
                f"the deformations of half {half} were learned in a box of {learned:.1f} A but the particles of "
                f"{particles.star_path} have one of {extent:.1f} A ({particles.box} pixels of "
                f"{particles.pixel_size:.4g} A); give the particles that the run was trained on"
            )


def check_halves(halves: torch.Tensor, reporter: Reporter) -> None:
    """Say where (n,) halves, 1 or 2, are of very different size."""
    sizes = [int((halves == half).sum()) for half in (1, 2)]
    if max(sizes) > _UNEVEN * min(sizes):
        reporter.say(
            f"Note: the half-sets have {sizes[0]} and {sizes[1]} particles; the FSC is that of the smaller half, and "
            "too pessimistic for the map of both. Split the particles evenly (rlnRandomSubset)."
        )


def check_views(denominator: torch.Tensor, half: int, pixel_size: float, reporter: Reporter) -> bool:
    """Return and say whether directions are missing: a share of a shell that hardly any particle's slice crosses."""
    box = denominator.shape[0]
    ring = shells(box, 3, denominator.device) == box // 4
    values = denominator[ring]
    missing = 100 * float((values < _SEEN * values.mean()).float().mean())
    if missing > _MISSING:
        reporter.say(
            f"Note: {missing:.0f} % of the directions at {4 * pixel_size:.1f} A are seen by hardly any particle of "
            f"half {half}: the map is smeared out along them, and its FSC does not show it."
        )
    return missing > _MISSING


def memory_needed(box: int, device: torch.device, options: ReconstructOptions) -> tuple[int, int]:
    """Return the bytes that sums of both halves, transforms and least squares' fields take, and those that are free."""
    volume = 4 * box**3
    needed = _VOLUMES * volume + options.batch_size * _GRIDS * 4 * (2 * box) ** 2
    if options.method == "cg":
        needed += volume * _CG_ROWS // 4
    return needed, torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()


def choose_method(
    missing: bool, box: int, device: torch.device, options: ReconstructOptions, reporter: Reporter
) -> str:
    """Return what `--method auto` takes: least squares where directions are missing and memory holds it, else wbp.

    A filter that is diagonal in Fourier space cannot fill a cone; least squares can, from the molecule's extent.
    """
    if not missing:
        return "wbp"
    needed, free = memory_needed(box, device, replace(options, method="cg"))
    if needed <= free:
        return "cg"
    reporter.say(
        f"Note: least squares would fill the missing directions better, but needs about {needed / 1e9:.1f} GB and "
        f"{free / 1e9:.1f} GB are free: weighted backprojection is taken."
    )
    return "wbp"


def check_memory(box: int, device: torch.device, options: ReconstructOptions) -> None:
    """Refuse what will not fit."""
    needed, free = memory_needed(box, device, options)
    if needed > free:
        cure = "use --method wbp" if options.method == "cg" else "bin the particles, or use a machine with more memory"
        raise InputError(
            f"a reconstruction of box {box} needs about {needed / 1e9:.1f} GB but {free / 1e9:.1f} GB are free; "
            f"{cure}, or close other programs"
        )


def read_mask(
    option: str, path: str, run: Run, points: list[torch.Tensor], reporter: Reporter | None = None
) -> torch.Tensor:
    """Return a mask on the grid of the maps; with `say`, say how much of the molecule it leaves out.

    Parameters
    ----------
    option, path
        that it was given by, and its file.
    run
        of the particles and the Gaussian models.
    points
        (m, 3) Gaussians of each half in the frame of the map, A.

    Raises
    ------
    InputError
        if it is on another grid, has values beyond 0 and 1, or holds no voxel or next to nothing of the molecule.
    """
    particles = run.particles
    volume, pixel_size = read_map(path, "mask", constant=True)
    if volume.shape[0] != particles.box or abs(pixel_size / particles.pixel_size - 1) > _SAME_SIZE:
        raise InputError(
            f"{option} {path} has {volume.shape[0]} voxels of {pixel_size:.4g} A but the particles have "
            f"{particles.box} pixels of {particles.pixel_size:.4g} A; give a mask on the grid of the maps"
        )
    if volume.min() < -0.01 or volume.max() > 1.01:
        raise InputError(f"{option} {path} has values from {volume.min():.2g} to {volume.max():.2g}; give 0 to 1")
    if volume.max() < 0.5:
        raise InputError(f"{option} {path} leaves no voxel (its largest value is {volume.max():.2g}); give 0 to 1")
    held = 100 * _density_share(volume >= 0.5, run, points)
    if held < _LEAST:
        raise InputError(
            f"{option} {path} holds {held:.1f} % of the molecule's density; give a mask that lies on the molecule"
        )
    if reporter is not None and held < 100 - _CUT:
        reporter.say(
            f"Note: mask {path} cuts off {100 - held:.0f} % of the molecule's density; the FSC is that of the rest."
        )
    return torch.from_numpy(volume)


def read_regions(paths: Iterable[str], run: Run, points: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return masks of parts of the molecule by name: their files', made fit for columns of a STAR file.

    Raises
    ------
    InputError
        as of `read_mask`, and if two have one name.
    """
    regions = {}
    for path in paths:
        name = re.sub(r"\W+", "_", Path(path).stem)
        if name in regions:
            raise InputError(f"two of --regions are called {name}; rename one of the files")
        regions[name] = read_mask("--regions", path, run, points)
    return regions


def _density_share(inside: np.ndarray, run: Run, points: list[torch.Tensor]) -> float:
    """Return the share of the Gaussians' density that lies where (box, box, box) voxels are True."""
    held, total = 0.0, 0.0
    for model, places in zip(run.models, points, strict=True):
        masses = model.gaussians.masses(model.pixel_size).sum(0).clamp(min=0).detach().cpu().numpy()
        voxels = nearest_voxels(places.cpu().numpy(), len(inside), run.particles.pixel_size)
        within = inside[tuple(voxels.clip(0, len(inside) - 1).T)]
        held, total = held + masses[within].sum(), total + masses.sum()
    return float(held / total)
