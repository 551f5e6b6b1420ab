"""Errors of conversion."""

from pyworkflow.exceptions import PyworkflowException


class ConversionError(PyworkflowException):
    """Input that cannot be converted: one sentence with the cure. Scipion logs it without a traceback."""
