"""Options of the stages that make maps: invert and reconstruct."""

from dataclasses import dataclass

from dynamight_core.options.common import device, seed, shrink, threads
from dynamight_core.options.declare import Checked, option

METHODS = {"auto": "automatic", "wbp": "weighted backprojection", "cg": "least squares"}


@dataclass
class InvertOptions(Checked):
    """How the inverse deformation network is trained."""

    epochs: int = option(
        200,
        "Number of epochs of the inverse deformation network.",
        label="Epochs of the inverse network",
        level="basic",
        at_least=1,
    )
    particles_per_epoch: int = option(256, "Random particles in each epoch.", at_least=1)
    points_per_batch: int = option(256, "Random Gaussians in each step.", at_least=1)
    batch_size: int = option(32, "Number of particles per step.", level="basic", at_least=1)
    learning_rate: float = option(
        1e-2, "Initial learning rate (Adam); it decreases to a tenth along a half cosine.", above=0
    )
    smoothness: float = option(0.1, "Weight of the smoothness term between the samples.", at_least=0)
    seed: int = seed(label="")
    device: str = device()
    threads: int | None = threads()


@dataclass
class ReconstructOptions(Checked):
    """How maps are reconstructed."""

    method: str = option(
        "auto",
        "Method: wbp (weighted backprojection), cg (least squares), or auto (cg if viewing directions are missing).",
        more="Weighted backprojection divides the sum of all images by its response to a map without motion; it is "
        "fast. Least squares finds the map that explains the images best, by conjugate gradients. It is several times "
        "slower, and better where viewing directions are missing.",
        label="Method",
        level="basic",
        choices=METHODS,
    )
    through_inverse: bool = option(
        False,
        "Use the inverse deformation network that dynamight invert trains (paper).",
        more="The default is exact and needs no network. The summary reports the error of the inverse.",
        label="Use an inverse deformation network (paper)?",
        group="Motion",
        level="paper",
    )
    shrink: bool = shrink()
    error_weights: bool = option(
        False,
        "Down-weight high frequencies of particles with an uncertain deformation (dynMotionError).",
        label="Weight particles by the uncertainty of their deformation?",
        group="Motion",
    )
    conformation: str = option(
        "reference",
        "Frame of the map: reference (the consensus), particle:ROW of particles.star, or latent:NUMBERS.",
        more="Rows count from 1. A latent is of half 1's decoder, numbers separated by commas. Only the reference is "
        "available if no motion is used.",
        group="Motion",
    )
    mask: str | None = option(
        None, "Soft mask for the FSC (.mrc, 0 to 1). Made from the map if omitted.", level="basic", metavar="FILE"
    )
    regions: list[str] = option(
        [], "Mask of a region whose FSC is also calculated; repeat for more regions.", metavar="FILE"
    )
    region_radius: float = option(
        10.0,
        "Voxels within this distance of the Gaussians move, with a soft edge of the same width.",
        more="Solvent beyond it keeps its noise unchanged, so that half-maps stay unmasked.",
        label="Distance from Gaussians that moves",
        unit="A",
        group="Motion",
        at_least=1e-3,
    )
    regularisation: float | None = option(
        None,
        "Floor of the denominator, relative to its mean in the shell. From the half-maps' signal-to-noise if omitted.",
        label="Regularisation",
        group="Map",
        at_least=0,
    )
    steps: int = option(
        8,
        "Maximum number of least-squares steps; stops earlier when held-out images no longer improve.",
        label="Least-squares steps",
        group="Map",
        at_least=0,
    )
    b_factor: float | None = option(
        None,
        "B-factor of the sharpened map; negative sharpens. Estimated from the map if omitted.",
        label="B-factor",
        unit="A^2",
        group="Map",
        level="basic",
    )
    local_resolution: bool = option(
        False, "Also write a local-resolution map.", label="Local resolution?", level="basic"
    )
    rigid: bool = option(
        True,
        "Also reconstruct without deformation, by the same method and mask, into RUN/reconstruction/rigid.",
        label="Also reconstruct without deformation?",
        level="basic",
    )
    batch_size: int = option(
        32,
        "Number of particles per step; lower it if memory runs out.",
        label="Batch size",
        group="Map",
        level="basic",
        at_least=1,
    )
    seed: int = seed("Random seed for the phases in the FSC and the held-out Fourier pixels.")
    device: str = device()
    threads: int | None = threads()
