"""Sensors that Linux shows: supplies of Jetsons, energy counters of x86 processors (RAPL), temperatures.

Source: the Jetson Linux developer guides' tables of power monitors; the kernel's documentation of ina3221 (mV, mA) and
of powercap (energy_uj wraps at max_energy_range_uj; since 5.10 only root may read it).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from samx.devices.adapter import Reading, Readings, unread
from samx.devices.files import Tree, scaled

SENSORS = "/sys/class/hwmon/hwmon*"
RAIL_DRIVER, CHANNELS = "ina3221", (1, 2, 3)
UNUSED = ("NC", "")  # labels of channels that nothing is connected to
# The supplies that make up what a module draws, none of which feeds another of them; the first row whose supplies are
# all there holds. What is fed by a supply of the row is left out of it: on AGX Orin the memory (VDDQ_VDD2_1V8AO) is fed
# by the 5 V supply.
TOTALS = (
    ("VDD_IN",),  # Orin Nano, Orin NX, Xavier NX
    ("POM_5V_IN",),  # Nano
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),  # Thor
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
)
NO_MONITOR = "no power monitor (ina3221) is shown in /sys/class/hwmon"
DOMAINS, PACKAGE = "/sys/class/powercap/intel-rapl:*", "package"  # AMD processors appear under this name too
JOULES = scaled(1e-6)
SCOPE = "processor packages by RAPL, without memory"
NO_RAPL = "this machine shows no RAPL counters in /sys/class/powercap"
ZONES = "/sys/class/thermal/thermal_zone*"
# What a processor's temperature is called, best first: drivers of hwmon (their first sensor), types of thermal zones.
CPU_DRIVERS = ("coretemp", "k10temp", "zenpower")
CPU_ZONES = ("x86_pkg_temp", "cpu-thermal", "cpu_thermal", "CPU-therm", "soc_thermal")

Rails = Mapping[str, tuple[str, str]]  # label of a supply -> files of its voltage and its current


def find_rails(tree: Tree) -> Rails:
    """Find the supplies that are monitored."""
    monitors = [path for path in tree.find(SENSORS) if tree.reading(f"{path}/name").value == RAIL_DRIVER]
    places = [(path, channel) for path in monitors for channel in CHANNELS]
    labels = [tree.reading(f"{path}/in{channel}_label").value for path, channel in places]
    return {
        str(label): (f"{path}/in{channel}_input", f"{path}/curr{channel}_input")
        for label, (path, channel) in zip(labels, places, strict=True)
        if label is not None and str(label).strip() not in UNUSED
    }


def rail_scope(labels: Iterable[str]) -> Reading:
    """Return what the total covers, or why there is none."""
    total = _total(labels)
    if not total:
        return unread(_no_total(labels))
    return Reading(f"module input {total[0]}" if len(total) == 1 else f"module: {' + '.join(total)}")


def powers(tree: Tree, rails: Rails) -> Readings:
    """Read every supply's power, and the module's as `power`: without one of its parts there is no total."""
    each = {label: _power(tree, *paths) for label, paths in rails.items()}
    parts = [each[label] for label in _total(rails)] or [unread(_no_total(rails), "W")]
    missing = next((part for part in parts if part.value is None), None)
    whole = missing or Reading(sum(float(part.value or 0) for part in parts), "W")
    return {"power": whole, **{f"power_{label}": reading for label, reading in each.items()}}


def _total(labels: Iterable[str]) -> tuple[str, ...]:
    return next((total for total in TOTALS if set(labels).issuperset(total)), ())


def _no_total(labels: Iterable[str]) -> str:
    known = ", ".join(labels)
    return f"which of this board's supplies make up the total is not known: {known}" if known else NO_MONITOR


def _power(tree: Tree, *paths: str) -> Reading:
    voltage, current = (tree.reading(path, scaled(1e-3), "W") for path in paths)
    if voltage.value is None or current.value is None:
        return voltage if voltage.value is None else current
    return Reading(float(voltage.value) * float(current.value), "W")


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


def zones(tree: Tree) -> dict[str, str]:
    """Find the thermal zones: type -> file of the temperature."""
    found = ((tree.reading(f"{zone}/type").value, f"{zone}/temp") for zone in tree.find(ZONES))
    return {str(kind): path for kind, path in found if kind is not None}


def cpu_sensor(tree: Tree) -> str | None:
    """Find the file of the processor's temperature."""
    drivers = {tree.reading(f"{sensor}/name").value: f"{sensor}/temp1_input" for sensor in tree.find(SENSORS)}
    known = zones(tree)
    found = [drivers.get(name) for name in CPU_DRIVERS] + [known.get(name) for name in CPU_ZONES]
    return next((path for path in found if path is not None), None)


def celsius(tree: Tree, path: str | None) -> Reading:
    """Read a temperature that is kept in thousandths of a degree."""
    if path is None:
        return unread("no sensor of the processor is known here", "C")
    return tree.reading(path, scaled(1e-3), "C")


def zone_readings(tree: Tree, paths: Mapping[str, str]) -> Readings:
    """Read every zone, and the hottest of them as `temperature`."""
    each = {f"temperature_{name}": celsius(tree, path) for name, path in paths.items()}
    known = [float(reading.value) for reading in each.values() if reading.value is not None]
    hottest = Reading(max(known), "C") if known else unread("no thermal zone can be read", "C")
    return {"temperature": hottest, **each}
