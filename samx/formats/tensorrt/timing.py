"""The timing cache: what TensorRT learnt about this GPU's kernels, kept so that the next build is faster."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from samx.artifacts.private import cache_directory, read_cached, write_cached

if TYPE_CHECKING:
    import tensorrt_rtx as trt


def timing_cache_path(target: str, version: str, gpu: str) -> Path:
    """Name the cache of one library version on one GPU."""
    return cache_directory() / "timing" / f"{target}-{named(version, gpu)}.cache"


def named(*parts: str) -> str:
    """Give facts a name that any file system takes."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def attach(config: trt.IBuilderConfig, path: Path) -> str:
    """Give the builder the kept cache, or an empty one; says which."""
    kept = read_cached(path)
    for data, words in ((kept, "kept"), (b"", "new")):
        if data is not None and _set(config, data):
            return words
    return "refused"


def keep(config: trt.IBuilderConfig, path: Path) -> str | None:
    """Write the builder's cache whole or not at all; says why if it could not."""
    cache: trt.ITimingCache | None = config.get_timing_cache()
    if cache is None:
        return "the library gave none"
    return write_cached(path, bytes(memoryview(cache.serialize())))


def _set(config: trt.IBuilderConfig, data: bytes) -> bool:
    cache: trt.ITimingCache | None = config.create_timing_cache(data)
    return cache is not None and bool(config.set_timing_cache(cache, False))
