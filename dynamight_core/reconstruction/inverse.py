"""The paper's inverse deformation field, and its approximation of the forward field.

A coordinate network with 6 layers learns (mu_i, Gamma_i(c_j)) -> c_j for all particles i and Gaussians j. Weighted
backprojection needs the forward field at voxels, for which the published program uses Gamma(x) ~ 2x - Gamma^-1(x)
(`ForwardFromInverse`).
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
from dynamight_core.imaging.geometry import Field
from dynamight_core.model.decoders.coordinate import CoordinateDecoder
from dynamight_core.options import InvertOptions


class InverseField(nn.Module):
    """u(z, y) = Gamma_z^-1(y) - y, a coordinate network, initialised to zero.

    Parameters
    ----------
    n_latents
        dimensions of the latent space.
    extent
        A, size of the box.
    box
        pixels; the shortest wavelength of the encoding is two pixels.
    layers, width
        linear layers (6 in the paper) and neurons in each.
    box_units
        whether it displaces in widths of the box.
    """

    def __init__(
        self, n_latents: int, extent: float, box: int, layers: int = 6, width: int = 32, box_units: bool = False
    ):
        super().__init__()
        self.n_latents, self.extent, self.box = n_latents, extent, box
        self.layers, self.width, self.box_units = layers, width, box_units
        self.network = CoordinateDecoder(n_latents, extent, box, layers, width, extent if box_units else None)

    def evaluator(self, points: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the function from (b, d) latents to (b, m, 3) displacements (A) of (m, 3) or (b, m, 3) points (A)."""
        return self.network.evaluator(points)

    def displacements(self, latents: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """Return (b, m, 3) displacements u (A) of (m, 3) or (b, m, 3) points (A) for (b, d) latents."""
        return self.evaluator(points)(latents)


class ForwardFromInverse:
    """The forward displacement Gamma(x) - x ~ x - Gamma^-1(x), a field for `accumulate`.

    Parameters
    ----------
    inverse
        for the same latents.
    """

    def __init__(self, inverse: InverseField):
        self.inverse = inverse

    def evaluator(self, points: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the function from (b, d) latents to (b, m, 3) displacements (A) of fixed (m, 3) points (A)."""
        evaluate = self.inverse.evaluator(points)
        return lambda latents: -evaluate(latents)


@dataclass(frozen=True)
class InverseReport:
    """The error of an inverse field, rms over particles and points, A.

    Parameters
    ----------
    on_gaussians
        of Gamma^-1(Gamma(c)) - c at the Gaussians.
    off_gaussians
        the same half-way between neighbouring Gaussians, where the field was not trained.
    motion
        of Gamma(c) - c: the error of an inverse that does nothing.
    losses
        of every epoch, A^2.
    """

    on_gaussians: float
    off_gaussians: float
    motion: float
    losses: tuple[float, ...]


def fit_inverse(
    decoder: Field,
    latents: torch.Tensor,
    positions: torch.Tensor,
    extent: float,
    box: int,
    options: InvertOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[InverseField, InverseReport]:
    """Train an inverse field on deformed Gaussians.

    The loss is |Gamma^-1(mu_i, Gamma_i(c_j)) - c_j|^2 plus, off the samples, the mean of |u(y + h) - u(y)|^2 / |h|^2
    times the squared spacing of the Gaussians. The paper gives no formula for this smoothness term; this one is ours.
    Points y are Gamma_i(c_j) moved by normal steps of three spacings, so that they surround the molecule, and h is a
    normal step of one spacing. A common translation or slow rotation costs almost nothing.

    Parameters
    ----------
    decoder
        frozen.
    latents
        (n, d) of the particles, on the decoder's device.
    positions
        (m, 3) Gaussians, A.
    extent
        A, size of the box.
    box
        pixels.
    options
        of the fit.
    progress
        called with the number of epochs done and of all epochs.

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
        sizes = options.layers, options.width, options.box_units
        field = InverseField(latents.shape[1], extent, box, *sizes).to(device)
    with torch.no_grad():
        evaluate = decoder.evaluator(positions)
    spacing = float(_nearest(positions)[0].mean())
    optimizer = torch.optim.Adam(field.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, max(1, options.epochs), eta_min=options.learning_rate / 10
    )
    losses = []
    for epoch in range(options.epochs):
        chosen = torch.randperm(len(latents), generator=generator)[: options.particles_per_epoch or None]
        total = 0.0
        for batch in chosen.split(options.batch_size):
            points = torch.randperm(len(positions), generator=generator)[: options.points_per_batch or None].to(device)
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
    decoder: Field,
    latents: torch.Tensor,
    positions: torch.Tensor,
    losses: tuple[float, ...] = (),
    seed: int = 0,
    n_particles: int = 256,
) -> InverseReport:
    """Measure the round trip Gamma^-1(Gamma(x)) - x at the Gaussians and half-way between neighbours.

    Parameters
    ----------
    field, decoder, latents, positions
        as in `fit_inverse`.
    losses
        for the report.
    seed, n_particles
        of the random choice of particles.
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
    """Write an inverse field as safetensors, with its shape in the header."""
    shape = {name: getattr(field, name) for name in ("n_latents", "extent", "box", "layers", "width", "box_units")}
    tensors = {name: value.detach().cpu().contiguous() for name, value in field.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"inverse_field": json.dumps(shape)})


def load_inverse(path: str | Path, device: torch.device | str = "cpu") -> InverseField:
    """Read an inverse field written by `save_inverse`.

    Raises
    ------
    InputError
        if the file is missing or not an inverse field.
    """
    if not Path(path).exists():
        raise InputError(f"inverse field {path} does not exist; run `dynamight invert`")
    try:
        with safe_open(str(path), framework="pt") as stored:
            field = InverseField(**json.loads(stored.metadata()["inverse_field"]))
            field.load_state_dict({name: stored.get_tensor(name) for name in stored.keys()})
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is not an inverse field ({error}); run `dynamight invert`") from error
    return field.requires_grad_(False).to(device)


def _normal(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(like.shape, generator=generator).to(like)


def _nearest(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the (m,) distance (A) and index of the nearest neighbour of each point."""
    points = positions.cpu().numpy()
    distance, index = cKDTree(points).query(points, k=2)
    return torch.from_numpy(distance[:, 1]).to(positions), torch.from_numpy(index[:, 1]).to(positions.device)
