"""Options of the stages that make maps: invert and reconstruct."""

from dataclasses import dataclass
from typing import Any

from dynamight_core.errors import InputError
from dynamight_core.options.common import batch_size, device, origin, seed, shrink, threads
from dynamight_core.options.declare import Checked, basic, option, paper
from dynamight_core.options.presets import FOLLOW, LABELS


def _preset(label: str = "") -> Any:
    """Declare the preset of a stage that follows its run."""
    return basic(
        FOLLOW,
        "Named set of options: run (the preset of the run), default, or paper (the published method).",
        more="Options that you set override it.",
        label=label,
        choices={FOLLOW: "preset of the run"} | LABELS,
    )


@dataclass
class InvertOptions(Checked):
    """How the inverse deformation network is trained."""

    preset: str = _preset()
    epochs: int = basic(
        200, "Number of epochs of the inverse deformation network.", label="Epochs of the inverse network", at_least=1
    )
    layers: int = paper(6, "Layers of the network.", at_least=2)
    width: int = paper(32, "Neurons in a layer of the network.", at_least=1)
    box_units: bool = paper(False, "Let the network count in widths of the box, as in the published program.", label="")
    particles_per_epoch: int = option(256, "Random particles in each epoch; 0 uses all.", at_least=0)
    points_per_batch: int = option(256, "Random Gaussians in each step; 0 uses all.", at_least=0)
    batch_size: int = basic(32, "Number of particles per step.", at_least=1)
    learning_rate: float = option(
        1e-2, "Initial learning rate (Adam); it decreases to a tenth along a half cosine.", above=0
    )
    weight_decay: float = paper(0.0, "Weight decay (Adam).", at_least=0)
    smoothness: float = option(0.1, "Weight of the smoothness term between the samples.", at_least=0)
    seed: int = seed(label="")
    device: str = device()
    threads: int | None = threads()


@dataclass
class ReconstructOptions(Checked):
    """How maps are reconstructed."""

    preset: str = _preset("Preset")
    method: str = basic(
        "auto",
        "Method: wbp (weighted backprojection), cg (least squares), or auto (cg if views are missing or very uneven).",
        more="Weighted backprojection divides the sum of all images by its response to a map without motion; it is "
        "fast. Least squares finds the map that explains the images best, by conjugate gradients. It is several times "
        "slower, and better where viewing directions are missing or some have many more views than others.",
        label="Method",
        choices={"auto": "automatic", "wbp": "weighted backprojection", "cg": "least squares"},
    )
    through_inverse: bool = paper(
        False,
        "Use the inverse deformation network that dynamight invert trains (paper).",
        more="The default is exact and needs no network. The summary reports the error of the inverse.",
        label="Use an inverse deformation network (paper)?",
        group="Motion",
    )
    modes: bool = paper(
        True,
        "Replace the deformations by a few modes; otherwise evaluate the network for each particle (paper).",
        more="The network is then evaluated on every second voxel and interpolated.",
        label="Replace deformations by modes?",
    )
    shrink: bool = shrink()
    choose_density: bool = option(
        True,
        "Use the corrected density only where it agrees with the other half-set better than the rigid one.",
        more="Elsewhere the map has the rigid density, or the density of particles near its conformation. With this "
        "option off, motion is corrected everywhere.",
        label="Choose the density in each region?",
        group="Motion",
    )
    error_weights: bool = option(
        False,
        "Down-weight high frequencies of particles with an uncertain deformation (dynMotionError).",
        label="Weight particles by the uncertainty of their deformation?",
    )
    conformation: str = option(
        "auto",
        "Frame of the map: auto, reference (the consensus), particle:ROW of particles.star, motions:NUMBERS or "
        "latent:NUMBERS.",
        more="auto is the consensus frame if many particles are near it or masks are given, else the densest "
        "conformation. Rows count from 1. Motions are coordinates (A rms), a latent is of half 1's decoder; separate "
        "numbers by commas. Only the reference is available if no motion is used.",
    )
    mask: str | None = basic(
        None, "Soft mask for the FSC (.mrc, 0 to 1). Made from the map if omitted.", metavar="FILE", group="Options"
    )
    regions: list[str] = option(
        [], "Mask of a region whose FSC is also calculated; repeat for more regions.", metavar="FILE"
    )
    symmetrise: bool = option(
        False,
        "Copy the masked subunit of a run with --symmetry and --mask to all symmetric places of the maps.",
        more="Without it, the motion of this subunit alone is corrected.",
    )
    models: list[str] = option(
        [],
        "Atomic model to compare the maps with by FSC, in the mask and in each region; repeat for more models.",
        more="It belongs in the consensus frame, which the maps then keep.",
        metavar="FILE",
        group="Atomic model",
    )
    origin: str = origin()
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
        at_least=0,
    )
    b_factor: float | None = basic(
        None,
        "B-factor of the sharpened map; negative sharpens. Estimated from the map if omitted.",
        label="B-factor",
        unit="A^2",
    )
    local_resolution: bool = basic(
        False, "Also write a local-resolution map.", label="Local resolution?", group="Options"
    )
    rigid: bool = basic(
        True,
        "Also reconstruct without deformation, by the same method and mask, into RUN/reconstruction/rigid.",
        label="Also reconstruct without deformation?",
    )
    controls: bool = basic(
        True,
        "Also run the controls shuffled-latents and held-out, with up to 5,000 particles of each half-set.",
        more="They take up to a few minutes, however large the set is. The conclusion of the run uses them.",
        label="Also run controls?",
    )
    batch_size: int = batch_size(32, group="Map")
    seed: int = seed("Random seed for the phases in the FSC and the held-out Fourier pixels.")
    device: str = device()
    threads: int | None = threads()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.modes and (self.shrink or self.conformation != "reference" or self.method != "wbp"):
            raise InputError(
                "--no-modes evaluates the network for each particle; set --no-shrink, --conformation reference and "
                "--method wbp as well, or omit it"
            )
