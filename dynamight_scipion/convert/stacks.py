"""Image files, converted if the engine cannot read them."""

import os

from pwem.emlib.image import ImageHandler
from pyworkflow.utils import cleanPath, createLink, makePath

from .errors import ConversionError

# Formats that the engine reads; all others are converted.
MRC = (".mrc", ".mrcs", ".map", ".st")


def plainPath(path):
    """Return a path without the format that some programs append, as in particles.mrc:mrcs."""
    head, colon, tail = path.rpartition(":")
    return head if colon and tail in ("mrc", "mrcs") else path


def stackPaths(files, folder):
    """Return the path to write for each image file, and sentences about conversions."""
    paths, converted = {}, []
    cleanPath(folder)
    for number, path in enumerate(files, 1):
        plain = plainPath(path)
        if not os.path.exists(plain):
            raise ConversionError(f"The image file {plain} is missing: restore it, or import the particles again.")
        extension = os.path.splitext(plain)[1].lower()
        # STAR files of RELION cannot contain these.
        unfit = any(character.isspace() or character in "@'\"" for character in plain)
        if extension in MRC and not unfit:
            paths[path] = plain
            continue
        makePath(folder)
        target = os.path.join(folder, f"stack{number:04d}.mrcs")
        if extension in MRC:
            createLink(plain, target)
        else:
            ImageHandler().convertStack(path, target)
            converted.append(plain)
        paths[path] = target
    if not converted:
        return paths, []
    return paths, [f"{len(converted)} stacks were converted to MRC, e.g. {converted[0]}."]
