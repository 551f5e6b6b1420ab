"""Values to colour particles by: columns of the run, of its STAR file, and of a user's CSV."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dynamight_core.errors import InputError
from dynamight_core.files import check_is_file

# Columns of a CSV that identify the particle of a line.
ROW_COLUMNS = ("particle", "row")
NAME_COLUMN = "rlnImageName"
# Maximum number of categories; of more, the most frequent are named and all others are one category.
_MAX_CATEGORIES = 12
_LEVELS = 254
MISSING = 255


@dataclass
class Colouring:
    """The value of every particle as one of 255 levels.

    Parameters
    ----------
    levels
        (n,) uint8: the number of a category, or 0 to 254 from `low` to `high`; 255 where a value is missing.
    low, high
        values at the lowest and highest level: the 1st and 99th percentile.
    labels
        of categories, or None if the values are numbers.
    """

    levels: np.ndarray
    low: float = 0.0
    high: float = 1.0
    labels: list[str] | None = None


def colouring(values: pd.Series, name: str) -> Colouring:
    """Return the levels of (n,) values, numbers or categories.

    Raises
    ------
    InputError
        if the values are all missing.
    """
    numbers = pd.to_numeric(values, errors="coerce")
    if numbers.isna().all() and values.isna().all():
        raise InputError(f"column {name} is empty; choose another column")
    distinct = values.dropna().unique()
    few_integers = len(distinct) <= _MAX_CATEGORIES and (numbers.isna() | (numbers % 1 == 0)).all()
    if few_integers or numbers.notna().sum() < values.notna().sum():
        return _categories(values)
    data = numbers.to_numpy(dtype=float)
    finite = np.isfinite(data)
    if not finite.any():
        raise InputError(f"column {name} contains no finite number; choose another column")
    low, high = (float(v) for v in np.quantile(data[finite], [0.01, 0.99]))
    high = max(high, low + max(1e-9, 1e-6 * abs(low)))
    levels = np.full(len(data), MISSING, dtype=np.uint8)
    levels[finite] = np.clip(np.rint((data[finite] - low) / (high - low) * _LEVELS), 0, _LEVELS)
    return Colouring(levels, low, high)


def _categories(values: pd.Series) -> Colouring:
    counts = values.value_counts()
    named = list(counts.index[: _MAX_CATEGORIES - 1 if len(counts) > _MAX_CATEGORIES else _MAX_CATEGORIES])
    named.sort(key=lambda value: (isinstance(value, str), value))
    codes = pd.Index(named).get_indexer_for(values).astype(np.int16)
    labels = [f"{value:g}" if isinstance(value, float) else str(value) for value in named]
    if len(counts) > len(named):
        codes[(codes < 0) & values.notna().to_numpy()] = len(named)
        labels.append(f"{len(counts) - len(named)} others")
    return Colouring(np.where(codes < 0, MISSING, codes).astype(np.uint8), 0.0, len(labels) - 1.0, labels)


def read_annotations(source: str | Path | io.StringIO, name: str, particles: pd.DataFrame) -> pd.DataFrame:
    """Read a user's CSV of values for particles.

    A column rlnImageName, `particle` or `row` (row of particles.star, from 1) identifies the particle of each line. A
    table without any of these must have one line per particle, in the order of particles.star.

    Parameters
    ----------
    source
        path of the CSV, or a file object.
    name
        of the table, for messages and as a prefix of its columns.
    particles
        rows of RUN/particles.star.

    Returns
    -------
    pandas.DataFrame
        one row per particle; values are missing where the table has none.

    Raises
    ------
    InputError
        if it cannot be read, or has particles that are not in the run.
    """
    if isinstance(source, str | Path):
        check_is_file(source, "table", "choose a CSV file")
    try:
        table = pd.read_csv(source, skipinitialspace=True)
    except Exception as error:  # Libraries have many exceptions for damaged files.
        reason = str(error).strip()
        raise InputError(f"cannot read table {name} ({reason}); use a CSV file with a header") from error
    n = len(particles)
    keys = [column for column in (NAME_COLUMN, *ROW_COLUMNS) if column in table]
    if not keys:
        if len(table) != n:
            raise InputError(
                f"table {name} has {len(table)} lines but the run has {n} particles; use one line per particle, or add "
                f"a column {NAME_COLUMN} or {ROW_COLUMNS[0]} (row of particles.star, from 1)"
            )
        rows = np.arange(n)
    elif keys[0] == NAME_COLUMN:
        if NAME_COLUMN not in particles or not particles[NAME_COLUMN].is_unique:
            raise InputError(
                f"table {name} identifies particles by {NAME_COLUMN}, but these names are not unique in the run; use a "
                f"column {ROW_COLUMNS[0]} (row of particles.star, from 1) instead"
            )
        rows = pd.Index(particles[NAME_COLUMN]).get_indexer_for(table[NAME_COLUMN])
    else:
        numbers = pd.to_numeric(table[keys[0]], errors="coerce")
        rows = np.where((numbers >= 1) & (numbers <= n) & (numbers % 1 == 0), numbers - 1, -1).astype(int)
    unknown = rows < 0
    if unknown.any():
        first = int(np.argmax(unknown))
        raise InputError(
            f"table {name}: '{table[keys[0]].iloc[first]}' in column {keys[0]}, line {first + 2}, is not a particle of "
            f"this run ({int(unknown.sum())} of {len(table)} lines are not); remove such lines"
        )
    if len(np.unique(rows)) < len(rows):
        raise InputError(
            f"table {name} has several lines for one particle in column {keys[0]}; keep one line per particle"
        )
    values = table.drop(columns=keys)
    if not len(values.columns):
        raise InputError(f"table {name} has no column besides {', '.join(keys)}; add a column of values")
    values.index = rows
    return values.reindex(range(n)).add_prefix(f"{name}: ")
