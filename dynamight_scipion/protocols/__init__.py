"""Protocols that Scipion offers for the engine's stages."""

from .protocol_deformations import DynamightProtDeformations

__all__ = ["DynamightProtDeformations"]
