"""Protocols that Scipion offers for the engine's stages."""

from .protocol_deformations import DynamightProtDeformations
from .protocol_displace_model import DynamightProtDisplaceModel
from .protocol_reconstruct import DynamightProtReconstruct
from .protocol_select import DynamightProtSelect
from .protocol_states import DynamightProtStates

__all__ = [
    "DynamightProtDeformations", "DynamightProtDisplaceModel", "DynamightProtReconstruct", "DynamightProtSelect",
    "DynamightProtStates",
]  # fmt: skip
