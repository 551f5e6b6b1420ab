"""STAR files. Every value is kept as text, so that tables can be written back unchanged."""

import linecache
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import starfile

from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path, check_is_file


def read_blocks(star: Path) -> dict[str, pd.DataFrame]:
    """Return the tables of a STAR file by block name, all values as text.

    Raises
    ------
    InputError
        if the file is missing or no STAR file, or a table has two columns of one name.
    """
    check_is_file(star, "STAR file", "give the STAR file of the particles")
    try:
        with open(star, "rb") as file:
            if b"\0" in file.read(4096):
                raise InputError(f"{star} is not a text file; give the STAR file of the particles")
        # starfile keeps text only in columns that are listed.
        with open(star, errors="replace") as file:
            labels = [line.split()[0][1:] for line in file if line.startswith("_")]
        # starfile reads through linecache, which may still have an older file of this name.
        linecache.checkcache(os.path.abspath(star))
        blocks = starfile.read(os.path.abspath(star), always_dict=True, parse_as_string=labels)
    except FileNotFoundError as error:
        raise InputError(f"{star} does not exist; give the STAR file of the particles") from error
    except OSError as error:
        raise InputError(f"{star} cannot be read ({error.strerror}); give a readable STAR file") from error
    except InputError:
        raise
    except (ValueError, IndexError, TypeError) as error:
        # starfile fails to unpack a block without rows.
        reason = "a data block is empty" if isinstance(error, TypeError) else str(error).strip().rsplit(": ")[-1]
        raise InputError(f"{star} cannot be read as STAR ({reason}); give the file as RELION wrote it") from error
    finally:
        linecache.clearcache()
    tables = {name: pd.DataFrame([block]) if isinstance(block, dict) else block for name, block in blocks.items()}
    tables = {name: table for name, table in tables.items() if table is not None}
    for table in tables.values():
        if table.columns.has_duplicates:
            twice = table.columns[table.columns.duplicated()][0]
            raise InputError(f"{star} has the column {twice} twice in one table; remove one of them")
    return tables


def write_star(
    path: str | Path,
    table: pd.DataFrame,
    optics: pd.DataFrame | None,
    block: str = "particles",
    more: dict[str, pd.DataFrame] | None = None,
) -> None:
    """Write a STAR file: the optics table (if not None), the rows in block `block`, then `more` blocks.

    Text is written as it is, numbers with the digits that restore them exactly, booleans as 0 and 1.
    """
    blocks = {} if optics is None else {"optics": optics.apply(_as_text)}
    blocks[block] = table.apply(_as_text)
    blocks |= {name: rows.apply(_as_text) for name, rows in (more or {}).items()}
    with atomic_path(path) as temporary:
        starfile.write(blocks, temporary, na_rep="nan")


def write_timeless(path: str | Path, blocks: dict[str, Any], number: str) -> None:
    """Write blocks as a STAR file whose bytes depend only on them, with numbers in the format `number`."""
    text = starfile.to_string(blocks, float_format=number)
    # The first line that starfile writes has the time.
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines).strip() + "\n")


def _as_text(column: pd.Series) -> pd.Series:
    """Return a column as text; numpy writes a float with the fewest digits that restore it."""
    values = column.to_numpy()
    if values.dtype == bool:
        values = values.astype(np.int8)
    if values.dtype.kind in "iuf":
        return pd.Series(values.astype(str), index=column.index)
    return column
