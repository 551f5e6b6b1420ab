"""Options of the inference for particles that trained nothing."""

from dataclasses import dataclass

from dynamight_core.options.common import device, seed, threads
from dynamight_core.options.declare import Checked, basic, option


@dataclass
class InferOptions(Checked):
    """How new particles are read, and where their latents are inferred."""

    project: str | None = basic(
        None,
        "Folder that image paths of the particles are relative to. Found automatically if omitted.",
        group="Input",
        metavar="FOLDER",
    )
    passthrough: list[str] = option(
        [], "Passthrough file of a .cs file; repeat for more. Found beside the .cs file if omitted.", metavar="FILE"
    )
    tomograms: str | None = option(
        None, "Tomograms file of 2D stacks of tilt series. Found beside the particles if omitted.", metavar="FILE"
    )
    premultiplied: bool | None = option(
        None, "Images were premultiplied by the CTF. Read from the STAR file if omitted.", group="Images"
    )
    invert_contrast: bool | None = basic(
        None, "Invert the contrast of the images (particles are dark). As in the training if omitted."
    )
    seed: int = seed("Random seed for half-sets, where the file has none.")
    device: str = device()
    threads: int | None = threads()
