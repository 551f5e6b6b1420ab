"""Protocols that Scipion offers for the engine's stages."""
