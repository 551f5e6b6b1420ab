"""A Scipion of the tests' own, in a temporary folder.

pyworkflow reads its settings once, when it is first imported.
"""

import atexit
import os
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

for name in list(os.environ):
    if name.startswith(("SCIPION_", "DYNAMIGHT_")):
        del os.environ[name]

home = Path(tempfile.mkdtemp(prefix="scipion-tests-"))
atexit.register(shutil.rmtree, home, ignore_errors=True)
(home / "data").mkdir()
os.environ.update(
    SCIPION_DOMAIN="pwem",
    SCIPION_HOME=str(home),
    SCIPION_USER_DATA=str(home / "data"),
    SCIPION_HOSTS=str(Path(find_spec("scipion").origin).parent / "templates" / "hosts.template"),
    SCIPION_PYTHON=sys.executable,
    SCIPION_NOTIFY="False",
    SCIPION_TEST_NOSYNC="True",
)

import pyworkflow

pyworkflow.Config.getDomain().getPlugins()
