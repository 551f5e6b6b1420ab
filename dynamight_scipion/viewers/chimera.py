"""Sessions of ChimeraX."""

import os

from pwem.viewers import Chimera, ChimeraView
from pyworkflow.utils import makePath
from pyworkflow.viewer import MSG_INFO, MessageView


def chimeraView(path, commands, parent=None):
    """Write a ChimeraX script and return a view that opens it, or that says where it is if there is no ChimeraX.

    Parameters
    ----------
    path
        of the script (.cxc).
    commands
        lines of ChimeraX commands; files in them are absolute, see `quoted`.
    parent
        Tk window that a message belongs to.
    """
    makePath(os.path.dirname(path))
    with open(path, "w") as file:
        file.write("\n".join(commands) + "\n")
    program = Chimera.getProgram()
    if program and os.path.exists(program):
        return ChimeraView(os.path.abspath(path))
    return MessageView(
        f"ChimeraX was not found ({program}): install it, or the plugin scipion-em-chimera. The session is ready; "
        f"with a ChimeraX of your own, open\n{os.path.abspath(path)}",
        "ChimeraX",
        msgType=MSG_INFO,
        tkParent=parent,
    )


def quoted(path):
    """Return a path as ChimeraX's commands take it from anywhere."""
    return f'"{os.path.abspath(path)}"'


_LOOK = ("set bgColor white", "lighting soft", "graphics silhouettes true")
_SURFACE = "style surface step 1 sdLevel 4"
# Ends and middle of the scale of colours, as in the figures
_SCALE = ("#440154", "#21918c", "#fde725")


def _palette(low, high, colours=_SCALE):
    """Return a scale between two values as ChimeraX's option palette takes it, and as its command key does."""
    values = [f"{value:.3g}" for value in (low, (low + high) / 2, high)]
    pairs = list(zip(values, colours, strict=True))
    return ":".join(f"{value},{colour}" for value, colour in pairs), " ".join(f"{c}:{v}" for v, c in pairs)


def beforeAndAfter(before, after, localResolution=None, limits=None):
    """Return commands that show a map before and after the correction, in the same style.

    Parameters
    ----------
    before, after
        paths of the maps.
    localResolution
        path of a map (Å) that the corrected map is coloured by, or None.
    limits
        of its scale, Å.
    """
    commands = [
        f"open {quoted(before)} name before",
        f"open {quoted(after)} name after",
        f"volume #1,2 {_SURFACE}",
        "color #1 #b9c3ca",
        "color #2 #1f6f8b",
    ]
    if localResolution:
        low, high = limits
        palette, key = _palette(low, high, _SCALE[::-1])
        commands += [
            f"open {quoted(localResolution)} name resolution",
            f"color sample #2 map #3 palette {palette}",
            "hide #!3 models",
            f"key {key}",
        ]
    # One hides the other: they are switched by the eyes of the model panel.
    return [*commands, "hide #!1 models", *_LOOK, "view"]


def colouredByMotion(consensus, motion, gaussians, limit):
    """Return commands that show the consensus map coloured by how far it moves, and the Gaussians.

    Parameters
    ----------
    consensus, motion
        paths of the map, and of the motion (Å rms) of its voxels.
    gaussians
        paths of the Gaussians of both halves as atoms, motion in their B-factors.
    limit
        motion at the end of the scale, Å.
    """
    palette, key = _palette(0, limit)
    return [
        f"open {quoted(consensus)} name consensus",
        f"open {quoted(motion)} name motion",
        *(f"open {quoted(path)} name gaussians{half}" for half, path in enumerate(gaussians, 1)),
        f"volume #1 {_SURFACE}",
        f"color sample #1 map #2 palette {palette}",
        "hide #!2 models",
        "show #3,4 atoms",
        "style #3,4 ball",
        f"color byattribute bfactor #3,4 palette {palette}",
        "hide #!3,4 models",
        f"key {key}",
        *_LOOK,
        "view",
    ]


def volumeSeries(paths):
    """Return commands that play maps one after the other."""
    return [
        f"open {' '.join(quoted(path) for path in paths)} vseries true",
        f"volume #1 {_SURFACE}",
        "color #1 #1f6f8b",
        *_LOOK,
        "view",
        "vseries play #1 loop true direction oscillate",
    ]


def morphedModels(paths, consensus):
    """Return commands that move an atomic model through states, in the consensus map."""
    last = len(paths) + 1
    commands = [f"open {quoted(consensus)} name consensus", *(f"open {quoted(path)}" for path in paths)]
    if len(paths) > 1:
        commands.append(f"morph #2-{last} frames 10 same true method linear")
    return [*commands, f"volume #1 {_SURFACE}", "color #1 #b9c3ca", "transparency #1 70", *_LOOK, "view"]
