"""What other packages can add by name: decoders, loss terms, input formats and sections of the report.

A name stands for "module:object", imported when it is used, so that help lists names without importing torch. A package
adds its own as entry points in its pyproject.toml::

    [project.entry-points."dynamight_core.decoders"]
    helix = "my_package.helix:HelixDecoder"

What is added: `dynamight_core.model.decoders.base.Decoder`, `dynamight_core.training.losses.LossTerm`, a function from
a path to what `dynamight_core.particles.star.read_blocks` returns, a function from
`dynamight_core.analysis.report.page.Page` to its `Part`. docs/extending.md has an example of each.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from dynamight_core.errors import InputError


class Registry(Mapping[str, str]):
    """Objects by name, imported when they are used; as a mapping, the label of each name in forms.

    Parameters
    ----------
    noun
        for one of them, in messages.
    group
        of entry points by which other packages add theirs, labelled by their names.
    own
        label and "module:object" by name, of the engine. Their names cannot be taken by others.
    """

    def __init__(self, noun: str, group: str, own: dict[str, tuple[str, str]]):
        self.noun, self.group, self._own = noun, group, own

    @cached_property
    def _points(self) -> dict[str, EntryPoint]:
        own = [EntryPoint(name, target, self.group) for name, (_, target) in self._own.items()]
        added = [point for point in entry_points(group=self.group) if point.name not in self._own]
        return {point.name: point for point in own + added}

    def __getitem__(self, name: str) -> str:
        return self._own[name][0] if name in self._own else self._points[name].name

    def __iter__(self) -> Iterator[str]:
        return iter(self._points)

    def __len__(self) -> int:
        return len(self._points)

    @property
    def help(self) -> str:
        """The sentence of a help text on what other packages added, with a space before it; nothing if none did."""
        added = [name for name in self if name not in self._own]
        return f" Also installed: {', '.join(added)}." if added else ""

    def check(self, name: str) -> None:
        """Refuse a name that no installed package has.

        Raises
        ------
        InputError
            with the names that there are.
        """
        if name not in self:
            known = f"choose one of {', '.join(self)}, or" if self else "none is installed;"
            raise InputError(f"there is no {self.noun} '{name}'; {known} install the package that adds it")

    def load(self, name: str) -> Any:
        """Import and return the object of a name.

        Raises
        ------
        InputError
            as `check`.
        """
        self.check(name)
        return self._points[name].load()


DECODERS = Registry(
    "decoder",
    "dynamight_core.decoders",
    {
        "basis": ("deformation fields", "dynamight_core.model.decoders.basis:BasisDecoder"),
        "coordinate": ("coordinate network (paper)", "dynamight_core.model.decoders.coordinate:CoordinateDecoder"),
        "bodies": ("rigid bodies", "dynamight_core.model.decoders.bodies:BodiesDecoder"),
    },
)
# Decoders that are made from an input, by the name of its option: giving that option chooses the decoder.
DECODER_OF_INPUT = {"bodies": "bodies"}
# Terms beside those that training always has. They count when the user gives them a weight.
LOSS_TERMS = Registry("loss term", "dynamight_core.loss_terms", {})
# Formats of particles beside STAR, by the ending of the file's name.
INPUT_FORMATS = Registry("input format", "dynamight_core.input_formats", {})
# Sections beside the report's own.
REPORT_SECTIONS = Registry("section of the report", "dynamight_core.report_sections", {})
