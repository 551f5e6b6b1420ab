"""The engine from Python: ``import dynamight_core as dm``.

Three functions are the stages of the command line; `Run` is what they leave on disk, as NumPy arrays and pandas
tables. Lengths are in A, points are (x, y, z) in the frame of the consensus map with the origin at the centre of the
box, maps are indexed [z, y, x], and particles are counted from 0.
"""

from dynamight_core.api.maps import Maps, Volume
from dynamight_core.api.run import Run
from dynamight_core.api.stages import analyse, infer, open_run, reconstruct, train
from dynamight_core.errors import InputError
from dynamight_core.reporter import QUIET, Reporter

__all__ = [
    "QUIET",
    "InputError",
    "Maps",
    "Reporter",
    "Run",
    "Volume",
    "analyse",
    "infer",
    "open_run",
    "reconstruct",
    "train",
]
