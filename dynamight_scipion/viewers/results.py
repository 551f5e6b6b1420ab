"""What the viewers show of a run: the tables that the engine wrote, read when they are asked for."""

import csv
import os
from dataclasses import dataclass
from functools import cached_property

import mrcfile
import numpy as np

from dynamight_scipion.convert import ConversionError, motionCoordinates, readMotions


@dataclass(frozen=True)
class Particles:
    """What the engine found for every particle.

    Parameters
    ----------
    ids
        (n,) of the particles in Scipion's sets.
    coordinates
        (n, K) along the principal motions, Å rms.
    halves
        (n,) 1 or 2.
    heldOut
        (n,) bool: held-out (validation) particles.
    motion, error
        (n,) rms over the molecule, Å.
    """

    ids: np.ndarray
    coordinates: np.ndarray
    halves: np.ndarray
    heldOut: np.ndarray
    motion: np.ndarray
    error: np.ndarray


class Results:
    """The files of a model's run as arrays, each read once.

    Parameters
    ----------
    model
        DynamightModel; of a run that is not finished only the curves of the training are there.
    """

    def __init__(self, model):
        self.model = model

    @cached_property
    def particles(self):
        """Particles with their motions, in the order of the engine's table."""
        columns = readMotions(self.model.getParticlesStar())
        return Particles(
            ids=columns["rlnImageId"],
            coordinates=motionCoordinates(columns),
            halves=columns["dynHalf"].astype(int),
            heldOut=columns["dynValidation"].astype(bool),
            motion=columns["dynMotionRms"],
            error=columns["dynMotionError"],
        )

    @cached_property
    def summary(self):
        """The run's summary, a dict."""
        return self.model.loadSummary()

    @property
    def shares(self):
        """Share of each principal motion in the motion, a list that adds up to 1."""
        return self.summary["motion_shares"]

    @cached_property
    def embedding(self):
        """Places of the particles in a plane, (n, 2), and whether UMAP made them (or they are the first motions)."""
        columns = readTable(self.findFile("embedding.csv"))
        return np.stack(list(columns.values()), -1), next(iter(columns)).startswith("umap")

    def findFile(self, *names):
        """Return the path of a file in the run's folder "analysis".

        Raises
        ------
        ConversionError
            if it is not there.
        """
        path = self.model.getRunPath("analysis", *names)
        if not os.path.exists(path):
            raise ConversionError(
                f"{path} is missing: run the protocol that estimated the deformations again with Continue, which keeps "
                "the training and writes the file."
            )
        return path

    def readTraining(self):
        """Read the curves of the training as far as it is: columns curve, half, epoch, kind and value.

        None if no epoch is done, or if an engine trained the model that did not write them.
        """
        path = self.model.getRunPath("training_curves.csv")
        return readTable(path) if os.path.exists(path) else None

    def readTable(self, name):
        """Read a table behind the figures of the report, as the function `readTable` does."""
        return readTable(self.findFile("tables", f"{name}.csv"))

    @cached_property
    def points(self):
        """Points of the molecule: a dict of (m,) arrays x, y, z (Å, frame of the map), rms_motion and error (Å)."""
        return self.readTable("points")


def readTable(path):
    """Read a CSV file as a dict of (n,) arrays by column: numbers, not a number where a cell is empty, or text."""
    with open(path, newline="") as file:
        names, *rows = csv.reader(file)
    columns = zip(*rows) if rows else [()] * len(names)
    return {name: _parse(column) for name, column in zip(names, columns)}


def _parse(cells):
    try:
        return np.array([float(cell or "nan") for cell in cells])
    except ValueError:
        return np.array(cells)


def readVolume(path):
    """Read a volume as float32 [z, y, x]."""
    with mrcfile.open(path, permissive=True) as mrc:
        return np.array(mrc.data, dtype=np.float32).reshape(mrc.data.shape[-3:])
