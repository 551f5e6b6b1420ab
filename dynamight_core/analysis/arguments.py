"""Numbers given as options: motions, particles, lists."""

from typing import Any

from dynamight_core.errors import InputError


def parse_numbers(text: str, option: str, kind: type = float) -> list[Any]:
    """Return the numbers in a comma-separated text.

    Raises
    ------
    InputError
        naming the option.
    """
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option} is '{text}'; give numbers separated by commas") from error


def check_motion(motion: int, n_motions: int) -> None:
    """Refuse a motion that is not in the run.

    Raises
    ------
    InputError
        naming the valid range.
    """
    if not 1 <= motion <= n_motions:
        raise InputError(f"motion {motion} is not in this run; give a number from 1 to {n_motions}")


def check_row(row: int, n: int) -> None:
    """Refuse a row of particles.star (from 1) that does not exist.

    Raises
    ------
    InputError
        naming the valid range.
    """
    if not 1 <= row <= n:
        raise InputError(f"particle {row} is not in this run; give a row of particles.star from 1 to {n}")
