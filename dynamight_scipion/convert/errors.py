"""What conversion refuses."""


class ConversionError(ValueError):
    """Input that cannot be converted, in one sentence with the cure."""
