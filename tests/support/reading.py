"""One reader, one file."""

import warnings


def read_contents(reader, folder, contents):
    """Let a reader of `tools.readers` read some contents in the place of its file, which is then put back."""
    path = folder / reader.name
    path.write_bytes(contents)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(path)
    finally:
        path.write_bytes(reader.seed)
