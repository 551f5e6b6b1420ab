"""Viewers of the protocols and of their outputs."""
