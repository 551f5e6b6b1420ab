"""The decoder of rigid bodies, given as masks."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Self

import torch
from torch import nn

from dynamight_core.errors import InputError
from dynamight_core.imaging.geometry import Evaluator, LinearEvaluator, interpolate
from dynamight_core.model.bodies import RigidBodies, divided
from dynamight_core.model.decoders.base import Decoder, DecoderInputs
from dynamight_core.model.regions import Regions
from dynamight_core.options import InputOptions, TrainOptions

# What an output of one moves the rim of a body by, A: outputs are of order one where motions are large.
_UNIT = 10.0
# What a parameter of one moves a pivot by, A: pivots must be found before slides are forgotten.
_PIVOT_UNIT = 50.0
# Standard deviation of where a body's joint is found in a particle, A.
_SLIDE = 2.0


class BodiesDecoder(Decoder):
    """Rigid bodies: each rotates and shifts, and where bodies meet their motions are blended.

    delta(z, x) = sum_b s_b(x) (T_b(z) T_b(rest)^-1 x - x), s_b being the membership of the point in the body and T_b(z)
    the rotation R_b(z) about its pivot and the shift by t_b(z), after which it moves along with its parent. R_b(z) is
    the rotation nearest to the matrix B_b + A_b(z). A_b and t_b are linear in the latent, so that the latents' Gaussian
    prior is one of the motions where they are small; a full circle of rotations belongs to a circle of latents, which
    rotation vectors linear in the latent would cut open. The largest body stays where it is: its motion is the
    particle's pose.

    Bodies do not always rotate about the place where they meet: pivots start in the middles of the joints and are
    learned.

    Distances inside bodies stay and those between them must change, so that distances are not restrained.

    Parameters
    ----------
    n_latents
        dimensions d of the latent space.
    extent
        A, width of the box.
    bodies
        of the molecule.
    """

    restrains_distances = False
    has_sizes = False
    has_prior = True
    moves_reference = True

    depths: torch.Tensor
    largest: torch.Tensor
    pivots: torch.Tensor
    parents: torch.Tensor
    centres: torch.Tensor
    radii: torch.Tensor
    shares: torch.Tensor

    def __init__(self, n_latents: int, extent: float, bodies: RigidBodies):
        super().__init__()
        self.extent = extent
        for name, value in vars(bodies).items():
            self.register_buffer(name, torch.as_tensor(value))
        others = torch.arange(len(bodies))
        self.moving = nn.Buffer(others[others != bodies.largest], persistent=False)
        # Which moving bodies move along with each: itself and what hangs on it.
        parents = bodies.parents.tolist()
        along = torch.eye(len(bodies))
        for body in range(len(bodies)):
            above = parents[body]
            while above >= 0:
                along[above, body] = 1
                above = parents[above]
        moving = self.moving.tolist()
        self.along = nn.Buffer(along[moving][:, moving], persistent=False)
        # Moving bodies, as indices into `moving`, parents before what hangs on them, with the index of each parent that
        # moves.
        order = sorted(range(len(moving)), key=lambda index: -int(self.along[index].sum()))
        self._chain = [(k, moving.index(parents[moving[k]]) if parents[moving[k]] in moving else None) for k in order]
        self.jointed = nn.Buffer(bodies.parents[moving] >= 0, persistent=False)
        # Latent of the reference conformation, where nothing is displaced.
        self.rest = nn.Buffer(torch.zeros(n_latents))
        # From each moving body in the reference to its place when its mask was made, x -> R x + u.
        self.mask_rotations = nn.Buffer(torch.eye(3).repeat(len(bodies) - 1, 1, 1))
        self.mask_shifts = nn.Buffer(torch.zeros(len(bodies) - 1, 3))
        # A and t of each moving body, and B.
        self.motion = nn.Linear(n_latents, 12 * (len(bodies) - 1), bias=False)
        nn.init.zeros_(self.motion.weight)
        self.base = nn.Parameter(torch.eye(3).repeat(len(bodies) - 1, 1, 1))
        # From the middle of the joint to what the body rotates about, in units of `_PIVOT_UNIT`.
        self.offsets = nn.Parameter(torch.zeros(len(bodies) - 1, 3))

    @classmethod
    def check(cls, inputs: InputOptions, options: TrainOptions) -> None:
        """Refuse options without masks of bodies, and what contradicts bodies.

        Raises
        ------
        InputError
            with what to leave out.
        """
        super().check(inputs, options)
        if not inputs.bodies:
            raise InputError("--decoder is 'bodies' but there is no mask of any; give --bodies, or another decoder")
        if inputs.mask:
            raise InputError("--bodies says already what may move; leave --mask out")
        if options.regularisation == "dynamic":
            raise InputError("--regularisation dynamic weights distances, which --bodies keeps; leave it out")

    @classmethod
    def build(cls, inputs: DecoderInputs) -> Self:
        """Return the decoder of a molecule's bodies, all at rest."""
        if inputs.bodies is None:
            raise ValueError("a decoder of rigid bodies is built from bodies")
        return cls(inputs.n_latents, inputs.extent, inputs.bodies)

    @classmethod
    def saved_bodies(cls, state: Mapping[str, torch.Tensor]) -> RigidBodies:
        """Return the bodies that a decoder's buffers hold."""
        tensors = {field.name: state[field.name] for field in fields(RigidBodies) if field.name != "largest"}
        return RigidBodies(largest=int(state["largest"]), **tensors)

    def built_from(self, bodies: RigidBodies | None) -> bool:
        """Return whether these are the bodies of this decoder."""
        return bodies is not None and torch.equal(self.depths, bodies.depths)

    def _transforms(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return T_b(z) of (b, d) latents as (b, B - 1, 3, 3) rotations R and (b, B - 1, 3) shifts u: x -> R x + u."""
        from roma import special_procrustes  # imports the compiler of torch: only where bodies are decoded

        output = _UNIT * self.motion(latents).reshape(len(latents), -1, 4, 3)
        pivots = self.pivots[self.moving] + _PIVOT_UNIT * self.offsets
        rotations = special_procrustes(self.base + output[:, :, :3] / self.radii[self.moving, None, None])
        shifts = output[:, :, 3] + pivots - (rotations @ pivots[..., None])[..., 0]
        # Of each moving body by itself, then after its parent.
        rotated, shifted = list(rotations.unbind(1)), list(shifts.unbind(1))
        for index, parent in self._chain:
            if parent is not None:
                shifted[index] = (rotated[parent] @ shifted[index][..., None])[..., 0] + shifted[parent]
                rotated[index] = rotated[parent] @ rotated[index]
        return torch.stack(rotated, 1), torch.stack(shifted, 1)

    def motions(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what moving bodies do from the reference to (b, d) latents.

        Returns
        -------
        tuple
            (b, B - 1, 3, 3) rotations R and (b, B - 1, 3) shifts u (A): a point x of the body goes to R x + u.
        """
        rotations, shifts = self._transforms(latents)
        back, offset = self._transforms(self.rest[None])
        rotations = rotations @ back.transpose(-1, -2)
        return rotations, shifts - (rotations @ offset[..., None])[..., 0]

    @torch.no_grad()
    def absorb(self, latents: torch.Tensor) -> None:
        """Follow a reference that moved with the mean of (b, d) latents: that is at rest now.

        Masks stay where they are, and bodies leave them.
        """
        (rotations,), (shifts,) = self.motions(latents.mean(0, keepdim=True))
        back = self.mask_rotations @ rotations.transpose(-1, -2)
        self.mask_shifts.copy_(self.mask_shifts - (back @ shifts[..., None])[..., 0])
        self.mask_rotations.copy_(back)
        self.rest.copy_(latents.mean(0))

    def prior_energy(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the mean over (b, d) latents of minus the log-probability that joints come apart so far.

        A body rotates freely about its pivot, which shifts by about `_SLIDE` only from particle to particle. In a
        blurred reference a motion shows at first as a shift of the body's centre; with a joint that holds, that is a
        rotation.
        """
        output = _UNIT * self.motion(latents).reshape(len(latents), -1, 4, 3)
        slides = output[:, self.jointed, 3]
        energy: torch.Tensor = 0.5 * slides.square().sum((1, 2)).mean() / _SLIDE**2
        return energy

    def linear_basis(self, positions: torch.Tensor) -> torch.Tensor:
        """Return (k, n, 3) fields of small motions of moving bodies at (n, 3) positions (A), of about 1 A.

        Three rotations and three shifts: of a jointed body, shifts are those of rotations about another pivot.
        """
        weights = self.memberships(positions) @ self.along.T
        arms = positions[:, None] - self.pivots[self.moving]
        axes = torch.eye(3).to(positions)
        rotations = torch.linalg.cross(axes[:, None, None].expand(-1, *arms.shape), arms.expand(3, *arms.shape))
        rotations = rotations / self.radii[self.moving, None]
        shifts = axes[:, None, None].expand_as(rotations)
        motions = [motion * weights[..., None] for motion in (rotations, shifts)]
        return torch.cat([part.transpose(1, 2).flatten(0, 1) for part in motions])

    def regions(self, positions: torch.Tensor) -> Regions:
        """Return the bodies as regions of (n, 3) positions (A)."""
        moving = self.memberships(positions)
        weights = torch.cat([1 - moving.sum(1, keepdim=True), moving], 1)
        centres = weights.T @ positions / weights.sum(0).clamp(min=1e-6)[:, None]
        return Regions(positions, centres, weights)

    @torch.no_grad()
    def memberships(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the (n, B - 1) memberships of (n, 3) positions (A) in the moving bodies.

        They have no gradient: the masks say where joints are, not the Gaussians' drift. Each mask is read where its
        body was when the mask was made: a reference that moved has left it.
        """
        depths = interpolate(self.depths, positions, self.extent)
        for body, rotation, shift in zip(self.moving, self.mask_rotations, self.mask_shifts, strict=True):
            depths[:, body] = interpolate(self.depths[body][None], positions @ rotation.T + shift, self.extent)[:, 0]
        return divided(depths, int(self.largest))[:, self.moving]

    def evaluator(self, positions: torch.Tensor) -> Evaluator:
        """Return the map from (b, d) latents to (b, n, 3) displacements of fixed (n, 3) positions."""
        # A blend of rigid motions is linear in the memberships and in the memberships times the point.
        weights = self.memberships(positions)
        weighted = torch.cat([weights[..., None] * positions[:, None], weights[..., None]], 2).flatten(1)
        axes = torch.eye(3).to(positions)
        basis = torch.einsum("nf,cd->fcnd", weighted, axes).flatten(0, 1)

        def coefficients(latents: torch.Tensor) -> torch.Tensor:
            rotations, shifts = self.motions(latents)
            change = (rotations - axes).transpose(-1, -2)
            return torch.cat([change, shifts[:, :, None]], 2).flatten(1)

        return LinearEvaluator(coefficients, basis)
