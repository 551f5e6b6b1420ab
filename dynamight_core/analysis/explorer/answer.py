"""What an action of the explorer returns, and the bytes in which it travels to the page."""

import json
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Answer:
    """What an action returns: plain values and arrays.

    Parameters
    ----------
    values
        anything that JSON can hold.
    arrays
        little-endian arrays.
    """

    values: dict
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def pack(self) -> bytes:
        """Return the length of a JSON head (4 bytes), the head, and the arrays that it describes."""
        arrays = {name: np.ascontiguousarray(values) for name, values in self.arrays.items()}
        described = [{"name": n, "type": a.dtype.str.lstrip("<|"), "shape": list(a.shape)} for n, a in arrays.items()]
        head = json.dumps({"values": self.values, "arrays": described}).encode()
        # Typed arrays begin at multiples of four.
        head += b" " * (-len(head) % 4)
        parts = [len(head).to_bytes(4, "little"), head]
        for values in arrays.values():
            data = values.tobytes()
            parts += [data, b"\0" * (-len(data) % 4)]
        return b"".join(parts)
