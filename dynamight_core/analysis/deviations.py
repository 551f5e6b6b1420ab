"""How far states are from each other, by region of the molecule: the rms deviation of its points."""

from itertools import combinations

import numpy as np
import pandas as pd
import torch

from dynamight_core.analysis.domains import find_domains
from dynamight_core.run import Run


def state_deviations(run: Run, labels: list[str], coordinates: np.ndarray) -> pd.DataFrame:
    """Return the rms deviation between states, in the whole molecule and in each of its rigid-body domains.

    Positions are compared as they are, in the consensus frame: nothing is superposed. A domain is that of `dynamight
    analyse` without --domains.

    Parameters
    ----------
    run
        finished and summarised.
    labels
        names of s states.
    coordinates
        (s, K) A rms.

    Returns
    -------
    DataFrame
        a row for each pair of states and region: `first`, `second`, `region` (molecule, domain1, ...), `points`,
        `deviation_A` and `error_A`, the uncertainty of a displacement there, rms over its points.
    """
    domains = find_domains(run.motions)
    where = {"molecule": np.ones(len(domains.labels), bool)}
    if len(domains) > 1:
        where |= {f"domain{number + 1}": domains.labels == number for number in range(len(domains))}
    displacements = run.motions.displacement(torch.as_tensor(coordinates, dtype=torch.float32)).numpy()
    error = np.square(np.asarray(run.summary["point_error"]))
    rows = []
    for one, other in combinations(range(len(labels)), 2):
        squares = np.square(displacements[one] - displacements[other]).sum(-1)
        for region, inside in where.items():
            rows.append(
                {
                    "first": labels[one],
                    "second": labels[other],
                    "region": region,
                    "points": int(inside.sum()),
                    "deviation_A": float(np.sqrt(squares[inside].mean())),
                    "error_A": float(np.sqrt(error[inside].mean())),
                }
            )
    return pd.DataFrame(rows)
