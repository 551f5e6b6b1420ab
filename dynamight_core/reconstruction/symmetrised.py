"""Maps of symmetric molecules whose motion was learned in one subunit: that subunit, in all symmetric places."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dynamight_core.errors import InputError
from dynamight_core.files import read_map
from dynamight_core.imaging.fourier import resample_volume
from dynamight_core.particles.symmetry import rotate_volume, symmetry_operators
from dynamight_core.run import Run


@dataclass(frozen=True)
class Subunit:
    """The subunit whose motion a run has learned.

    Parameters
    ----------
    operators
        (g, 3, 3) rotations of the molecule's point group.
    mask
        (box, box, box) from 0 to 1, around the subunit.
    """

    operators: NDArray[np.float64]
    mask: NDArray[np.float32]

    @classmethod
    def of(cls, run: Run, box: int) -> "Subunit":
        """Return the subunit of a run, in a box of the same extent.

        Raises
        ------
        InputError
            if the run has no symmetry, or learned the motion of the whole molecule.
        """
        inputs = run.config.inputs
        if inputs.symmetry is None:
            raise InputError(f"--symmetrise needs a run of a symmetric molecule; train {run.path} with --symmetry")
        if inputs.mask is None:
            raise InputError(
                f"--symmetrise copies the subunit in the mask of the training, but {run.path} was trained without one: "
                "all its subunits move already; omit --symmetrise"
            )
        mask = resample_volume(torch.from_numpy(read_map(inputs.mask, "mask")[0]), box).clamp(0, 1)
        return cls(symmetry_operators(inputs.symmetry), mask.numpy().astype(np.float32))

    def copied(self, volume: torch.Tensor) -> torch.Tensor:
        """Return a (box, box, box) map in which the subunit has replaced the others, as the mask weighs it.

        Where masks overlap their maps are averaged; outside all of them the map stays.
        """
        given = volume.cpu().numpy()
        total, weight = np.zeros_like(given), np.zeros_like(given)
        for number, operator in enumerate(self.operators):
            # The first is the identity, which interpolates nothing.
            mask = self.mask if number == 0 else rotate_volume(self.mask, operator, 1).clip(0, 1)
            total += mask * (given if number == 0 else rotate_volume(given, operator, 3))
            weight += mask
        rest = (1 - weight).clip(0)
        return torch.from_numpy((total + rest * given) / (weight + rest))
