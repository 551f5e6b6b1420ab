"""Files that are almost right: by name, the reader, and its valid file changed."""

import gzip
import struct
from collections.abc import Callable

from tools.readers import Reader

Change = Callable[[bytes], bytes]


def swap(before: str, after: str, times: int = -1) -> Change:
    """Return a change of text that must be there."""

    def change(contents: bytes) -> bytes:
        assert before.encode() in contents, before
        return contents.replace(before.encode(), after.encode(), times)

    return change


def cell(column: int, value: str, row: int = 2) -> Change:
    """Return a change of one value of the particles of a STAR file; columns count from 1, rows from 1."""

    def change(contents: bytes) -> bytes:
        lines = contents.decode().split("\n")
        rows = [number for number, line in enumerate(lines) if "@" in line]
        words = lines[rows[row - 1]].split()
        words[column - 1] = value
        lines[rows[row - 1]] = " ".join(words)
        return "\n".join(lines).encode()

    return change


def word(offset: int, *values: int, kind: str = "i") -> Change:
    """Return a change of numbers in the header of an MRC file, by their offset in bytes."""
    return lambda contents: (
        contents[:offset] + struct.pack(f"<{len(values)}{kind}", *values) + contents[offset + 4 * len(values) :]
    )


def pixel(number: int, value: float) -> Change:
    """Return a change of one value of an MRC file of float32."""
    return word(1024 + 4 * number, value, kind="f")


def cut(bytes_left: int) -> Change:
    """Return a change that keeps the first bytes, or all but some if negative."""
    return lambda contents: contents[:bytes_left]


def become(contents: bytes) -> Change:
    """Return a change to other contents."""
    return lambda _: contents


def _compressed(contents: bytes) -> bytes:
    return gzip.compress(contents, mtime=0)


_NUMBERS = {"nan": "nan", "infinite": "inf", "text": "abc", "empty quotes": '""', "comma": "1,5", "hexadecimal": "0x10"}
_COLUMNS = {"rot": 2, "origin": 5, "defocus": 7, "optics group": 10, "half-set": 11}

