"""The atomic model of a run: read, placed in the consensus map, checked, and converted to Gaussians."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dynamight_core.errors import InputError
from dynamight_core.model.alignment import Alignment, align
from dynamight_core.model.atomic import CoarseModel, coarse_grain, write_moved
from dynamight_core.model.gaussians import GaussianModel
from dynamight_core.model.initialise import MolecularRegion, fit_scale
from dynamight_core.options import InputOptions, TrainOptions
from dynamight_core.particles.metadata import Particles
from dynamight_core.structures import ORIGIN_NAMES, zero_of_coordinates

# Number of Gaussians of a molecule, and fraction of them outside the box.
_MIN_GAUSSIANS, _MAX_OUTSIDE = 50, 0.1


@dataclass(frozen=True)
class AtomicModel:
    """An atomic model in the frame of the consensus map.

    Parameters
    ----------
    coarse
        its Gaussians; the origin is the centre of the box.
    alignment
        of the model and the map before any fit.
    record
        for the run's config.yaml: file, checksum, origin, and the transform of --fit.
    """

    coarse: CoarseModel
    alignment: Alignment
    record: dict

    def sentences(self) -> list[str]:
        """Return what the user should know about it."""
        coarse = self.coarse
        fitted = self.record["fit"]
        sentences = [
            f"{self.record['file']}: {len(coarse.atom_numbers)} atoms became {len(coarse)} Gaussians; coordinate "
            f"origin: {ORIGIN_NAMES[self.record['origin']]} (--origin)",
            *coarse.notes,
            self.alignment.describe(),
        ]
        if fitted is not None:
            sentences.append(
                f"--fit rotated the atomic model by {fitted['angle']:.1f} degrees and moved its Gaussians by "
                f"{fitted['moved']:.1f} A rms; its correlation with the map changed from "
                f"{self.alignment.correlation:.2f} to {self.alignment.fitted:.2f}"
            )
        return sentences

    def write_fitted(self, path: Path) -> None:
        """Write the model as moved by --fit, in the coordinates of the file; do nothing without a fit."""
        fit = self.record["fit"]
        if fit is not None:
            write_moved(self.record["file"], np.array(fit["rotation"]), np.array(fit["shift"]), path)

    def gaussians(self, volume: torch.Tensor, pixel_size: float, generator: torch.Generator) -> GaussianModel:
        """Return Gaussians with the model's positions, amplitudes and edges, and scale and width fitted to a map.

        Parameters
        ----------
        volume
            (box, box, box), filtered, and zero in the solvent.
        pixel_size
            A.
        generator
            of the composition weights.
        """
        coarse = self.coarse
        positions = torch.from_numpy(coarse.positions.astype(np.float32))
        model = GaussianModel(positions, pixel_size, 1.0, generator=generator, edges=torch.from_numpy(coarse.edges))
        with torch.no_grad():
            model.relative_amplitudes.copy_(torch.from_numpy(coarse.amplitudes / coarse.amplitudes.mean()))
        return fit_scale(model, volume, pixel_size)


def read_atomic_model(
    inputs: InputOptions, options: TrainOptions, particles: Particles, volume: torch.Tensor, region: MolecularRegion
) -> AtomicModel | None:
    """Return the atomic model of `--atomic-model`, checked against the consensus map and fitted by `--fit`; or None.

    Parameters
    ----------
    inputs, options
        of the training.
    particles
        with the box of the map.
    volume, region
        consensus map and the molecule in it.

    Raises
    ------
    InputError
        if the model cannot be used, or is not fitted to the map.
    """
    if inputs.atomic_model is None:
        return None
    path = inputs.atomic_model
    if options.width_classes > 1:
        raise InputError(
            f"--width-classes is {options.width_classes}, but the Gaussians of --atomic-model have the amplitudes of "
            "their atoms and one width; set it to 1"
        )
    coarse = coarse_grain(path)
    if len(coarse) < _MIN_GAUSSIANS:
        raise InputError(f"model {path} has only {len(coarse)} Gaussians; use a model of the whole molecule")
    origin, offset = zero_of_coordinates(
        coarse.positions, inputs.origin, inputs.map, particles.box, particles.pixel_size
    )
    coarse = coarse.moved(np.eye(3), -offset)
    extent = particles.box * particles.pixel_size
    if (np.abs(coarse.positions) > extent / 2).any(1).mean() > _MAX_OUTSIDE:
        raise InputError(
            f"the atomic model {path} lies outside the box of {extent:.0f} A, with its centre "
            f"{np.linalg.norm(coarse.positions.mean(0)):.0f} A from the box's; fit it to {inputs.map}, or set --origin"
        )
    alignment = align(coarse.positions, coarse.amplitudes, volume, region.mask, particles.pixel_size, options.seed)
    fit = None
    if inputs.fit:
        alignment.refuse_fit(path, inputs.map)
        coarse = coarse.moved(alignment.rotation, alignment.shift)
        # In the coordinates of the file, so that the file itself can be moved.
        shift = alignment.shift + offset - alignment.rotation @ offset
        fit = {
            "rotation": alignment.rotation.tolist(),
            "shift": shift.tolist(),
            "angle": alignment.angle,
            "moved": alignment.moved,
        }
    else:
        alignment.refuse_misfit(path, inputs.map)
    record = {
        "file": str(path),
        "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        "origin": origin,
        "gaussians": len(coarse),
        "correlation": alignment.fitted if fit else alignment.correlation,
        "fit": fit,
    }
    return AtomicModel(coarse, alignment, record)
