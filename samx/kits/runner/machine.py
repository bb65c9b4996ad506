"""The machine: small files and commands; what cannot be read is null, with the reason."""

from __future__ import annotations

import glob
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from samx.kits.runner.kit import Json, Kit, message

COMMAND_SECONDS = 10
CLOCKS, MODEL = "/sys/devices/system/cpu/cpu0/cpufreq", r"(?:model name|Model|Hardware)\s*: (.+)"
SMI = ("nvidia-smi", "--id=0", "--format=csv,noheader,nounits")
# Kind and part, name, unit, where (a file, also by a pattern; a command; a function), what to take of it, factor.
# The first fact of a kind names the device.
PROBES: tuple[tuple[str, str, str | None, Any, str, float], ...] = (
    ("cpu facts", "model", None, "/proc/cpuinfo", MODEL, 1),
    ("cpu facts", "governor", None, f"{CLOCKS}/scaling_governor", "(.+)", 1),
    ("cpu facts", "clock_limit", "MHz", f"{CLOCKS}/scaling_max_freq", r"(\d+)", 1e-3),
    ("cpu facts", "cpus_usable", "CPUs", lambda: usable_cpus(), r"(\d+)", 1),
    ("cpu facts", "memory", "MiB", "/proc/meminfo", r"MemTotal:\s*(\d+)", 1 / 1024),
    ("cpu moving", "load_1min", "processes", lambda: os.getloadavg()[0], "(.+)", 1),
    ("cpu moving", "clock_first", "MHz", f"{CLOCKS}/scaling_cur_freq", r"(\d+)", 1e-3),
    ("jetson facts", "model", None, "/proc/device-tree/model", r"(.*Jetson[^\0]*)", 1),
    ("jetson facts", "release", None, "/etc/nv_tegra_release", r"(R\d+ \(release\), REVISION: [\d.]+)", 1),
    ("jetson facts", "power_mode", None, ("nvpmodel", "-q"), r"NV Power Mode: *(.+)", 1),
    ("jetson moving", "clock_gpu", "MHz", "/sys/class/devfreq/*g[apmv]*/cur_freq", r"(\d+)", 1e-6),
    ("nvidia facts", "gpu", None, (*SMI, "--query-gpu=name"), "(.+)", 1),
    ("nvidia facts", "driver", None, (*SMI, "--query-gpu=driver_version"), "(.+)", 1),
    ("nvidia moving", "clock_sm", "MHz", (*SMI, "--query-gpu=clocks.sm"), r"([\d.]+)", 1),
    ("nvidia moving", "power", "W", (*SMI, "--query-gpu=power.draw"), r"([\d.]+)", 1),
    ("nvidia moving", "temperature", "C", (*SMI, "--query-gpu=temperature.gpu"), r"([\d.]+)", 1),
    ("apple facts", "chip", None, ("/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"), "(Apple.+)", 1),
    ("apple facts", "macos", None, ("/usr/bin/sw_vers", "-productVersion"), "(.+)", 1),
    ("apple moving", "thermal_warning", None, ("/usr/bin/pmset", "-g", "therm"), r"(?s)(.+)", 1),
)  # fmt: skip


def usable_cpus() -> int:
    """Count the CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def readings(part: str) -> Json:
    """Read one part of what there is to know, by kind and name. A kind of which nothing can be read is not here."""
    found: Json = {}
    for of, *rest in PROBES:
        kind, which = of.split()
        if which == part:
            found.setdefault(kind, {})[rest[0]] = reading(*rest[1:])
    return {kind: told for kind, told in found.items() if any(entry["reason"] is None for entry in told.values())}


def reading(unit: str | None, where: Any, pattern: str, factor: float) -> Json:
    """Read one value, or say why there is none."""
    try:
        match = re.search(pattern, raw_text(where))
        if match is None:
            return {"value": None, "unit": unit, "reason": f"{_name(where)}: tells something else"}
        text = " ".join(match[1].split())
        return {"value": float(text) * factor if unit else text, "unit": unit, "reason": None}
    except (OSError, ValueError, AttributeError, subprocess.SubprocessError) as cause:
        words = getattr(cause, "strerror", None) or message(cause)
        return {"value": None, "unit": unit, "reason": f"{_name(where)}: {words}"}


def _name(where: Any) -> str:
    """Name a source: a file, a command, or the system itself."""
    return "this system" if callable(where) else where if isinstance(where, str) else " ".join(where)


def raw_text(where: Any) -> str:
    """Give what a function, a command or the first file that fits has to say."""
    if callable(where):
        return str(where())
    if isinstance(where, str):
        return Path(next(iter(sorted(glob.glob(where))), where)).read_bytes().decode(errors="replace")
    done = subprocess.run(where, capture_output=True, text=True, errors="replace", timeout=COMMAND_SECONDS, check=True,
                          stdin=subprocess.DEVNULL)  # fmt: skip
    return done.stdout


def device_record(kit: Kit, place: Json, before: Json, after: Json) -> Json:
    """Say what was measured on, and how it fared."""
    blank, facts = kit.says["report"]["device"], readings("facts")
    kinds = {
        kind: {"name": str(next(iter(told.values()))["value"] or platform.machine() or "unknown"), "facts": told,
               "before": before.get(kind, {}), "after": after.get(kind, {})}
        for kind, told in facts.items()
    }  # fmt: skip
    load, cpus = before.get("cpu", {}).get("load_1min", {}).get("value"), usable_cpus()
    busy = load is not None and load > kit.says["latency"]["busy_load"] * cpus
    line = [f"the machine was busy before the run: load {load:.2f} on {cpus:g} usable CPUs"] if busy else []
    flags = [*blank["flags"], *line]
    return {**blank, "requested": place["device"], "environment": environment(kit, place), "kinds": kinds,
            "flags": flags}  # fmt: skip


def environment(kit: Kit, place: Json) -> dict[str, str]:
    """Name this machine and the libraries that worked."""
    cpu = reading(None, "/proc/cpuinfo", MODEL, 1)["value"] or platform.processor() or "unknown"
    version = getattr(sys.modules.get(place["library"]), "__version__", "unknown")
    return {"platform": platform.platform(), "machine": platform.machine() or "unknown", "cpu": str(cpu),
            "cpu_count": str(os.cpu_count()), "python": platform.python_version(), "numpy": np.__version__,
            place["library"]: str(version), "samx": kit.says["samx"]}  # fmt: skip
