"""The command line, run in the process of the tests."""

from typer.testing import CliRunner

from dynamight_core.cli import make_app


def dynamight(*words):
    """Run a command; returns exit code and everything printed."""
    result = CliRunner().invoke(make_app(), [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output
