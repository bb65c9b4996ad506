"""Zip archives whose bytes hang on their content alone: no times, no owners, names in order."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

START = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold
UNIX = 3
# What may be done with an entry, by the end of its name: folders, programs, everything else.
MODES: Mapping[str, int] = {"/": 0o040755, ".py": 0o100755, ".sh": 0o100755, "": 0o100644}


def zipped(files: Mapping[str, bytes]) -> bytes:
    """Write an archive; a name that ends with '/' is a folder."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            archive.writestr(_entry(name), files[name])
    return buffer.getvalue()


def npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Write arrays as numpy.savez_compressed does."""
    return zipped({f"{name}.npy": _npy(value) for name, value in arrays.items()})


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, START)
    entry.create_system, entry.compress_type = UNIX, zipfile.ZIP_DEFLATED
    entry.external_attr = next(mode for ending, mode in MODES.items() if name.endswith(ending)) << 16
    return entry


def _npy(value: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(value), allow_pickle=False)
    return buffer.getvalue()
