"""Writing of STAR files."""

import numpy as np


def word(value):
    """Return a value as one word of a STAR file."""
    return str(value).replace(" ", "_") or "none"


def writeLoop(file, name, columns):
    """Write one table of a STAR file; `columns` maps labels to sequences."""
    file.write(f"\n# version 30001\n\ndata_{name}\n\nloop_\n")
    for number, label in enumerate(columns, 1):
        file.write(f"_{label} #{number}\n")
    texts = []
    for values in columns.values():
        values = values.tolist() if isinstance(values, np.ndarray) else values
        isFloat = any(isinstance(value, float) for value in values)
        texts.append([f"{value:.9g}" for value in values] if isFloat else [str(value) for value in values])
    file.writelines(" ".join(row) + "\n" for row in zip(*texts))
    file.write("\n")
