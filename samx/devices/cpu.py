"""The processor: what it is, what may be used of it, its clocks, load, heat and energy (RAPL).

Source: the kernel's documentation of powercap (energy_uj wraps at max_energy_range_uj; root alone reads it since 5.10).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from statistics import fmean

from samx.devices.adapter import Adapter, Reading, Readings, Run, Tree, finite, risen, run, scaled, unread
from samx.devices.apple import mac_isa, mac_memory, sysctls

MOST_CLOCKS = 16  # of so many cores the clock is read: a sample must stay cheap on a server
POLICY = "/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq"
HEAT_STOPS = "/sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count"
NOT_MEASURED = "not read while another device is measured"
# Counters that only grow -> the least rise that counts, and what it means.
SENTENCES = {
    "heat_stops": (1, "the processor was slowed down for its heat {by} times"),
    "quota_stops": (1, "the CPU limit of this container stopped the process {by} times"),
    "stolen_time": (0.1, "other virtual machines were given the processors for {by} s"),
}
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
DOMAINS, PACKAGE = "/sys/class/powercap/intel-rapl:*", "package"  # AMD processors appear under this name too
JOULES = scaled(1e-6)
SCOPE = "processor packages by RAPL, without memory"
NO_RAPL = "this machine shows no RAPL counters in /sys/class/powercap"
# What a processor's temperature is called, best first: drivers of hwmon (their first sensor), types of thermal zones.
CPU_DRIVERS = ("coretemp", "k10temp", "zenpower")
CPU_ZONES = ("x86_pkg_temp", "cpu-thermal", "cpu_thermal", "CPU-therm", "soc_thermal")
MHZ = scaled(1e-3)  # the kernel keeps kHz
TICKS = 100  # of /proc/stat in a second, on every Linux that samx runs on
STOLEN_FIELD = 8
CLOCKS: dict[str, Callable[[Sequence[float]], float]] = {"clock_min": min, "clock_mean": fmean, "clock_max": max}
MEMBERSHIP, MOUNT = "/proc/self/cgroup", "/sys/fs/cgroup"
STOPS, NO_COUNT = "nr_throttled", "no CPU limit is counted for this process"


class Rapl:
    """Count the energy of all processor packages from the first call on, across the counters' ends."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        names = {path: str(tree.reading(f"{path}/name").value) for path in tree.find(DOMAINS)}
        self._domains = [path for path, name in names.items() if name.startswith(PACKAGE)]
        self._last: dict[str, float] = {}
        self._total = 0.0

    def scope(self) -> Reading:
        """Return what is counted, if anything."""
        energy = self.energy()
        return Reading(SCOPE) if energy.value is not None else unread(energy.reason)

    def energy(self) -> Reading:
        """Read the energy since the first call."""
        if not self._domains:
            return unread(NO_RAPL, "J")
        now = {path: self._tree.reading(f"{path}/energy_uj", JOULES, "J") for path in self._domains}
        for reading in now.values():
            if reading.value is None:
                return reading
        for path, reading in now.items():
            self._add(path, float(reading.value or 0))
        return Reading(self._total, "J")

    def _add(self, path: str, value: float) -> None:
        step = value - self._last.get(path, value)
        if step < 0:  # the counter began anew
            step += float(self._tree.reading(f"{path}/max_energy_range_uj", JOULES).value or -step)
        self._total += step
        self._last[path] = value


