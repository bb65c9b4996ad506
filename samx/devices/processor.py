"""What Linux tells about the processor and what may be used of it. Needs no adapter: plain functions over a tree."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from statistics import fmean

from samx.devices.files import Tree, finite, scaled
from samx.devices.reading import Reading, Readings, unread

# Instruction sets that a matrix product's speed hangs on, as /proc/cpuinfo names them.
ISA_FLAGS = (
    "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
NAME_KEYS = ("model name", "Model", "Hardware")  # on x86 and on ARM boards
FLAG_KEYS = ("flags", "Features")
CPUINFO, LOADAVG, STATUS, MEMINFO = "/proc/cpuinfo", "/proc/loadavg", "/proc/self/status", "/proc/meminfo"
GOVERNORS = "/sys/devices/system/cpu/cpufreq/policy*/scaling_governor"
BOARD_FILES = (
    "/sys/class/dmi/id/sys_vendor",
    "/sys/class/dmi/id/product_name",
    "/proc/device-tree/hypervisor/compatible",
)
BUSY_LOAD = 0.5  # load average per usable CPU
# Words by which machines that are none call themselves.
VIRTUAL = ("qemu", "kvm", "vmware", "virtualbox", "innotek", "xen", "virtual machine", "amazon ec2", "google compute",
           "parallels", "bochs", "openstack", "digitalocean")  # fmt: skip
MHZ = scaled(1e-3)  # the kernel keeps kHz
TICKS = 100  # of /proc/stat in a second, on every Linux that samx runs on
STOLEN_FIELD = 8
CLOCKS: dict[str, Callable[[Sequence[float]], float]] = {"clock_min": min, "clock_mean": fmean, "clock_max": max}


def cpuinfo(tree: Tree) -> dict[str, str]:
    """Read what /proc/cpuinfo says of the first processor."""
    pairs = [line.partition(":") for line in tree.lines(CPUINFO)]
    return {key.strip(): value.strip() for key, colon, value in reversed(pairs) if colon}


def isa(tree: Tree) -> list[str]:
    """Name the relevant instruction sets this processor has, where Linux tells it."""
    found = cpuinfo(tree)
    present = {flag for key in FLAG_KEYS for flag in found.get(key, "").split()}
    return [flag for flag in ISA_FLAGS if flag in present]


def model(tree: Tree) -> Reading:
    """Name the processor, or the board that it is soldered to."""
    found = cpuinfo(tree)
    names = [found[key] for key in NAME_KEYS if found.get(key)]
    return Reading(names[0]) if names else tree.reading("/proc/device-tree/model")


def governor(tree: Tree) -> Reading:
    """Name what chooses the clocks; several, if the cores differ."""
    paths = tree.find(GOVERNORS)
    if not paths:
        return unread("this system does not show who chooses the processor's clocks")
    readings = [tree.reading(path) for path in paths]
    names = sorted({str(reading.value) for reading in readings if reading.value is not None})
    return Reading(", ".join(names)) if names else readings[0]


def affinity(tree: Tree) -> Reading:
    """List the CPUs that this process may use, as Linux writes them."""
    fields = dict(line.partition(":")[::2] for line in tree.lines(STATUS))
    allowed = fields.get("Cpus_allowed_list", "").strip()
    return Reading(allowed) if allowed else unread(f"{STATUS} does not tell which CPUs may be used")


def cpu_numbers(ranges: str) -> list[int]:
    """Take apart a list such as 0-3,8.

    Raises: ValueError.
    """
    ends = [part.split("-") for part in ranges.split(",")]
    return [cpu for part in ends for cpu in range(int(part[0]), int(part[-1]) + 1)]


def usable_cpus() -> int:
    """Count the CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_1min(tree: Tree, *, is_mac: bool = False) -> Reading:
    """Read the load average over the last minute, where the system keeps one."""
    if is_mac:
        return Reading(os.getloadavg()[0], "processes")
    return tree.reading(LOADAVG, lambda text: finite(text.split(" ")[0]), "processes")


def busy(load: float, cpus: float) -> bool:
    """Tell whether a load average, read before measuring, casts doubt on what is measured."""
    return load > BUSY_LOAD * cpus


def memory_total(tree: Tree) -> Reading:
    """Read how much memory the machine has."""
    found = re.search(r"^MemTotal:\s+(\d+) kB$", "\n".join(tree.lines(MEMINFO)), re.MULTILINE)
    return Reading(int(found[1]) // 1024, "MiB") if found else unread(f"{MEMINFO} does not tell the memory", "MiB")


def virtual_machine(tree: Tree) -> Reading:
    """Tell whether this is a virtual machine."""
    if "hypervisor" in cpuinfo(tree).get("flags", "").split():
        return Reading(True)
    said = [str(reading.value).lower() for path in BOARD_FILES if (reading := tree.reading(path)).value is not None]
    if any(word in text for word in VIRTUAL for text in said):
        return Reading(True)
    known = said or "flags" in cpuinfo(tree) or tree.lines("/proc/device-tree/model")
    return Reading(False) if known else unread("nothing tells whether this machine is a virtual one")


def stolen_time(tree: Tree) -> Reading:
    """Read how long other virtual machines were given this one's processors, since its start."""
    fields: Sequence[str] = next((line.split() for line in tree.lines("/proc/stat") if line.startswith("cpu ")), [])
    if len(fields) <= STOLEN_FIELD or not fields[STOLEN_FIELD].isdigit():
        return unread("/proc/stat does not tell stolen time", "s")
    return Reading(int(fields[STOLEN_FIELD]) / TICKS, "s")


def clocks(tree: Tree, paths: Sequence[str]) -> Readings:
    """Read the current clocks of some cores: lowest, mean, highest."""
    found = [tree.reading(path, MHZ, "MHz") for path in paths]
    known = [float(reading.value) for reading in found if reading.value is not None]
    if not known:
        reason = found[0].reason if found else "this system does not show the processor's clocks"
        return dict.fromkeys(CLOCKS, unread(str(reason), "MHz"))
    return {name: Reading(combine(known), "MHz") for name, combine in CLOCKS.items()}
