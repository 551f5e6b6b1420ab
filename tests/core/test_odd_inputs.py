"""A corpus of files that are almost right: what is said of each of them."""

import csv
import re
from pathlib import Path

import pytest

from dynamight_core.errors import InputError
from tests.support.odd_inputs import cases
from tests.support.reading import read_contents
from tools.readers import make_readers

# By name of the case; "read" where the file is read. Paths begin at the folder of the file.
EXPECTED = Path(__file__).with_name("odd_inputs.tsv")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("odd")


@pytest.fixture(scope="module")
def odd(folder):
    return cases(make_readers(folder))


def said_of(reader, folder, contents):
    """Return what is said of a file, in one line, with paths from the folder."""
    try:
        read_contents(reader, folder, contents)
    except InputError as error:
        # Positions depend on the length of the folder's name.
        return re.sub(r"position \d+", "position N", " ".join(str(error).replace(f"{folder}/", "").split()))
    return "read"


def expected():
    with open(EXPECTED, encoding="utf-8", newline="") as file:
        return dict(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_the_corpus_is_whole(odd):
    assert list(odd) == list(expected())
    assert len(odd) >= 120


@pytest.mark.parametrize("name", expected())
def test_an_odd_file_is_read_or_refused_in_the_expected_sentence(odd, folder, name):
    assert said_of(odd[name][0], folder, odd[name][1]) == expected()[name]
