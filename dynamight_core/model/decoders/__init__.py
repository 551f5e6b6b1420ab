"""Decoders: latent and position to displacement. One class each, one line each in `dynamight_core.registry`."""
