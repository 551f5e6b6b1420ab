"""STAR files: text goes through unchanged, and what is wrong is said with its line."""

import contextlib
import time

import numpy as np
import pytest

from dynamight_core.errors import InputError
from dynamight_core.particles.metadata import read_particles
from dynamight_core.particles.star import _BLANK, read_blocks, unquoted, with_numbers, write_star

HEAD = "data_particles\n\nloop_\n_rlnImageName #1\n_rlnMicrographName #2\n"


def read(folder, text):
    path = folder / "p.star"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_blocks(path)


VALUES = [
    "O'Neil.mrc",
    "grid#2/m.mrc",
    "größe.mrc",
    '"my mic.mrc"',
    "'a b'",
    "data_2/m.mrc",
    'a"b',
    "#x",
    "nan",
    "<NA>",
    "1e5",
]


@pytest.mark.parametrize("value", VALUES)
def test_text_comes_back_letter_by_letter(tmp_path, value):
    table = read(tmp_path, f"{HEAD}1@a.mrcs {value}\n2@a.mrcs m.mrc\n")["particles"]
    assert table["rlnMicrographName"].tolist() == [value, "m.mrc"]
    write_star(tmp_path / "q.star", table, None)
    assert read_blocks(tmp_path / "q.star")["particles"].equals(table)
    assert value in (tmp_path / "q.star").read_text()


def test_bytes_that_are_not_utf8_come_back(tmp_path):
    table = read(tmp_path, HEAD.encode() + b"1@a.mrcs m\xfcller.mrc\n")["particles"]
    write_star(tmp_path / "q.star", table, None)
    assert b"\tm\xfcller.mrc\n" in (tmp_path / "q.star").read_bytes()


def test_any_words_come_back(tmp_path):
    generator = np.random.default_rng(0)
    for _ in range(200):
        codes = generator.integers(0x21, generator.choice([0x7F, 0x300, 0x10000]), size=(20, 6))
        words = ["".join(map(chr, row)) for row in codes]
        words = [word for word in words if word.isprintable() and not _BLANK.search(word)]
        words = [word for word in words if word.encode("utf-8", "ignore").decode() == word] or ["x"]
        table = read(tmp_path, HEAD + "".join(f"1@a {word}\n" for word in words))["particles"]
        assert table["rlnMicrographName"].tolist() == words


def test_any_bytes_are_a_table_or_a_sentence(tmp_path):
    generator = np.random.default_rng(0)
    text = np.frombuffer((HEAD + "1@a.mrcs m\n2@'a b' m\n").encode(), np.uint8)
    for _ in range(500):
        mutated = text.copy()
        at = generator.integers(0, len(text), 5)
        mutated[at] = generator.choice(np.frombuffer(b"\n _#\"'\xff\x00dl;", np.uint8), 5)
        with contextlib.suppress(InputError):
            read(tmp_path, mutated.tobytes()[generator.integers(0, 20) :])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (f"{HEAD}1@a.mrcs m\n\n{HEAD}2@a.mrcs m\n", "two blocks data_particles"),
        (f"{HEAD}1@my data/a.mrcs m\n", "3 values in line 6 for 2 columns; .*blanks in quotes"),
        (f"{HEAD}1@a.mrcs\n", "1 values in line 6 for 2 columns"),
        (f"{HEAD}1@a.mrcs m\n2@a.mrcs\n3@a.mrcs m m\n", "line 7"),
        ("data_p\nloop_\n_a\n_a\n1 2\n", "column a twice"),
        ("data_p\n_a\n", "no value for _a"),
        (b"\0\0", "not a text file"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, text, sentence):
    with pytest.raises(InputError, match=sentence):
        read(tmp_path, text)


def test_other_line_ends_comments_and_single_values_are_read(tmp_path):
    text = "\ufeff# version 30001\n\ndata_optics\n\n_rlnVoltage 300.0 # kV\n\n" + HEAD + "# a\n1@a m\n\n2@a m\n"
    blocks = read(tmp_path, text.replace("\n", "\r\n"))
    assert blocks["optics"]["rlnVoltage"].tolist() == ["300.0"]
    assert blocks["particles"]["rlnImageName"].tolist() == ["1@a", "2@a"]
    assert with_numbers(blocks["optics"])["rlnVoltage"].tolist() == [300.0]
    assert unquoted("'a b'") == "a b"


def test_40000_stacks_are_found_in_a_second(particle_files):
    files = particle_files
    files.stack()
    source = files.folder / "particles.mrcs"
    n, folder = 40_000, files.folder / "many"
    folder.mkdir()
    for number in range(n):
        (folder / f"{number}.mrcs").symlink_to(source) if number % 2 else (folder / f"{number}.mrcs").touch()
    rows = {label: [values[0]] * n for label, values in files.rows().items()}
    star = files.star(rows | {"rlnImageName": [f"1@many/{number}.mrcs" for number in range(n)]})
    started = time.process_time()
    particles = read_particles(star)
    assert time.process_time() - started < 3
    assert len(particles.stacks) == n // 2 + 1
