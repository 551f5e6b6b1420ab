"""What the viewers show of a run: the tables that the engine wrote, read when they are asked for."""

import csv
import json
import os
from dataclasses import dataclass
from functools import cached_property

import mrcfile
import numpy as np

from dynamight_scipion.convert import motionCoordinates, readMotions


@dataclass(frozen=True)
class Particles:
    """What the engine found for every particle.

    Parameters
    ----------
    ids
        (n,) of the particles in Scipion's sets.
    coordinates
        (n, K) along the principal motions, Å rms.
    latents
        (n, N) under the decoder of the particle's own half.
    halves
        (n,) 1 or 2.
    heldOut
        (n,) bool: those that trained nothing.
    motion, error
        (n,) rms over the molecule, Å.
    """

    ids: np.ndarray
    coordinates: np.ndarray
    latents: np.ndarray
    halves: np.ndarray
    heldOut: np.ndarray
    motion: np.ndarray
    error: np.ndarray


class Results:
    """The files of a model's run as arrays, each read once.

    Parameters
    ----------
    model
        DynamightModel; of a run that is not finished only the metrics are there.
    """

    def __init__(self, model):
        self.model = model

    @cached_property
    def particles(self):
        """Particles with their motions, in the order of the engine's table."""
        columns = readMotions(self.model.getParticlesStar())
        count = sum(1 for label in columns if label.startswith("dynLatent"))
        return Particles(
            ids=columns["rlnImageId"],
            coordinates=motionCoordinates(columns),
            latents=np.stack([columns[f"dynLatent{number + 1}"] for number in range(count)], -1),
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
        path = self.model.getRunPath("analysis", "embedding.csv")
        with open(path) as file:
            names = file.readline().strip().split(",")
        return np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2), names[0].startswith("umap")

    @property
    def reportPath(self):
        """Path of the report, which a browser shows."""
        return self.model.getRunPath("analysis", "report.html")

    @property
    def metricsPath(self):
        """Path of the training's log."""
        return self.model.getRunPath("metrics.jsonl")

    def readMetrics(self):
        """Read the training's log as it is now: one dict for each epoch and half."""
        if not os.path.exists(self.metricsPath):
            return []
        with open(self.metricsPath) as file:
            return [json.loads(line) for line in file if line.strip()]

    @cached_property
    def points(self):
        """Points of the molecule: a dict of (m,) arrays x, y, z (Å, frame of the map), rms_motion and error (Å)."""
        with open(self.model.getRunPath("analysis", "tables", "points.csv"), newline="") as file:
            rows = list(csv.DictReader(file))
        return {name: np.array([float(row[name]) for row in rows]) for name in ("x", "y", "z", "rms_motion", "error")}


def readVolume(path):
    """Read a volume as float32 [z, y, x]."""
    with mrcfile.open(path, permissive=True) as mrc:
        return np.array(mrc.data, dtype=np.float32).reshape(mrc.data.shape[-3:])
