"""Simulated images of the hinge as a reconstruction takes them, without a run."""

import mrcfile
import numpy as np
import torch

from dynamight_core.imaging.backprojection import ParticleData, accumulate, fourier_denominator, solve
from dynamight_core.imaging.ctf import evaluate_ctf
from dynamight_core.imaging.fourier import fourier_to_image, image_to_fourier, translation_phases
from dynamight_core.imaging.poses import rotation_matrices
from dynamight_core.options import SimulateOptions
from dynamight_core.simulate.dataset import simulate
from dynamight_core.simulate.measures import mean_fsc
from dynamight_core.simulate.truth import load_truth

BOX, PIXEL = 32, 6.0


class HingeImages:
    """Images of the hinge, 32 pixels of 6 A, with their truth; `folder` gets the files."""

    def __init__(self, folder, **options):
        files = simulate(SimulateOptions(box=BOX, pixel_size=PIXEL, seed=4, **options), folder)
        self.truth = load_truth(files.truth)
        self.raw = torch.from_numpy(np.array(mrcfile.read(files.stack)))
        shifts = translation_phases(self.truth.origins / PIXEL, BOX)
        self.centred = fourier_to_image(image_to_fourier(self.raw) * shifts, BOX)
        self.transfer = evaluate_ctf(self.truth.ctf, BOX, PIXEL)
        self.matrices = rotation_matrices(self.truth.euler)
        if (self.truth.ctf.magnification != torch.eye(2)).any():
            self.matrices = self.truth.ctf.magnification.transpose(1, 2) @ self.matrices[:, :2]
        self.everything = torch.arange(len(self.truth))

    def particles(self, weights=None, device="cpu"):
        images, ctf = self.centred.__getitem__, self.transfer.__getitem__
        return ParticleData(images, ctf, self.matrices, BOX, PIXEL, weights, device)

    def sums(self, indices=None, weights=None, device="cpu", **options):
        indices = self.everything if indices is None else indices
        return accumulate(self.particles(weights, device), indices, **options)

    def mean_fsc(self, volume, label, angle=0.0):
        return mean_fsc(volume, self.truth.true_map(angle), self.truth.domain_mask(label))


def wbp(sums, regularisation=0.3):
    return solve(sums.numerator, fourier_denominator(sums.kernel), regularisation)


def noise(box, seed):
    """Return a volume of white noise."""
    return torch.randn(box, box, box, generator=torch.Generator().manual_seed(seed))
