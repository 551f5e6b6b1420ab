"""``python -m dynamight_core`` is ``dynamight``."""

from dynamight_core.cli import main

main()
