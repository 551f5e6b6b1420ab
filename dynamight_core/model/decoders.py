"""Decoders: latent and position to displacement.

A decoder has two calls: ``displacements(latents, positions)`` gives every particle's displacement of every
point, and it is differentiable in both; ``evaluator(positions)`` returns a function of latents alone for points
that stay, which a decoder may make cheaper.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from roma import rotvec_to_rotmat
from torch import nn

from dynamight_core.model.bodies import RigidBodies, body_shares

# What an output of one moves the rim of a body by, A: outputs are of order one where motions are large.
_UNIT = 10.0
# Standard deviation of where a body's joint is found, A.
_SLIDE = 2.0


def positional_encoding(positions: torch.Tensor, extent: float, n_frequencies: int, shortest: float):
    """Return sines and cosines of positions at geometrically spaced wavelengths.

    Parameters
    ----------
    positions
        (..., 3) A.
    extent
        longest wavelength, A.
    n_frequencies
        wavelengths per axis.
    shortest
        shortest wavelength, A.

    Returns
    -------
    torch.Tensor
        (..., 6 * n_frequencies).
    """
    steps = torch.linspace(0, 1, n_frequencies, device=positions.device)
    wavelengths = extent * (shortest / extent) ** steps
    angles = (positions[..., None] * (2 * torch.pi / wavelengths)).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], -1)


class BasisDecoder(nn.Module):
    """Displacement as a sum of learned fields: delta(z, x) = sum_k w_k(z) phi_k(x).

    The fields phi come from a small network of the encoded position and are evaluated once for a set of points;
    a particle then costs one combination of `n_fields` terms, the coefficients w from a small network of its
    latent.

    Parameters
    ----------
    n_latents
        dimensions of the latent space.
    extent
        A, size of the box; the longest wavelength of the encoding.
    n_fields
        number of basis fields.
    shortest
        A, shortest wavelength of the encoding: the scale below which neighbours move together.
    """

    kind = "basis"

    def __init__(self, n_latents, extent, n_fields=32, hidden=64, n_frequencies=6, shortest=24.0):
        super().__init__()
        self.extent, self.n_frequencies, self.shortest, self.n_fields = extent, n_frequencies, shortest, n_fields
        self.fields = nn.Sequential(
            nn.Linear(6 * n_frequencies + 3, hidden),
            nn.ELU(),
            nn.Linear(hidden, hidden),
            nn.ELU(),
            nn.Linear(hidden, 3 * n_fields),
        )
        self.network = nn.Sequential(nn.Linear(n_latents, hidden), nn.ELU(), nn.Linear(hidden, n_fields, bias=False))
        # Coefficients of the reference conformation, where nothing is displaced.
        self.register_buffer("rest", torch.zeros(n_fields))
        # No motion at the start, but a gradient: the fields are zero, the coefficients are not.
        nn.init.zeros_(self.fields[-1].weight)
        nn.init.zeros_(self.fields[-1].bias)

    def coefficients(self, latents: torch.Tensor) -> torch.Tensor:
        """Return (b, n_fields) coefficients w of (b, d) latents."""
        return self.network(latents) - self.rest

    @torch.no_grad()
    def absorb(self, latents: torch.Tensor) -> None:
        """Follow a reference that moved by the mean displacement of (b, d) latents: those are at rest now."""
        self.rest += self.coefficients(latents).mean(0)

    def basis(self, positions: torch.Tensor) -> torch.Tensor:
        """Return (n_fields, n, 3) basis fields (A) at (n, 3) positions (A)."""
        code = positional_encoding(positions, self.extent, self.n_frequencies, self.shortest)
        # The coordinates themselves: rotations and other linear fields need no wave.
        code = torch.cat([positions * (4 / self.extent), code], -1)
        return self.fields(code).reshape(len(positions), self.n_fields, 3).transpose(0, 1)

    def displacements(self, latents: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return (b, n, 3) displacements (A) of (n, 3) positions (A) under (b, d) latents."""
        return self.evaluator(positions)(latents)

    def evaluator(self, positions: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the map from (b, d) latents to (b, n, 3) displacements of fixed (n, 3) positions."""
        basis = self.basis(positions).reshape(self.n_fields, -1)
        return lambda latents: (self.coefficients(latents) @ basis).reshape(len(latents), -1, 3)


class CoordinateDecoder(nn.Module):
    """The paper's coordinate network: encoded position and latent to displacement.

    Positional encoding with 10 frequencies an axis, wavelengths D/2 (2/D)^(k/9) ..., concatenated with the latent;
    8 layers of 32, ELU, no biases, last layer zero (paper, Methods).

    Parameters
    ----------
    n_latents
        dimensions of the latent space.
    extent
        A, size of the box.
    box
        pixels; the shortest wavelength is two pixels.
    """

    kind = "coordinate"

    def __init__(self, n_latents: int, extent: float, box: int, n_layers: int = 8, hidden: int = 32):
        super().__init__()
        self.extent, self.box, self.n_frequencies = extent, box, 10
        sizes = [6 * self.n_frequencies + n_latents, *[hidden] * (n_layers - 1)]
        layers = []
        for n_in, n_out in pairwise(sizes):
            layers += [nn.Linear(n_in, n_out, bias=False), nn.ELU()]
        layers.append(nn.Linear(hidden, 3, bias=False))
        nn.init.zeros_(layers[-1].weight)
        self.layers = nn.Sequential(*layers)
        # Displacements come out in A, of the order of a pixel for outputs of order one.
        self.unit = extent / box

    def displacements(self, latents: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return (b, n, 3) displacements (A) of (n, 3) positions (A) under (b, d) latents."""
        return self.evaluator(positions)(latents)

    def absorb(self, latents: torch.Tensor) -> None:
        """Leave it to training to follow a reference that moved, as the paper does."""

    def evaluator(self, positions: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the map from (b, d) latents to (b, n, 3) displacements of fixed (n, 3) or (b, n, 3) positions."""
        code = positional_encoding(positions, self.extent, self.n_frequencies, 2 * self.extent / self.box)
        first = self.layers[0].weight
        # The first layer is linear in [code, latent]: its position part is shared by all particles.
        position_part = code @ first[:, : code.shape[-1]].T

        def evaluate(latents: torch.Tensor) -> torch.Tensor:
            hidden = position_part + (latents @ first[:, code.shape[-1] :].T)[:, None]
            return self.layers[1:](hidden) * self.unit

        return evaluate


class BodiesDecoder(nn.Module):
    """Rigid bodies: each turns and shifts, and where bodies meet their motions are blended.

    delta(z, x) = sum_b s_b(x) (T_b(z) T_b(rest)^-1 x - x), s_b being the body's share of the point and T_b(z) the turn
    by the rotation vector w_b(z) about its pivot and the shift by t_b(z), after which it moves along with its parent.
    Both are linear in the latent, so that the latents' Gaussian prior is one of the motions, and the exponential map
    keeps large turns rigid. The largest body stays where it is: its motion is the particle's pose.

    Parameters
    ----------
    n_latents
        dimensions of the latent space.
    extent
        A, size of the box.
    bodies
        of the molecule.
    """

    kind = "bodies"

    def __init__(self, n_latents: int, extent: float, bodies: RigidBodies):
        super().__init__()
        self.extent = extent
        for name, value in vars(bodies).items():
            self.register_buffer(name, torch.as_tensor(value))
        others = torch.arange(len(bodies))
        self.register_buffer("moving", others[others != bodies.largest], persistent=False)
        # Which moving bodies move along with each: itself and what hangs on it.
        parents = bodies.parents.tolist()
        along = torch.eye(len(bodies))
        for body in range(len(bodies)):
            above = parents[body]
            while above >= 0:
                along[above, body] = 1
                above = parents[above]
        moving = self.moving.tolist()
        self.register_buffer("along", along[moving][:, moving], persistent=False)
        # Moving bodies, as places in `moving`, parents before what hangs on them, with the place of each parent that
        # moves.
        order = sorted(range(len(moving)), key=lambda place: -int(self.along[place].sum()))
        self._chain = [(k, moving.index(parents[moving[k]]) if parents[moving[k]] in moving else None) for k in order]
        self.register_buffer("jointed", bodies.parents[moving] >= 0, persistent=False)
        # Latent of the reference conformation, where nothing is displaced.
        self.register_buffer("rest", torch.zeros(n_latents))
        self.motion = nn.Linear(n_latents, 6 * (len(bodies) - 1), bias=False)
        nn.init.zeros_(self.motion.weight)

    def _turns(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return T_b(z) of (b, d) latents as (b, B - 1, 3, 3) rotations R and (b, B - 1, 3) shifts u: x -> R x + u."""
        output = _UNIT * self.motion(latents).reshape(len(latents), -1, 2, 3)
        pivots = self.pivots[self.moving]
        rotations = rotvec_to_rotmat(output[:, :, 0] / self.radii[self.moving, None])
        shifts = output[:, :, 1] + pivots - (rotations @ pivots[..., None])[..., 0]
        turned, shifted = list(rotations.unbind(1)), list(shifts.unbind(1))
        for place, parent in self._chain:
            if parent is not None:
                shifted[place] = (turned[parent] @ shifted[place][..., None])[..., 0] + shifted[parent]
                turned[place] = turned[parent] @ turned[place]
        return torch.stack(turned, 1), torch.stack(shifted, 1)

    def motions(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what moving bodies do from the reference to (b, d) latents.

        Returns
        -------
        tuple
            (b, B - 1, 3, 3) rotations R and (b, B - 1, 3) shifts u (A): a point x of the body goes to R x + u.
        """
        rotations, shifts = self._turns(latents)
        back, offset = self._turns(self.rest[None])
        rotations = rotations @ back.transpose(-1, -2)
        return rotations, shifts - (rotations @ offset[..., None])[..., 0]

    @torch.no_grad()
    def absorb(self, latents: torch.Tensor) -> None:
        """Follow a reference that moved with the mean of (b, d) latents: that is at rest now."""
        self.rest.copy_(latents.mean(0))

    def joint_energy(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the mean over (b, d) latents of minus the log-probability that joints come apart so far.

        A body turns freely about its joint with its parent, the middle of which shifts by about `_SLIDE` only: what is
        seen of a motion at first, in a blurred reference, is a shift of the body's centre, and with a joint that holds,
        it is a turn.
        """
        output = _UNIT * self.motion(latents).reshape(len(latents), -1, 2, 3)
        slides = output[:, self.jointed, 1]
        return 0.5 * slides.square().sum((1, 2)).mean() / _SLIDE**2

    def generators(self, positions: torch.Tensor) -> torch.Tensor:
        """Return (k, n, 3) fields of small motions of moving bodies at (n, 3) positions (A), of about 1 A.

        Three turns, and three shifts where the body has no joint.
        """
        shares = self.shares_of(positions) @ self.along.T
        arms = positions[:, None] - self.pivots[self.moving]
        axes = torch.eye(3).to(positions)
        turns = torch.linalg.cross(axes[:, None, None].expand(-1, *arms.shape), arms.expand(3, *arms.shape))
        turns = turns / self.radii[self.moving, None]
        shifts = axes[:, None, None].expand_as(turns)[:, :, ~self.jointed]
        fields = [turns * shares[..., None], shifts * shares[:, ~self.jointed, None]]
        return torch.cat([part.transpose(1, 2).flatten(0, 1) for part in fields])

    @torch.no_grad()
    def shares_of(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the (n, B - 1) shares that moving bodies have of (n, 3) positions (A).

        They have no gradient: the masks say where joints are, not the Gaussians' drift.
        """
        return body_shares(self.depths, int(self.largest), positions, self.extent)[:, self.moving]

    def displacements(self, latents: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return (b, n, 3) displacements (A) of (n, 3) positions (A) under (b, d) latents."""
        return self.evaluator(positions)(latents)

    def evaluator(self, positions: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the map from (b, d) latents to (b, n, 3) displacements of fixed (n, 3) positions."""
        # A blend of rigid motions is linear in the shares and in the shares times the point.
        shares = self.shares_of(positions)
        places = torch.cat([shares[..., None] * positions[:, None], shares[..., None]], 2).flatten(1)

        def evaluate(latents: torch.Tensor) -> torch.Tensor:
            rotations, shifts = self.motions(latents)
            change = (rotations - torch.eye(3).to(rotations)).transpose(-1, -2)
            return places @ torch.cat([change, shifts[:, :, None]], 2).flatten(1, 2)

        return evaluate
