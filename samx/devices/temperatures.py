"""Temperatures that Linux keeps: thermal zones, and sensors of hwmon drivers."""

from __future__ import annotations

from samx.devices.files import Tree, scaled
from samx.devices.reading import Reading, Readings, unread

UNIT = "C"
ZONES = "/sys/class/thermal/thermal_zone*"
SENSORS = "/sys/class/hwmon/hwmon*"
# What a processor's temperature is called, best first: drivers of hwmon (their first sensor), types of thermal zones.
CPU_DRIVERS = ("coretemp", "k10temp", "zenpower")
CPU_ZONES = ("x86_pkg_temp", "cpu-thermal", "cpu_thermal", "CPU-therm", "soc_thermal")


def zones(tree: Tree) -> dict[str, str]:
    """Find the thermal zones: type -> file of the temperature."""
    found = ((tree.reading(f"{zone}/type").value, f"{zone}/temp") for zone in tree.find(ZONES))
    return {str(kind): path for kind, path in found if kind is not None}


def cpu_sensor(tree: Tree) -> str | None:
    """Find the file of the processor's temperature."""
    drivers = {tree.reading(f"{sensor}/name").value: f"{sensor}/temp1_input" for sensor in tree.find(SENSORS)}
    known = zones(tree)
    found = [drivers[name] for name in CPU_DRIVERS if name in drivers] + [
        known[name] for name in CPU_ZONES if name in known
    ]
    return found[0] if found else None


def celsius(tree: Tree, path: str | None) -> Reading:
    """Read a temperature that is kept in thousandths of a degree."""
    if path is None:
        return unread("no sensor of the processor is known here", UNIT)
    return tree.reading(path, scaled(1e-3), UNIT)


def zone_readings(tree: Tree, paths: dict[str, str]) -> Readings:
    """Read every zone, and the hottest of them as `temperature`."""
    each = {f"temperature_{name}": celsius(tree, path) for name, path in paths.items()}
    known = [float(reading.value) for reading in each.values() if reading.value is not None]
    hottest = Reading(max(known), UNIT) if known else unread("no thermal zone can be read", UNIT)
    return {"temperature": hottest, **each}
