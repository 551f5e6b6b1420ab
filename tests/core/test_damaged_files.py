"""Whatever a file holds, it is read or refused in a sentence."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynamight_core.errors import InputError
from dynamight_core.limits import limit_of_system
from tests.support.reading import read_contents
from tools.readers import make_readers, mutated

NAMES = [
    "STAR", "stack", "map", "map, gz", "PDB", "mmCIF", "cs", "npy", "states CSV", "annotations CSV", "metrics",
    "config.yaml", "latents.safetensors", "half1/model.safetensors", "files.json", "identity.safetensors",
    "summary.json", "motions",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("readers")


@pytest.fixture(scope="module")
def readers(folder):
    return make_readers(folder)


def refusal(reader, folder, contents):
    """Return the sentence with which a file is refused, or None; any other exception is raised."""
    try:
        read_contents(reader, folder, contents)
    except InputError as error:
        return str(error)
    except MemoryError as error:
        return limit_of_system(error)
    return None


def test_all_readers_are_tried(readers, folder):
    assert list(readers) == NAMES
    for reader in readers.values():
        assert refusal(reader, folder, reader.seed) is None


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_a_changed_file_is_read_or_refused(readers, folder, name, seed):
    reader = readers[name]
    told = refusal(reader, folder, mutated(reader.seed, random.Random(seed)))
    assert told is None or told.strip()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(contents=st.binary(max_size=2000))
def test_any_bytes_are_read_or_refused(readers, folder, name, contents):
    told = refusal(readers[name], folder, contents)
    assert told is None or told.strip()
