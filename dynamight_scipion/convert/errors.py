"""What conversion refuses."""

from pyworkflow.exceptions import PyworkflowException


class ConversionError(PyworkflowException):
    """Input that cannot be converted, in one sentence with the cure; Scipion's logs show it without a traceback."""
