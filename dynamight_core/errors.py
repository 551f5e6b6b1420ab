"""Errors that a user can act on."""


class InputError(ValueError):
    """Input that cannot be used. The message names the file, column or option, what is wrong, and what to do.

    The command line prints only the message and exits with code 2.
    """


def option_name(field: str) -> str:
    """Return the command-line option of a field of an options dataclass: ``--n-gaussians``."""
    return f"--{field.replace('_', '-')}"
