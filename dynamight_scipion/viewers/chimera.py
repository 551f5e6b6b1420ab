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
    pairs = list(zip(values, colours))
    return ":".join(f"{value},{colour}" for value, colour in pairs), " ".join(f"{c}:{v}" for v, c in pairs)


def beforeAndAfter(before, after, localResolutions=(), limits=None):
    """Return commands that show a map before and after the correction, in the same style.

    Parameters
    ----------
    before, after
        paths of the maps.
    localResolutions
        paths of maps (Å) that both maps are coloured by; one colours the map after the correction alone.
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
    if localResolutions:
        low, high = limits
        palette, key = _palette(low, high, _SCALE[::-1])
        # The last is of the map after the correction, model 2.
        first = 3 - len(localResolutions)
        for number, path in enumerate(localResolutions):
            commands += [
                f"open {quoted(path)} name resolution{first + number}",
                f"color sample #{first + number} map #{3 + number} palette {palette}",
                f"hide #!{3 + number} models",
            ]
        commands.append(f"key {key}")
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


def fieldArrows(path, points, shift, error, reference=None, difference=None):
    """Write arrows as a BILD file and return the commands that show it.

    Parameters
    ----------
    path
        of the file (.bild).
    points, shift
        (n, 3) starts and displacements, Å.
    error
        (n,) radius of a sphere at each tip, Å; not a number for none.
    reference
        path of the map that the arrows start from, or None.
    difference
        path of a map (Å) that colours it, such as the difference of the half-sets, and the end of its scale; or None.
    """
    makePath(os.path.dirname(path))
    lines = []
    for start, tip, radius in zip(points, points + shift, error):
        ends = " ".join(f"{value:.2f}" for value in (*start, *tip))
        lines += [".color 0.15 0.25 0.35", ".transparency 0", f".arrow {ends} 0.4 1.0 0.7"]
        if radius == radius:
            ball = " ".join(f"{value:.2f}" for value in (*tip, radius))
            lines += [".color 0.80 0.40 0.20", ".transparency 0.6", f".sphere {ball}"]
    with open(path, "w") as file:
        file.write("\n".join(lines) + "\n")
    commands = [f"open {quoted(path)} name arrows"]
    if reference:
        commands += [f"open {quoted(reference)} name reference", f"volume #2 {_SURFACE}", "color #2 #b9c3ca"]
    if reference and difference:
        palette, key = _palette(0, difference[1])
        commands += [f"open {quoted(difference[0])} name difference", f"color sample #2 map #3 palette {palette}"]
        commands += ["hide #!3 models", f"key {key}"]
    if reference:
        commands.append("transparency #2 60")
    return [*commands, *_LOOK, "view"]


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
