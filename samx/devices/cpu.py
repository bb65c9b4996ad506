"""The processor: what it is, what may be used of it, its clocks, load, heat and energy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from samx.devices import cgroup, mac, processor, temperatures
from samx.devices.commands import Run, run
from samx.devices.counters import risen
from samx.devices.files import Tree
from samx.devices.rapl import Rapl
from samx.devices.reading import Reading, Readings, unread

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


class CpuAdapter:
    """Read the processor of this machine, or of a recorded one. Energy only where the processor is what is measured."""

    kind = "cpu"

    def __init__(
        self, root: Path = Path("/"), run: Run = run, *, is_mac: bool = False, measured: bool = True,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:  # fmt: skip
        self._tree, self._clock = Tree(root), clock
        self._rapl = Rapl(self._tree) if measured else None
        self._is_mac = is_mac
        self._mac = mac.sysctls(run) if is_mac else {}
        self._sensor = temperatures.cpu_sensor(self._tree)
        self._clock_files = self._find_clocks()
        self._quota_file = cgroup.stat_file(self._tree)
        self._last: tuple[int, float] | None = None

    def name(self) -> str:
        """Name the processor as its maker does."""
        return str(self._mac.get("machdep.cpu.brand_string") or processor.model(self._tree).value or "unknown")

    def facts(self) -> Readings:
        """Read what does not move during a run."""
        return self._linux_facts() | self._mac_facts() | {"power_scope": self._power_scope()}

    def sample(self) -> Readings:
        """Read clocks, load, heat and energy."""
        energy = self._rapl.energy() if self._rapl else unread(NOT_MEASURED, "J")
        return {
            **processor.clocks(self._tree, self._clock_files),
            "load_1min": processor.load_1min(self._tree, is_mac=self._is_mac),
            "temperature": temperatures.celsius(self._tree, self._sensor),
            "energy": energy,
            "power": self._power(energy),
            "heat_stops": self._tree.reading(HEAT_STOPS, int, "times"),
            "quota_stops": cgroup.quota_stops(self._tree, self._quota_file),
            "stolen_time": processor.stolen_time(self._tree),
        }

    def throttled(self, samples: Sequence[Readings]) -> list[str]:
        """Say what took the processor's time or clock away."""
        return risen(samples, SENTENCES)

    def _linux_facts(self) -> dict[str, Reading]:
        tree, sets = self._tree, processor.isa(self._tree)
        return {
            "isa": Reading(" ".join(sets)) if sets else unread(f"{processor.CPUINFO} does not tell instruction sets"),
            "governor": processor.governor(tree),
            "clock_limit": tree.reading("/sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq", processor.MHZ, "MHz"),
            "cpus_usable": Reading(processor.usable_cpus(), "CPUs"),
            "affinity": processor.affinity(tree),
            "cpu_limit": cgroup.cpu_limit(tree),
            "memory": processor.memory_total(tree),
            "virtual_machine": processor.virtual_machine(tree),
        }

    def _mac_facts(self) -> dict[str, Reading]:
        facts, sets = self._mac, mac.mac_isa(self._mac)
        found = {"isa": Reading(" ".join(sets))} if sets else {}
        size = facts.get("hw.memsize", "")
        memory = {"memory": Reading(int(size) // 2**20, "MiB")} if size.isdigit() else {}
        guest = facts.get("kern.hv_vmm_present")
        return found | memory | ({"virtual_machine": Reading(guest == "1")} if guest else {})

    def _power_scope(self) -> Reading:
        return self._rapl.scope() if self._rapl else unread(NOT_MEASURED)

    def _power(self, energy: Reading) -> Reading:
        """Give the mean power since the last sample: the processor counts energy and no power."""
        if energy.value is None:
            return unread(str(energy.reason), "W")
        now, last = (self._clock(), float(energy.value)), self._last
        self._last = now
        if last is None or now[0] <= last[0]:
            return unread("the first reading of an energy counter has no power yet", "W")
        return Reading((now[1] - last[1]) / (now[0] - last[0]) * 1e9, "W")

    def _find_clocks(self) -> list[str]:
        allowed = processor.affinity(self._tree).value
        try:
            cpus = processor.cpu_numbers(str(allowed)) if allowed is not None else []
        except ValueError:
            cpus = []
        paths = (POLICY.format(cpu=cpu) for cpu in cpus[:MOST_CLOCKS])
        return [path for path in paths if self._tree.find(path)]
