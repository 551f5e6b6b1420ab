"""The command line: commands, the program made of them, and how it ends."""

from dynamight_core.cli import commands  # noqa: F401 importing registers them
from dynamight_core.cli.main import main, run

__all__ = ["main", "run"]
