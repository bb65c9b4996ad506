"""What a Jetson draws: its supplies as the power monitors (INA3221) on the module name them.

Source: the Jetson Linux developer guides' tables of power monitors, and the kernel's documentation of ina3221 (mV, mA).
"""

from __future__ import annotations

from dataclasses import dataclass

from samx.devices.files import Tree, scaled
from samx.devices.reading import Reading, unread

MONITORS, DRIVER, CHANNELS = "/sys/class/hwmon/hwmon*", "ina3221", (1, 2, 3)
UNUSED = ("NC", "")  # labels of channels that nothing is connected to
UNIT = "W"


@dataclass(frozen=True)
class Total:
    """Name the supplies that make up what the module draws, none of which feeds another of them."""

    rails: tuple[str, ...]
    scope: str


# One row a family of boards; the first whose supplies are all there holds. What is fed by a supply of the row is left
# out of it: on AGX Orin the memory (VDDQ_VDD2_1V8AO) is fed by the 5 V supply.
TOTALS = (
    Total(("VDD_IN",), "module input VDD_IN"),  # Orin Nano, Orin NX, Xavier NX
    Total(("POM_5V_IN",), "module input POM_5V_IN"),  # Nano
    Total(("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), "module: VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"),  # AGX Orin
    Total(("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"), "module: VDD_GPU + VDD_CPU_SOC_MSS + VIN_SYS_5V0"),  # Thor
    Total(
        ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"), "module: GPU + CPU + SOC + CV + VDDRQ + SYS5V"
    ),  # AGX Xavier
)  # fmt: skip
NO_MONITOR = "no power monitor (ina3221) is shown in /sys/class/hwmon"


@dataclass(frozen=True)
class Rail:
    """Say where voltage and current of one supply are read."""

    label: str
    voltage: str
    current: str


def find_rails(tree: Tree) -> list[Rail]:
    """Find the supplies that are monitored."""
    monitors = [path for path in tree.find(MONITORS) if tree.reading(f"{path}/name").value == DRIVER]
    labels = {
        (path, channel): tree.reading(f"{path}/in{channel}_label").value for path in monitors for channel in CHANNELS
    }
    return [
        Rail(str(label), f"{path}/in{channel}_input", f"{path}/curr{channel}_input")
        for (path, channel), label in labels.items()
        if label is not None and str(label).strip() not in UNUSED
    ]


def total_of(rails: list[Rail]) -> Total | None:
    """Find the row that tells what the whole module draws."""
    labels = {rail.label for rail in rails}
    return next((total for total in TOTALS if labels.issuperset(total.rails)), None)


def scope(rails: list[Rail]) -> Reading:
    """Say what the total covers, or why there is none."""
    total = total_of(rails)
    return unread(_no_total(rails)) if total is None else Reading(total.scope)


def powers(tree: Tree, rails: list[Rail]) -> dict[str, Reading]:
    """Read every supply's power, and the module's as `power`."""
    each = {rail.label: _power(tree, rail) for rail in rails}
    total = total_of(rails)
    whole = unread(_no_total(rails), UNIT) if total is None else _sum([each[label] for label in total.rails])
    return {"power": whole, **{f"power_{label}": reading for label, reading in each.items()}}


def _power(tree: Tree, rail: Rail) -> Reading:
    voltage, current = (tree.reading(path, scaled(1e-3), UNIT) for path in (rail.voltage, rail.current))
    if voltage.value is None or current.value is None:
        return voltage if voltage.value is None else current
    return Reading(float(voltage.value) * float(current.value), UNIT)


def _sum(parts: list[Reading]) -> Reading:
    """Add up; without one of the parts there is no sum."""
    missing = next((part for part in parts if part.value is None), None)
    return missing or Reading(sum(float(part.value or 0) for part in parts), UNIT)


def _no_total(rails: list[Rail]) -> str:
    if not rails:
        return NO_MONITOR
    return f"which of this board's supplies make up the total is not known: {', '.join(rail.label for rail in rails)}"
