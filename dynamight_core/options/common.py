"""Options that several stages share, written once for all of them."""

from typing import Any

from dynamight_core.options.declare import basic, option

# Random generators take no others.
_MAX_SEED = 2**32 - 1


def seed(
    help: str = "Random seed; the same seed on the same machine gives the same numbers.", label: str = "Random seed"
) -> Any:
    """Declare the seed of a stage."""
    return option(0, help, label=label, group="Run", at_least=0, at_most=_MAX_SEED)


def device(default: str = "auto") -> Any:
    """Declare what computes."""
    text = "Processor: auto (a GPU if available), auto:N (GPU N if any is available), cpu, cuda, or GPU numbers."
    more = "Several GPUs, such as 0,1,2,3, share train, infer, reconstruct and control, with a process on each."
    return basic(default, text, more=more, group="Run")


def threads() -> Any:
    """Declare the number of CPU threads."""
    return basic(
        None,
        "CPU threads of all processes on a machine. All available threads are used if omitted.",
        group="Run",
        at_least=1,
    )


def batch_size(default: int, more: str = "", group: str = "") -> Any:
    """Declare how many particles are worked on at a time."""
    text = "Number of particles per step; lower it if memory runs out."
    return basic(default, text, more=more, label="Batch size", group=group, at_least=1)


def clusters(label: str = "") -> Any:
    """Declare a number of clusters."""
    return basic(
        None,
        "Number of clusters of similar conformation, numbered by their centres on motion 1.",
        more="Motion is mostly continuous: clusters divide it, and their number is your choice.",
        label=label,
        group="Clusters",
        at_least=0,
    )


def mixture() -> Any:
    """Declare the way in which clusters are found."""
    return option(
        False,
        "Cluster by a mixture of normal distributions instead of k-means.",
        more="With --clusters 0, the Bayesian information criterion chooses the number.",
        group="Clusters",
    )


def shrink() -> Any:
    """Declare whether motion counts as far as it is supported."""
    return basic(
        True,
        "Down-weight each mode of motion by its support from validation particles.",
        more="No motion is used if the verdict is 'not supported'. With this option off, motion is used as learned.",
        label="Down-weight motion not supported by validation particles?",
        group="Motion",
    )


def use_unsupported_motion() -> Any:
    """Declare whether results of motion are written that a run does not support."""
    return basic(
        False,
        "Write these results although the conclusion of the run is that its motion is not supported, or undecided.",
        more="They may show noise.",
        label="Use motion that is not supported?",
        group="Run",
    )


ORIGINS = {
    "auto": "best fit to the map",
    "corner": "first voxel of the map",
    "centre": "centre of the box",
    "map": "map header",
}


def origin() -> Any:
    """Declare where atomic coordinates are zero."""
    return option(
        "auto",
        "Origin of atomic coordinates: auto (best fit), corner (first voxel), centre (of the box), or map (header).",
        more="The best fit places the atoms in the most density; the log reports its origin. Models built in a map "
        "without a header origin usually count from its first voxel, models built in Scipion from the centre.",
        label="Coordinate origin of the atomic model",
        group="Atomic model",
        choices=ORIGINS,
    )
