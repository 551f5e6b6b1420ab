"""Numbers that options name: motions, particles, lists."""

from dynamight_core.errors import InputError


def parse_numbers(text: str, option: str, kind: type = float) -> list:
    """Return the numbers that a comma-separated text holds.

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
    """Refuse a motion that the run has not.

    Raises
    ------
    InputError
        naming the motions that there are.
    """
    if not 1 <= motion <= n_motions:
        raise InputError(f"motion {motion} is not in this run; give a number from 1 to {n_motions}")


def check_row(row: int, n: int) -> None:
    """Refuse a row, from 1, that the particles have not.

    Raises
    ------
    InputError
        naming the rows that there are.
    """
    if not 1 <= row <= n:
        raise InputError(f"particle {row} is not in this run; give a row of particles.star from 1 to {n}")
