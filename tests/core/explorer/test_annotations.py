"""Values to colour particles by: categories, numbers, and a user's tables."""

import numpy as np
import pandas as pd
import pytest
import starfile

from dynamight_core.analysis.explorer.annotations import colouring, read_annotations


@pytest.mark.parametrize(
    ("values", "labels"),
    [(["b", "a", "a"], ["a", "b"]), ([1, 2, 2], ["1", "2"]), (list("abcdefghijklmnop"), 12), ([0.5, 1.0, 2.0], None)],
)
def test_columns_are_categories_or_numbers(values, labels):
    found = colouring(pd.Series(values), "x")
    if isinstance(labels, int):
        assert len(found.labels) == labels
        assert found.labels[-1] == "5 others"
    else:
        assert found.labels == labels


def test_a_users_table_is_joined_by_name_by_row_or_by_order(drawn_run, tmp_path):
    particles = starfile.read(drawn_run / "particles.star")["particles"]
    n = len(particles)
    values = np.arange(n) * 1.5
    by_name = pd.DataFrame({"rlnImageName": particles["rlnImageName"], "score": values}).sample(frac=1, random_state=0)
    by_row = pd.DataFrame({"particle": [7, 3], "score": [values[6], values[2]]})
    for table, rows in ((by_name, range(n)), (by_row, [2, 6]), (pd.DataFrame({"score": values}), range(n))):
        path = tmp_path / "scores.csv"
        table.to_csv(path, index=False)
        found = read_annotations(path, "scores", particles)["scores: score"]
        assert found.notna().sum() == len(rows)
        np.testing.assert_allclose(found[list(rows)], values[list(rows)])
