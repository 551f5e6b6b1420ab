"""Decoded motion against the truth."""

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from dynamight_core.model.partition import kabsch
from dynamight_core.simulate.measures import correlation, hinge_angle, knn_r2


def compare(trained, run, truth, share):
    """Return angle correlation, displacement errors (A) and latent quality of a half's particles, mean over halves.

    Parameters
    ----------
    trained
        training, or finished run: its `models` and `latents` are compared.
    run
        finished run.
    truth
        of its data set.
    share
        "train" or "validation": the particles that are compared.
    """
    names = ("r", "angle_sd", "turn_sd", "true_angle_sd", "error", "motion", "static", "knn_r2")
    columns = {name: [] for name in names}
    for half, model in enumerate(trained.models):
        chosen = (run.halves == half + 1) & (run.validation == (share == "validation"))
        rows = torch.where(chosen)[0]
        # Everything is compared in the consensus frame, which the reference may have left.
        points = model.consensus_positions
        domains = truth.domains(points)
        moving = domains == 1
        latents = trained.latents[half][rows]
        with torch.no_grad():
            predicted = model.reference_shift + model.displacements(latents)
        true = truth.displacements(points, rows)
        molecule = truth.molecule
        angles = hinge_angle(
            points[moving] + predicted[:, moving], points[moving], molecule.axis_points[0], molecule.axis_directions[0]
        )
        error = (predicted - true).square().sum(-1)
        columns["error"].append(float(error[:, moving].mean().sqrt()))
        columns["motion"].append(float(true[:, moving].square().sum(-1).mean().sqrt()))
        columns["static"].append(float(predicted[:, ~moving].square().sum(-1).mean().sqrt()))
        if truth.angles.std() > 0:
            columns["r"].append(correlation(angles, truth.angles[rows, 0]))
            columns["angle_sd"].append(float(torch.rad2deg(angles).std()))
            # The domain's own rotation, which does not count its shift as a turn.
            arms = points[moving] - points[moving].mean(0)
            products = torch.einsum("mi,bmj->bij", arms, arms + predicted[:, moving])
            vectors = torch.from_numpy(Rotation.from_matrix(kabsch(products.numpy())).as_rotvec())
            columns["turn_sd"].append(float(torch.rad2deg(vectors.float() @ molecule.axis_directions[0]).std()))
            columns["true_angle_sd"].append(float(torch.rad2deg(truth.angles[rows, 0]).std()))
            columns["knn_r2"].append(knn_r2(latents, truth.angles[rows, 0]))
    return {name: float(np.mean(values)) for name, values in columns.items() if values}
