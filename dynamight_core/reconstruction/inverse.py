"""The paper's inverse deformation field, and the forward field that it takes the place of.

A coordinate network with 6 layers learns (mu_i, Gamma_i(c_j)) -> c_j for all particles i and Gaussians j. Weighted
backprojection needs the forward field on voxels, where Gamma was never trained; the paper uses Gamma(x) ~ 2x -
Gamma^-1(x), so that one network serves all. `ForwardFromInverse` is that approximation, read by the same operator as
the exact field.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy.spatial import cKDTree
from torch import nn

from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path
from dynamight_core.model.decoders.coordinate import CoordinateDecoder
from dynamight_core.options import InvertOptions

_LAYERS = 6


class InverseField(nn.Module):
    """u(z, y) = Gamma_z^-1(y) - y, a coordinate network with 6 layers that starts at zero.

    Parameters
    ----------
    n_latents
        dimensions of the latent space.
    extent
        A, size of the box.
    box
        pixels; the shortest wavelength of the encoding is two pixels.
    """

    def __init__(self, n_latents: int, extent: float, box: int):
        super().__init__()
        self.n_latents, self.extent, self.box = n_latents, extent, box
        self.network = CoordinateDecoder(n_latents, extent, box, n_layers=_LAYERS)

    def evaluator(self, points: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the map from (b, d) latents to (b, m, 3) displacements (A) from points to where they came from.

        `points` are (m, 3), or (b, m, 3) with b points sets for the b latents, A.
        """
        return self.network.evaluator(points)

    def displacements(self, latents: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """Return (b, m, 3) displacements (A) of (m, 3) or (b, m, 3) points (A) under (b, d) latents."""
        return self.evaluator(points)(latents)


class ForwardFromInverse:
    """The forward displacement Gamma(x) - x ~ x - Gamma^-1(x), a field for `accumulate`.

    Parameters
    ----------
    inverse
        of the same latents.
    """

    def __init__(self, inverse: InverseField):
        self.inverse = inverse

    def evaluator(self, points: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the map from (b, d) latents to (b, m, 3) displacements (A) of fixed (m, 3) points (A)."""
        evaluate = self.inverse.evaluator(points)
        return lambda latents: -evaluate(latents)


@dataclass(frozen=True)
class InverseReport:
    """How well an inverse field inverts; rms over particles and points, A.

    Parameters
    ----------
    on_gaussians
        of Gamma^-1(Gamma(c)) - c at the Gaussians.
    off_gaussians
        of the same halfway between neighbouring Gaussians, which the field never saw.
    motion
        of Gamma(c) - c: what an inverse that does nothing would err by.
    losses
        of every epoch, A^2.
    """

    on_gaussians: float
    off_gaussians: float
    motion: float
    losses: tuple[float, ...]


def fit_inverse(
    decoder,
    latents: torch.Tensor,
    positions: torch.Tensor,
    extent: float,
    box: int,
    options: InvertOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[InverseField, InverseReport]:
    """Train an inverse field on where the decoder takes the Gaussians.

    The loss is |Gamma^-1(mu_i, Gamma_i(c_j)) - c_j|^2 plus, off the samples, the mean of |u(y + h) - u(y)|^2 /
    |h|^2 times the squared spacing of the Gaussians. The paper asks for smoothness off the samples without a formula;
    this is our reading: places y are Gamma_i(c_j) moved by normal steps of three spacings, so that they surround the
    molecule as the voxels of the mask do, and h is a normal step of one spacing. It asks neighbours to come from
    one direction, and leaves a common translation or slow rotation nearly free.

    Parameters
    ----------
    decoder
        with ``evaluator(points) -> callable(latents)``; frozen.
    latents
        (n, d) of the particles that the inverse is for, on the decoder's device.
    positions
        (m, 3) Gaussians, A.
    extent
        A, size of the box.
    box
        pixels.
    options
        of the fit.
    progress
        called with the epochs done and in all.

    Returns
    -------
    tuple
        the field and its report.

    Raises
    ------
    InputError
        if there are no particles or fewer than two Gaussians.
    """
    options = options or InvertOptions()
    if not len(latents) or len(positions) < 2:
        raise InputError("the inverse field needs particles and at least two Gaussians; check the run")
    latents, positions = latents.detach(), positions.detach()
    device = positions.device
    generator = torch.Generator().manual_seed(options.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        field = InverseField(latents.shape[1], extent, box).to(device)
    with torch.no_grad():
        evaluate = decoder.evaluator(positions)
    spacing = _spacing(positions)
    optimizer = torch.optim.Adam(field.parameters(), lr=options.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, max(1, options.epochs), eta_min=options.learning_rate / 10
    )
    losses = []
    for epoch in range(options.epochs):
        chosen = torch.randperm(len(latents), generator=generator)[: options.particles_per_epoch]
        total = 0.0
        for batch in chosen.split(options.batch_size):
            points = torch.randperm(len(positions), generator=generator)[: options.points_per_batch].to(device)
            z, target = latents[batch.to(device)], positions[points]
            with torch.no_grad():
                deformed = target + evaluate(z)[:, points]
            around = deformed + 3 * spacing * _normal(deformed, generator)
            step = spacing * _normal(deformed, generator)
            inverted = deformed + field.displacements(z, deformed)
            fit = (inverted - target).square().sum(-1).mean()
            change = field.displacements(z, around + step) - field.displacements(z, around)
            rough = (change.square().sum(-1) / step.square().sum(-1).clamp(min=1e-6)).mean() * spacing**2
            optimizer.zero_grad()
            (fit + options.smoothness * rough).backward()
            optimizer.step()
            total += float(fit.detach()) * len(batch)
        schedule.step()
        losses.append(total / len(chosen))
        if progress is not None:
            progress(epoch + 1, options.epochs)
    field.requires_grad_(False)
    return field, report_inverse(field, decoder, latents, positions, tuple(losses), options.seed)


@torch.no_grad()
def report_inverse(
    field: InverseField,
    decoder,
    latents: torch.Tensor,
    positions: torch.Tensor,
    losses: tuple[float, ...] = (),
    seed: int = 0,
    n_particles: int = 256,
) -> InverseReport:
    """Measure the round trip Gamma^-1(Gamma(x)) - x at the Gaussians and halfway between neighbours.

    Parameters
    ----------
    field, decoder, latents, positions
        as in `fit_inverse`.
    losses
        to put into the report.
    seed, n_particles
        of the random particles that it is measured on.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    chosen = torch.randperm(len(latents), generator=generator)[:n_particles].to(positions.device)
    between = (positions + positions[_nearest(positions)[1]]) / 2
    squared, moved = {}, 0.0
    for name, points in {"on": positions, "off": between}.items():
        evaluate, total = decoder.evaluator(points), 0.0
        for batch in chosen.split(8):
            shift = evaluate(latents[batch])
            back = field.displacements(latents[batch], points + shift)
            total += float((shift + back).square().sum(-1).mean(1).sum())
            if name == "on":
                moved += float(shift.square().sum(-1).mean(1).sum())
        squared[name] = total / len(chosen)
    return InverseReport(squared["on"] ** 0.5, squared["off"] ** 0.5, (moved / len(chosen)) ** 0.5, losses)


def save_inverse(path: str | Path, field: InverseField) -> None:
    """Write an inverse field as safetensors, its shape in the header."""
    shape = {"n_latents": field.n_latents, "extent": field.extent, "box": field.box}
    tensors = {name: value.detach().cpu().contiguous() for name, value in field.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"inverse_field": json.dumps(shape)})


def load_inverse(path: str | Path, device: torch.device | str = "cpu") -> InverseField:
    """Read an inverse field that `save_inverse` wrote.

    Raises
    ------
    InputError
        if the file is missing or holds something else.
    """
    if not Path(path).exists():
        raise InputError(f"inverse field {path} does not exist; make it with `dynamight invert`")
    try:
        with safe_open(str(path), framework="pt") as stored:
            field = InverseField(**json.loads(stored.metadata()["inverse_field"]))
            field.load_state_dict({name: stored.get_tensor(name) for name in stored.keys()})
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path} is not an inverse field of this program ({error}); make it with `dynamight invert`"
        ) from error
    return field.requires_grad_(False).to(device)


def _normal(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(like.shape, generator=generator).to(like)


def _nearest(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the (m,) distance (A) and index of each point's nearest other point."""
    tree = cKDTree(positions.cpu().numpy())
    distance, index = tree.query(positions.cpu().numpy(), k=2)
    return torch.from_numpy(distance[:, 1]).to(positions), torch.from_numpy(index[:, 1]).to(positions.device)


def _spacing(positions: torch.Tensor) -> float:
    """Return the mean distance (A) of a point to its nearest other point."""
    return float(_nearest(positions)[0].mean())
