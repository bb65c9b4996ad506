"""An NVIDIA Jetson, through the files and commands of Jetson Linux: NVML answers nothing there.

Source: the Jetson Linux developer guides (power modes, over-current event counters, thermal zones, devfreq, tables of
power monitors); the kernel's documentation of ina3221 (mV, mA).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from samx.devices.adapter import Adapter, Reading, Readings, Run, Tree, Value, answer, risen, run, scaled, texts, unread
from samx.errors import UnavailableError

RELEASE, MODEL, COMPATIBLE = "/etc/nv_tegra_release", "/proc/device-tree/model", "/proc/device-tree/compatible"
TEGRA = "nvidia,tegra"
NVPMODEL, JETSON_CLOCKS = ("nvpmodel", "-q"), ("jetson_clocks", "--show")

GPUS = "/sys/class/devfreq/*"
# The GPU's name there: by chip before JetPack 6, then plain; on Thor by its clock domain.
GPU_NAME = re.compile(r"(\d+\.(gpu|ga10b|gv11b|gp10b|gm20b)|gpu\.0|gpu-gpc-0)$")
# Cooling devices whose state tells of slower clocks; a fan is one too, and no reason to worry.
COOLING, SLOWING = (
    "/sys/class/thermal/cooling_device*",
    re.compile(r"-alert$|-balanced$|^(thermal-)?(cpufreq|devfreq)-"),
)
OC_DRIVER, OC_EVENTS = "soctherm_oc", ("oc1", "oc2", "oc3")
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
MHZ = scaled(1e-6)
NO_GPU = "no GPU is shown in /sys/class/devfreq"
SENTENCES = {
    "events_oc1": (1, "the supply's voltage fell too low {by} times (OC1 events); each slows the chip down"),
    "events_oc2": (1, "the mean current was too high {by} times (OC2 events); each slows the chip down"),
    "events_oc3": (1, "the current was too high {by} times (OC3 events); each slows the chip down"),
}


Rails = Mapping[str, tuple[str, str]]  # label of a supply -> files of its voltage and its current


class JetsonAdapter(Adapter):
    """Read a Jetson, or a recording of one.

    Raises: UnavailableError when this is none.
    """

    kind = "jetson"

    def __init__(self, root: Path = Path("/"), run: Run = run) -> None:
        self._tree, self._run = Tree(root), run
        if not _is_jetson(self._tree):
            raise UnavailableError("this machine is no Jetson", found=f"neither {RELEASE} nor {TEGRA} in {COMPATIBLE}")
        self._rails = find_rails(self._tree)
        self._zones = self._tree.zones()
        self._gpu = next((path for path in self._tree.find(GPUS) if GPU_NAME.search(path.rsplit("/", 1)[-1])), None)
        self._cooling = _cooling(self._tree)
        self._events = next(iter(self._tree.sensors(OC_DRIVER)), None)

    def name(self) -> str:
        """Return the board's name."""
        return str(self._tree.reading(MODEL).value or "Jetson")

    def facts(self) -> Readings:
        """Read board, release, power mode, and how the clocks are governed."""
        return {
            "model": self._tree.reading(MODEL),
            "release": self._tree.reading(RELEASE, _release),
            "power_mode": answer(self._run, NVPMODEL, _power_mode),
            "jetson_clocks": answer(self._run, JETSON_CLOCKS, _one_line),
            "power_scope": rail_scope(self._rails),
            "gpu_governor": self._gpu_reading("governor"),
            "clock_gpu_lowest": self._gpu_reading("min_freq", MHZ, "MHz"),
            "clock_gpu_limit": self._gpu_reading("max_freq", MHZ, "MHz"),
        }

    def sample(self) -> Readings:
        """Read power, GPU clock and load, heat, and what slows the chip down."""
        return {
            **powers(self._tree, self._rails),
            "clock_gpu": self._gpu_reading("cur_freq", MHZ, "MHz"),
            "utilisation": self._gpu_reading("device/load", scaled(0.1), "%"),
            **zone_readings(self._tree, self._zones),
            "cooling": self._cooling_words(),
            **{f"events_{name}": self._event(name) for name in OC_EVENTS},
        }

    def throttled(self, samples: Sequence[Readings]) -> list[str]:
        """Return which events and cooling measures slowed the chip down."""
        found = texts(samples, "cooling")
        counts = Counter(name for text in found for name in text.split(", ") if SLOWING.search(name))
        heat = [
            f"{name} was cooled by slower clocks in {count} of {len(found)} samples" for name, count in counts.items()
        ]
        return [*risen(samples, SENTENCES), *heat]

    def _gpu_reading(self, file: str, convert: Callable[[str], Value] = str, unit: str | None = None) -> Reading:
        return unread(NO_GPU, unit) if self._gpu is None else self._tree.reading(f"{self._gpu}/{file}", convert, unit)

    def _cooling_words(self) -> Reading:
        """Name the cooling devices that are at work."""
        if not self._cooling:
            return unread("no cooling device that slows clocks is shown in /sys/class/thermal")
        states = {name: self._tree.reading(path, int) for name, path in self._cooling.items()}
        if all(state.value is None for state in states.values()):
            return next(iter(states.values()))
        return Reading(", ".join(name for name, state in states.items() if state.value) or "none")

    def _event(self, name: str) -> Reading:
        if self._events is None:
            return unread(f"this release shows no event counters ({OC_DRIVER})", "times")
        return self._tree.reading(f"{self._events}/{name}_event_cnt", int, "times")


def _is_jetson(tree: Tree) -> bool:
    return bool(tree.lines(RELEASE)) or any(TEGRA in line for line in tree.lines(COMPATIBLE))


def _release(text: str) -> str:
    """Take 36.4.3 from a line such as `# R36 (release), REVISION: 4.3, GCID: ...`."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    if found is None:
        raise ValueError(text)
    return f"L4T {found[1]}.{found[2]}"


def _power_mode(text: str) -> str | None:
    found = re.search(r"NV Power Mode: *(.+?)\s*\n\s*(\d+)", text)
    return f"{found[1]} (mode {found[2]})" if found else None


def _one_line(text: str) -> str:
    return "; ".join(" ".join(line.split()) for line in text.splitlines() if line.strip())


def _cooling(tree: Tree) -> dict[str, str]:
    """Find the cooling devices that slow clocks down: type -> file of the state."""
    kinds = {path: str(tree.reading(f"{path}/type").value or "") for path in tree.find(COOLING)}
    return {kind: f"{path}/cur_state" for path, kind in kinds.items() if SLOWING.search(kind)}


def find_rails(tree: Tree) -> Rails:
    """Find the supplies that are monitored."""
    places = [(path, channel) for path in tree.sensors(RAIL_DRIVER) for channel in CHANNELS]
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


def zone_readings(tree: Tree, paths: Mapping[str, str]) -> Readings:
    """Read every zone, and the hottest of them as `temperature`."""
    each = {f"temperature_{name}": tree.celsius(path) for name, path in paths.items()}
    known = [float(reading.value) for reading in each.values() if reading.value is not None]
    hottest = Reading(max(known), "C") if known else unread("no thermal zone can be read", "C")
    return {"temperature": hottest, **each}
