"""An NVIDIA Jetson, through the files and commands of Jetson Linux: NVML answers nothing there.

Source: the Jetson Linux developer guides (power modes, over-current event counters, thermal zones, devfreq).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from samx.devices.adapter import Reading, Readings, Value, risen, texts, unread
from samx.devices.files import Run, Tree, answer, run, scaled
from samx.devices.sensors import SENSORS, find_rails, powers, rail_scope, zone_readings, zones
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
MHZ = scaled(1e-6)
NO_GPU = "no GPU is shown in /sys/class/devfreq"
SENTENCES = {
    "events_oc1": (1, "the supply's voltage fell too low {by} times (OC1 events); each slows the chip down"),
    "events_oc2": (1, "the mean current was too high {by} times (OC2 events); each slows the chip down"),
    "events_oc3": (1, "the current was too high {by} times (OC3 events); each slows the chip down"),
}


class JetsonAdapter:
    """Read a Jetson, or a recording of one.

    Raises: UnavailableError when this is none.
    """

    kind = "jetson"

    def __init__(self, root: Path = Path("/"), run: Run = run) -> None:
        self._tree, self._run = Tree(root), run
        if not _is_jetson(self._tree):
            raise UnavailableError("this machine is no Jetson", found=f"neither {RELEASE} nor {TEGRA} in {COMPATIBLE}")
        self._rails = find_rails(self._tree)
        self._zones = zones(self._tree)
        self._gpu = next((path for path in self._tree.find(GPUS) if GPU_NAME.search(path.rsplit("/", 1)[-1])), None)
        self._cooling = _cooling(self._tree)
        self._events = _event_files(self._tree)

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


def _event_files(tree: Tree) -> str | None:
    return next((path for path in tree.find(SENSORS) if tree.reading(f"{path}/name").value == OC_DRIVER), None)