class CpuAdapter(Adapter):
    """Read the processor of this machine, or of a recorded one. Energy only where the processor is what is measured."""

    kind = "cpu"

    def __init__(
        self, root: Path = Path("/"), run: Run = run, *, is_mac: bool = False, measured: bool = True,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:  # fmt: skip
        self._tree, self._clock = Tree(root), clock
        self._rapl = Rapl(self._tree) if measured else None
        self._is_mac = is_mac
        self._mac = sysctls(run) if is_mac else {}
        self._sensor = cpu_sensor(self._tree)
        self._clock_files = self._find_clocks()
        self._quota_file = stat_file(self._tree)
        self._last: tuple[int, float] | None = None

    def name(self) -> str:
        """Return the processor's name."""
        return str(self._mac.get("machdep.cpu.brand_string") or model(self._tree).value or "unknown")

    def facts(self) -> Readings:
        """Read what does not move during a run."""
        scope = self._rapl.scope() if self._rapl else unread(NOT_MEASURED)
        return self._linux_facts() | self._mac_facts() | {"power_scope": scope}

    def sample(self) -> Readings:
        """Read clocks, load, heat and energy."""
        energy = self._rapl.energy() if self._rapl else unread(NOT_MEASURED, "J")
        return {
            **clocks(self._tree, self._clock_files),
            "load_1min": load_1min(self._tree, is_mac=self._is_mac),
            "temperature": self._tree.celsius(self._sensor),
            "energy": energy,
            "power": self._power(energy),
            "heat_stops": self._tree.reading(HEAT_STOPS, int, "times"),
            "quota_stops": quota_stops(self._tree, self._quota_file),
            "stolen_time": stolen_time(self._tree),
        }

    def throttled(self, samples: Sequence[Readings]) -> list[str]:
        """Return what took the processor's time or clock away."""
        return risen(samples, SENTENCES)

    def _linux_facts(self) -> dict[str, Reading]:
        tree, sets = self._tree, isa(self._tree)
        return {
            "isa": Reading(" ".join(sets)) if sets else unread(f"{CPUINFO} does not tell instruction sets"),
            "governor": governor(tree),
            "clock_limit": tree.reading("/sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq", MHZ, "MHz"),
            "cpus_usable": Reading(usable_cpus(), "CPUs"),
            "affinity": affinity(tree),
            "cpu_limit": cpu_limit(tree),
            "memory": memory_total(tree),
            "virtual_machine": virtual_machine(tree),
        }

    def _mac_facts(self) -> dict[str, Reading]:
        facts, sets = self._mac, mac_isa(self._mac)
        found = {"isa": Reading(" ".join(sets))} if sets else {}
        memory, guest = mac_memory(facts), facts.get("kern.hv_vmm_present")
        found |= {"memory": memory} if memory.value is not None else {}
        return found | ({"virtual_machine": Reading(guest == "1")} if guest else {})

    def _power(self, energy: Reading) -> Reading:
        """Return the mean power since the last sample: the processor counts energy and no power."""
        if energy.value is None:
            return unread(energy.reason, "W")
        now, last = (self._clock(), float(energy.value)), self._last
        self._last = now
        if last is None or now[0] <= last[0]:
            return unread("the first reading of an energy counter has no power yet", "W")
        return Reading((now[1] - last[1]) / (now[0] - last[0]) * 1e9, "W")

    def _find_clocks(self) -> list[str]:
        allowed = affinity(self._tree).value
        try:
            cpus = cpu_numbers(str(allowed)) if allowed is not None else []
        except ValueError:
            cpus = []
        paths = (POLICY.format(cpu=cpu) for cpu in cpus[:MOST_CLOCKS])
        return [path for path in paths if self._tree.find(path)]


def cpu_sensor(tree: Tree) -> str | None:
    """Find the file of the processor's temperature."""
    known = tree.zones()
    found = [f"{sensor}/temp1_input" for driver in CPU_DRIVERS for sensor in reversed(tree.sensors(driver))]
    return next(iter([*found, *(known[name] for name in CPU_ZONES if name in known)]), None)


def cpuinfo(tree: Tree) -> dict[str, str]:
    """Read what /proc/cpuinfo says of the first processor."""
    pairs = [line.partition(":") for line in tree.lines(CPUINFO)]
    return {key.strip(): value.strip() for key, colon, value in reversed(pairs) if colon}


def isa(tree: Tree) -> list[str]:
    """List the relevant instruction sets of this processor, where Linux tells them."""
    found = cpuinfo(tree)
    present = {flag for key in FLAG_KEYS for flag in found.get(key, "").split()}
    return [flag for flag in ISA_FLAGS if flag in present]


def model(tree: Tree) -> Reading:
    """Return the processor's name, or that of the board that it is soldered to."""
    found = cpuinfo(tree)
    names = [found[key] for key in NAME_KEYS if found.get(key)]
    return Reading(names[0]) if names else tree.reading("/proc/device-tree/model")


def governor(tree: Tree) -> Reading:
    """Return what chooses the clocks; several, if the cores differ."""
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
    """Return whether a load average, read before measuring, casts doubt on what is measured."""
    return load > BUSY_LOAD * cpus


def memory_total(tree: Tree) -> Reading:
    """Read how much memory the machine has."""
    found = re.search(r"^MemTotal:\s+(\d+) kB$", "\n".join(tree.lines(MEMINFO)), re.MULTILINE)
    return Reading(int(found[1]) // 1024, "MiB") if found else unread(f"{MEMINFO} does not tell the memory", "MiB")


def virtual_machine(tree: Tree) -> Reading:
    """Return whether this is a virtual machine."""
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
        return dict.fromkeys(CLOCKS, unread(reason, "MHz"))
    return {name: Reading(combine(known), "MHz") for name, combine in CLOCKS.items()}


def cpu_limit(tree: Tree) -> Reading:
    """Read the limit in CPUs that holds here, the tightest of all groups around this process."""
    limits = [_share(tree, f"{group}/cpu.max") for group in _groups(tree, unified=True)] + [
        _share(tree, f"{group}/cpu.cfs_quota_us", f"{group}/cpu.cfs_period_us")
        for group in _groups(tree, unified=False)
    ]
    known = [limit for limit in limits if limit is not None]
    return Reading(round(min(known), 3), "CPUs") if known else Reading("none")


def stat_file(tree: Tree) -> str | None:
    """Find the file that counts how often a limit stopped this process's group."""
    files = [f"{group}/cpu.stat" for unified in (True, False) for group in _groups(tree, unified)]
    return next((file for file in files if any(line.startswith(STOPS) for line in tree.lines(file))), None)


def quota_stops(tree: Tree, file: str | None) -> Reading:
    """Read how often the limit stopped this process's group."""

    def stops(text: str) -> int:
        return int(dict(line.partition(" ")[::2] for line in text.splitlines()).get(STOPS, ""))

    return unread(NO_COUNT, "times") if file is None else tree.reading(file, stops, "times")


def _groups(tree: Tree, unified: bool) -> list[str]:
    """Find the folders of the groups around this process, innermost first."""
    lines = [line.split(":", 2) for line in tree.lines(MEMBERSHIP) if line.count(":") >= 2]
    inside = {controllers: path for _, controllers, path in lines}
    names = [name for name in inside if (name == "" if unified else "cpu" in name.split(","))]
    if not names:
        return []
    mount = MOUNT if unified else f"{MOUNT}/cpu"
    path = PurePosixPath(inside[names[0]])
    return [f"{mount}{group}".rstrip("/") for group in (path, *path.parents)]


def _share(tree: Tree, *files: str) -> float | None:
    """Divide quota by period, which stand in one file or two; without a quota it is -1 or the word max."""
    try:
        quota, period = map(int, " ".join(map(tree.text, files)).split())
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 and period > 0 else None
