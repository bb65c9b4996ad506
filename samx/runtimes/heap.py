"""PyTorch's memory on a processor: the C library hands every large block back, and each new one comes in fresh pages.

Of an encoder of SAM's ViT-B these pages took two fifths of the time: 17.5 s a picture became 10.4.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Of glibc's mallopt(3). Other C libraries have no such function, and are left as they are.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
MOST = 2**31 - 1
USUAL = {TRIM_THRESHOLD: 64 << 20, MMAP_THRESHOLD: 32 << 20}  # the most that glibc goes to by itself


@contextmanager
def kept_heap() -> Iterator[None]:
    """Let blocks that are freed be used again, until the end: then they go back to the system."""
    library: Any = ctypes.CDLL(None) if os.name == "posix" else None
    if not hasattr(library, "mallopt"):
        yield
        return
    for option in USUAL:
        library.mallopt(option, MOST)
    try:
        yield
    finally:
        for option, value in USUAL.items():
            library.mallopt(option, value)
        library.malloc_trim(0)