STAR: dict[str, Change] = {
    **{f"{column} is {what}": cell(at, value) for column, at in _COLUMNS.items() for what, value in _NUMBERS.items()},
    **{
        f"no column {label}": swap(f"_rln{label} ", f"_other{label} ")
        for label in ("ImageName", "AngleRot", "OriginXAngst", "DefocusU", "OpticsGroup", "RandomSubset", "Voltage")
    },
    "empty": become(b""),
    "blank": become(b"\n\n \n"),
    "binary": become(bytes(range(256))),
    "PDF": become(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n1 0 obj\n"),
    "HTML": become(b"<!DOCTYPE html><html><body>404</body></html>"),
    "CSV": become(b"rlnImageName,rlnAngleRot\n1@a.mrcs,0\n"),
    "UTF-16": lambda contents: contents.decode().encode("utf-16"),
    "UTF-8 with a mark": lambda contents: b"\xef\xbb\xbf" + contents,
    "Windows line ends": swap("\n", "\r\n"),
    "tabs": swap(" ", "\t"),
    "comments between rows": swap("\n2@", "\n# bad\n2@"),
    "empty line between rows": swap("\n2@", "\n\n2@"),
    "one value too few": cell(11, ""),
    "one value too many": cell(11, "1 1"),
    "no rows": lambda contents: contents[: contents.index(b"1@particles")],
    "no end of line": lambda contents: contents.rstrip(),
    "cut in a row": cut(-30),
    "block twice": lambda contents: contents + contents,
    "column twice": swap("_rlnAnglePsi ", "_rlnAngleRot "),
    "no block of particles": swap("data_particles", "data_micrographs"),
    "block without name": swap("data_particles", "data_"),
    "no optics": lambda contents: contents[contents.index(b"data_particles") :],
    "optics group that is not there": cell(10, "7"),
    "optics group of words": cell(10, "one"),
    "image name without @": cell(1, "particles.mrcs"),
    "image 0": cell(1, "0@particles.mrcs"),
    "image -1": cell(1, "-1@particles.mrcs"),
    "image 1.5": cell(1, "1.5@particles.mrcs"),
    "image name with two @": cell(1, "1@a@particles.mrcs"),
    "stack that is not there": cell(1, "1@nowhere.mrcs"),
    "half-set 3": cell(11, "3"),
    "half-set 0": cell(11, "0"),
    "angle 1e300": cell(2, "1e300"),
    "pixel size 0": swap(" 2.0 8", " 0 8"),
    "pixel size -1": swap(" 2.0 8", " -1 8"),
    "pixel size nan": swap(" 2.0 8", " nan 8"),
    "subtomograms": swap(
        "_rlnImageSize #6\n1 300 2.7 0.1 2.0 8", "_rlnImageSize #6\n_rlnImageDimensionality #7\n1 300 2.7 0.1 2.0 8 3"
    ),
    "job file": become(b"data_job\n_rlnJobTypeLabel relion.refine3d\n"),
    "optimiser": become(b"data_optimiser_general\n_rlnExperimentalDataStarFile Refine3D/run_data.star\n"),
}
STACK: dict[str, Change] = {
    "empty": become(b""),
    "header alone": cut(1024),
    "half a header": cut(500),
    "cut by one byte": cut(-1),
    "text": become(b"not an MRC file" * 200),
    "no machine stamp": word(212, 0),
    "no map identifier": word(208, 0),
    "mode 3": word(12, 3),
    "mode 4": word(12, 4),
    "mode 101": word(12, 101),
    "mode -1": word(12, -1),
    "not square": word(0, 4, 16),
    "fewer images than named": word(8, 3),
    "no images": word(8, 0),
    "negative size": word(0, -8),
    "huge size": word(0, 2**30, 2**30),
    "negative extended header": word(92, -1024),
    "huge extended header": word(92, 2**30),
    "NaN": pixel(70, float("nan")),
    "infinite": pixel(70, float("inf")),
    "other box": word(0, 4, 4, 24),
    "constant": lambda contents: contents[:1024] + bytes(256) + contents[1280:],
    "gzipped": _compressed,
}
MAP: dict[str, Change] = {
    "empty": become(b""),
    "header alone": cut(1024),
    "cut by one byte": cut(-1),
    "text": become(b"not an MRC file" * 200),
    "not a cube": word(0, 4, 16),
    "no cell": word(40, 0.0, 0.0, 0.0, kind="f"),
    "cell NaN": word(40, float("nan"), 1.0, 1.0, kind="f"),
    "cell negative": word(40, -16.0, -16.0, -16.0, kind="f"),
    "other pixel along z": word(48, 32.0, kind="f"),
    "no sampling": word(28, 0, 0, 0),
    "axis order": word(64, 3, 2, 1),
    "axis order 0": word(64, 0, 0, 0),
    "NaN": pixel(9, float("nan")),
    "infinite": pixel(9, float("-inf")),
    "constant": lambda contents: contents[:1024] + bytes(len(contents) - 1024),
    "mode 3": word(12, 3),
    "huge": word(0, 2**30, 2**30, 2**30),
    "gzipped under another name": _compressed,
}
STRUCTURE: dict[str, Change] = {
    "empty": become(b""),
    "no atoms": become(b"HEADER    NOTHING\nEND\n"),
    "text": become(b"hello\nworld\n"),
    "coordinates of words": swap("   3.800", "  abc   "),
    "coordinates NaN": swap("   3.800", "     nan"),
    "cut": cut(40),
    "binary": become(bytes(range(256)) * 4),
}
CIF: dict[str, Change] = {
    "empty": become(b""),
    "no rows": lambda contents: contents[: contents.index(b"ATOM")],
    "a value too few": swap(" 4 A\n", " 4\n"),
    "coordinates unknown": swap("3.8", "?"),
    "column twice": swap("_atom_site.Cartn_y", "_atom_site.Cartn_x"),
    "no coordinates": swap("_atom_site.Cartn_x", "_atom_site.other"),
    "open quote": swap("ATOM 2", "ATOM '2"),
}
CONFIG: dict[str, Change] = {
    "empty": become(b""),
    "a list": become(b"[1, 2]"),
    "tab": become(b"inputs:\n\tstar: x\n"),
    "latin-1": lambda contents: contents + b"# \xe9\n",
    "unknown option": swap("inputs:", "inputs:\n  colour: red"),
    "value of another type": swap("epochs: ", "epochs: many #"),
    "no train": swap("train:", "trained:"),
    "object": become(b"!!python/object/apply:os.system ['true']"),
    "alias bomb": become(b"a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n"),
    "null": become(b"inputs: null\ntrain: null\nprovenance: null\nstages: null\n"),
}
TABLES: dict[str, dict[str, Change]] = {
    "states CSV": {
        "empty": become(b""),
        "header alone": become(b"state,motion1_A,motion2_A\n"),
        "other columns": become(b"a,b\n1,2\n"),
        "words": swap("1,2", "one,two"),
        "NaN": swap("1,2", "nan,2"),
        "infinite": swap("1,2", "inf,2"),
        "names twice": swap("b,3", "a,3"),
        "name with /": swap("b,3", "../b,3"),
        "too many values": swap("1,2", "1,2,3,4"),
        "binary": become(bytes(range(256))),
    },
    "annotations CSV": {
        "empty": become(b""),
        "header alone": become(b"row,score\n"),
        "no identity, other length": become(b"score\n1\n2\n"),
        "row beyond": swap("2,0.7", "99,0.7"),
        "row 0": swap("2,0.7", "0,0.7"),
        "row of words": swap("2,0.7", "two,0.7"),
        "row twice": swap("2,0.7", "1,0.7"),
        "unknown image": become(b"rlnImageName,score\n1@other.mrcs,2\n"),
        "UTF-16": lambda contents: contents.decode().encode("utf-16"),
    },
    "cs": {
        "empty": become(b""),
        "text": become(b"uid,path\n"),
        "pickle": become(b"\x80\x04\x95\x00"),
        "cut": cut(100),
        "compressed": become(b"\x93CSF00rest"),
    },
    "npy": {
        "empty": become(b""),
        "text": become(b"1 2 3\n"),
        "cut": cut(-10),
        "objects": swap("<f8", "|O "),
        "other shape": swap("(4, 3)", "(3, 4)"),
    },
    "files.json": {"empty": become(b""), "a list": become(b"[]"), "cut": cut(-3), "a number": become(b"7")},
    "summary.json": {"empty": become(b""), "a list": become(b"[]"), "no model": become(b"{}"), "NaN": become(b"NaN")},
    "latents.safetensors": {
        "empty": become(b""),
        "text": become(b"x" * 100),
        "cut": cut(-8),
        "huge header": become(b"\xff" * 16),
    },
    "half1/model.safetensors": {
        "empty": become(b""),
        "cut": cut(-8),
        "other tensors": swap("gaussians.positions", "gaussians.positionz"),
    },
    "motions": {"empty": become(b""), "cut": cut(-8), "other tensors": swap("components", "componentz")},
}


def cases(readers: dict[str, Reader]) -> dict[str, tuple[Reader, bytes]]:
    """Return all odd files by name, each with its reader."""
    kinds = {"STAR": STAR, "stack": STACK, "map": MAP, "PDB": STRUCTURE, "mmCIF": CIF, "config.yaml": CONFIG, **TABLES}
    return {
        f"{kind}: {name}": (readers[kind], change(readers[kind].seed))
        for kind, changes in kinds.items()
        for name, change in changes.items()
    }
