"""Pairs of a TensorRT version and a GPU that are publicly known to build engines which compute something else."""

from __future__ import annotations

import re
from dataclasses import dataclass

from samx.formats.tensorrt.library import Library, Version, version_of
from samx.formats.tensorrt.stamp import Machine

BLACKWELL = re.compile(r"(?:10|12)\.\d+")


@dataclass(frozen=True)
class WrongBuild:
    """Name a version, the GPUs, what they build wrongly, and who reported it. The version's numbers are the first."""

    version: Version
    what: str
    source: str
    name: re.Pattern[str] | None = None  # of the GPU
    compute_capability: re.Pattern[str] | None = None

    def affects(self, version: Version, machine: Machine) -> bool:
        """Tell whether a machine's GPU and library are such a pair."""
        if version[: len(self.version)] != self.version:
            return False
        named = self.name is not None and self.name.search(machine.gpu or "")
        capable = self.compute_capability and self.compute_capability.fullmatch(machine.compute_capability or "")
        return bool(named or capable)


L4, TENSORRT = re.compile(r"\bL4\b"), "https://github.com/NVIDIA/TensorRT/issues"
BATCHES = "calls of more than one picture, of attention in float32 and float16"
WRONG_BUILDS: tuple[WrongBuild, ...] = (
    WrongBuild((10, 4), "an image encoder with attention, in float32", f"{TENSORRT}/4742", re.compile(r"\bA6000\b")),
    WrongBuild((10, 7), "attention in float32", f"{TENSORRT}/4333", L4),
    WrongBuild((10, 11), BATCHES, f"{TENSORRT}/4853", L4, BLACKWELL),
    WrongBuild((11, 1), BATCHES, f"{TENSORRT}/4853", L4, BLACKWELL),
    WrongBuild(
        (10, 13, 3), "projections that share a norm's output", "https://github.com/NVIDIA/TensorRT-Edge-LLM/issues/151",
        re.compile(r"\bThor\b"), re.compile(r"11\.0"),
    ),
    WrongBuild((10, 16), "attention as one operator", f"{TENSORRT}/4732", re.compile(r"\bRTX 3090\b")),
)  # fmt: skip


def known_wrong(library: Library, machine: Machine) -> list[str]:
    """Say in words what a library is known to build wrongly on a machine's GPU; TensorRT for RTX has no such report."""
    if library.target != "trt":
        return []
    return [
        f"{library.title} {machine.version} is known to build wrong engines on {machine.gpu}: {entry.what} "
        f"({entry.source}); the engine is compared with PyTorch's masks at every size of its profile"
        for entry in WRONG_BUILDS
        if entry.affects(version_of(machine.version), machine)
    ]
