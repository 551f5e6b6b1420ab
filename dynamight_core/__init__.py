"""Molecular motions from cryo-EM particle images, and the sharper maps that follow from them."""

__version__ = "0.1.0"
