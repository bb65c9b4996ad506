"""The circumstances of a measurement: processor, what else it was doing, libraries."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from samx.devices import cpu
from samx.devices.adapter import Reading
from samx.devices.files import Tree
from samx.validators.environment import environment

LIBRARIES = ("onnxruntime", "torch", "onnx", "segment-anything")
UNKNOWN = "unknown"
HERE = Tree()


def benchmark_environment(tree: Tree = HERE) -> dict[str, str]:
    """Describe this machine and its state, in words."""
    load = cpu.load_1min(tree, is_mac=sys.platform == "darwin")
    return {
        **environment(),
        "isa": " ".join(cpu.isa(tree)) or UNKNOWN,
        "governor": _words(cpu.governor(tree)),
        "cpus_usable": str(cpu.usable_cpus()),
        "load_1min": _words(load),
        **{library: _version(library) for library in LIBRARIES},
    }


def busy(facts: Mapping[str, str]) -> bool:
    """Tell whether something else was running when the environment was read."""
    if facts["load_1min"] == UNKNOWN:
        return False
    return cpu.busy(float(facts["load_1min"]), int(facts["cpus_usable"]))


def _words(reading: Reading) -> str:
    return UNKNOWN if reading.value is None else str(reading.value)


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"
