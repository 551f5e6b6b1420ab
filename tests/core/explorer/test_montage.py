"""Images of particles beside what the model says of them."""

import numpy as np
import torch

from dynamight_core.analysis.explorer.montage import montage


def test_images_of_particles_are_like_the_model_and_less_so_without_it(trained):
    _, run = trained
    rows = torch.arange(0, len(run.halves), 7)
    found = montage(run, rows)
    assert found.values["rows"] == (rows + 1).tolist()
    images = {name: array.astype(float) - 127.5 for name, array in found.arrays.items()}
    correlations = {
        name: np.corrcoef(images[name].ravel(), images["model"].ravel())[0, 1] for name in ("filtered", "residual")
    }
    assert correlations["filtered"] > 0.1
    assert abs(correlations["residual"]) < 0.5 * correlations["filtered"]
