"""Errors that a user can act on."""


class InputError(ValueError):
    """Input that a run cannot use; the message is one sentence with the file, the column or option, and the cure.

    The command line prints the message alone and exits with code 2.
    """


def option_name(field: str) -> str:
    """Return the field of an options dataclass as users know it: ``--n-gaussians``."""
    return f"--{field.replace('_', '-')}"
