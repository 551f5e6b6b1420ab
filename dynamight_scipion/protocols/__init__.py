"""Protocols that Scipion offers for the engine's stages."""

from importlib.util import find_spec

from .protocol_apply_field import DynamightProtApplyField
from .protocol_control import DynamightProtControl
from .protocol_deformations import DynamightProtDeformations
from .protocol_displace_model import DynamightProtDisplaceModel
from .protocol_import_fields import DynamightProtImportFields
from .protocol_infer import DynamightProtInfer
from .protocol_reconstruct import DynamightProtReconstruct
from .protocol_select import DynamightProtSelect
from .protocol_states import DynamightProtStates

__all__ = [
    "DynamightProtApplyField",
    "DynamightProtControl",
    "DynamightProtDeformations",
    "DynamightProtDisplaceModel",
    "DynamightProtImportFields",
    "DynamightProtInfer",
    "DynamightProtReconstruct",
    "DynamightProtSelect",
    "DynamightProtStates",
]

# Hax's plugin, not the program of the same name
if find_spec("hax") and find_spec("hax.protocols"):
    from .protocol_annotate_space import DynamightProtAnnotateSpace  # noqa: F401 where there is Hax

    __all__.append("DynamightProtAnnotateSpace")
