"""The engine's version, apart from the package's front door, which looks up at everything."""

__version__ = "0.1.0"
