"""Viewers of the protocols and of their outputs.

Scipion offers the viewers of an object in the alphabetical order of the names here. Those of flexible sets stand
before its own tables, and only for sets of this plugin.
"""

from .viewer_control import DynamightControlViewer
from .viewer_fields import DynamightFieldsViewer as ADynamightFieldsViewer
from .viewer_model import DynamightModelViewer as ADynamightModelViewer
from .viewer_reconstruct import DynamightReconstructViewer
from .viewer_states import DynamightDisplacedModelsViewer as ADynamightDisplacedModelsViewer
from .viewer_states import DynamightStatesViewer as ADynamightStatesViewer

__all__ = [
    "ADynamightDisplacedModelsViewer",
    "ADynamightFieldsViewer",
    "ADynamightModelViewer",
    "ADynamightStatesViewer",
    "DynamightControlViewer",
    "DynamightReconstructViewer",
]
