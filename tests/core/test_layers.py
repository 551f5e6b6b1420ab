"""The engine is a house of floors: a module imports from its own room or from rooms below, and never in a circle."""

from graphlib import TopologicalSorter

from tools.rooms import imports, missing_rooms, upward_imports


def test_every_module_lies_in_a_room():
    assert missing_rooms() == set()


def test_nothing_imports_upwards():
    assert upward_imports() == set()


def test_nothing_imports_in_a_circle():
    # Raises CycleError, which names the circle.
    TopologicalSorter(imports()).prepare()
