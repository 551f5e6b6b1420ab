"""STAR files. Every value is kept as text, so that tables can be written back unchanged."""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import starfile

from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path, check_is_file

# A word alone in a line: values of rows may begin like it.
_BLOCK = re.compile(r"\s*data_\S*\s*(#.*)?$")
_QUOTED = re.compile(r"""\"[^"]*\"(?!\S)|'[^']*'(?!\S)|\S+""")
_BLANK = re.compile(r"\s")
# Rows at a time, which bounds the memory of words.
_CHUNK = 50_000


def read_blocks(star: Path) -> dict[str, pd.DataFrame]:
    """Return the tables of a STAR file by block name; every value is the text in the file, quotes included.

    As in RELION, a row is a line and its values are separated by blanks. Values with blanks are in quotes.

    Raises
    ------
    InputError
        if the file is missing or no STAR file, a block or column occurs twice, or a row has too few or many values.
    """
    check_is_file(star, "STAR file", "give the STAR file of the particles")
    try:
        contents = Path(star).read_bytes()
    except OSError as error:
        raise InputError(f"{star} cannot be read ({error.strerror}); give a readable STAR file") from error
    if b"\0" in contents[:4096]:
        raise InputError(f"{star} is not a text file; give the STAR file of the particles")
    # Bytes that are not UTF-8 come back as they were.
    lines = contents.decode("utf-8-sig", "surrogateescape").replace("\r", "").split("\n")
    blocks: dict[str, pd.DataFrame] = {}
    starts = [number for number, line in enumerate(lines) if _BLOCK.match(line)]
    for start, end in pairwise([*starts, len(lines)]):
        name = lines[start].split()[0][len("data_") :]
        if name in blocks:
            raise InputError(f"{star} has two blocks data_{name}; join their rows in one, or split the file")
        blocks[name] = _read_block(star, lines, start + 1, end)
    return blocks


def _read_block(star: Path, lines: list[str], start: int, end: int) -> pd.DataFrame:
    """Return the table of the lines of a block; numbers count from 0."""
    labels: list[str] = []
    pairs: list[str] = []
    loop, first = False, end
    for number in range(start, end):
        words = _words(lines[number])
        if not words or words[0].startswith("#"):
            continue
        if words[0] == "loop_":
            loop = True
        elif words[0].startswith("_"):
            labels.append(words[0][1:])
            if not loop:
                if len(words) < 2:
                    raise InputError(f"{star} has no value for {words[0]} in line {number + 1}; add it")
                pairs.append(words[1])
        else:
            first = number
            break
    twice = [label for number, label in enumerate(labels) if label in labels[:number]]
    if twice:
        raise InputError(f"{star} has the column {twice[0]} twice in one table; remove one of them")
    if not loop:
        if first < end:
            raise InputError(
                f"{star} has values without a column in line {first + 1}; give the file as RELION wrote it"
            )
        return pd.DataFrame([pairs] if pairs else [], columns=labels)
    parts = []
    for at in range(first, end, _CHUNK):
        rows = [_words(line) for line in lines[at : min(end, at + _CHUNK)]]
        if any(len(row) != len(labels) for row in rows):
            rows = _whole_rows(star, rows, labels, at)
        if rows:
            columns = zip(*rows, strict=True)
            parts.append(pd.DataFrame({label: _text(next(columns)) for label in labels}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=labels)


def _whole_rows(star: Path, rows: list[list[str]], labels: list[str], first: int) -> list[list[str]]:
    """Return rows without empty lines and comments; refuse those with too few or many values."""
    kept = []
    for number, row in enumerate(rows, first + 1):
        if len(row) == len(labels):
            kept.append(row)
        elif row and not row[0].startswith("#"):
            raise InputError(
                f"{star} has {len(row)} values in line {number} for {len(labels)} columns; correct the line, and put "
                "names with blanks in quotes"
            )
    return kept


def _words(line: str) -> list[str]:
    return _QUOTED.findall(line) if '"' in line or "'" in line else line.split()


def _text(values: Sequence[str]) -> pd.Series:
    try:
        return pd.Series(values, dtype="str")
    except UnicodeEncodeError:
        return pd.Series(values, dtype=object)


def unquoted(text: str) -> str:
    """Return a value of a STAR file without the quotes around it."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def with_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose columns are numbers where all of their values are, and text without quotes elsewhere."""
    columns = {}
    for name, column in table.items():
        try:
            columns[name] = pd.to_numeric(column)
        except (ValueError, TypeError):
            columns[name] = column.map(unquoted)
    return pd.DataFrame(columns)


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
    blocks = {} if optics is None else {"optics": optics}
    blocks |= {block: table} | (more or {})
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
        for name, rows in blocks.items():
            file.write(f"\ndata_{name}\n\nloop_\n")
            file.writelines(f"_{label} #{number}\n" for number, label in enumerate(rows.columns, 1))
            for at in range(0, len(rows), _CHUNK):
                columns = [_written(rows.iloc[at : at + _CHUNK, column]) for column in range(rows.shape[1])]
                file.writelines("\t".join(values) + "\n" for values in zip(*columns, strict=True))
            file.write("\n")


def _written(column: pd.Series) -> list[str]:
    """Return the text of the values of a column."""
    return [
        value if value and (unquoted(value) != value or not _BLANK.search(value)) else f'"{value}"'
        for value in _as_text(column)
    ]


def write_timeless(path: str | Path, blocks: dict[str, Any], number: str) -> None:
    """Write blocks as a STAR file whose bytes depend only on them, with numbers in the format `number`."""
    text = starfile.to_string(blocks, float_format=number)
    # The first line that starfile writes has the time.
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines).strip() + "\n")


def _as_text(column: pd.Series) -> list[str]:
    """Return a column as text; numpy writes a float with the fewest digits that restore it."""
    values = column.to_numpy()
    if values.dtype == bool:
        values = values.astype(np.int8)
    if values.dtype.kind in "iuf":
        return values.astype(str).tolist()  # type: ignore[no-any-return]
    return ["nan" if value is None or value != value else str(value) for value in values.tolist()]
