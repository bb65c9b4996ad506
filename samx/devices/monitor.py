"""Find what can be read on this machine, and watch it while something is measured, from one thread beside it."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from samx.devices.adapter import Adapter, Reading, Readings, Run, number, run, unread
from samx.devices.apple import AppleAdapter
from samx.devices.cpu import CpuAdapter, busy
from samx.devices.jetson import JetsonAdapter
from samx.devices.nvidia import NvidiaAdapter
from samx.errors import UnavailableError

CPU, CUDA = "cpu", "cuda"
MAC = "Darwin"
INTERVAL_S = 0.2
STOP_S = 5.0  # a driver that hangs must not hold the program up
STEADY_GOVERNOR = "performance"
LOST = "error"  # name of the reading of a device that stopped answering
LEAST_SAMPLES = 3  # of an interval whose energy is told
UNIT = "mJ"
NO_POWER = "has no power reading"

Sample = tuple[int, Readings]  # time in ns
Floats = npt.NDArray[np.float64]


def adapters(
    device: str, root: Path = Path("/"), run: Run = run, system: str = platform.system(),
    nvidia: Callable[[], Adapter] = NvidiaAdapter,
) -> list[Adapter]:  # fmt: skip
    """Open an adapter for each kind of device that is here and matters when `device` is measured: cpu, cuda, cpu+ane.

    In the order in which their power counts: what measures a whole module goes before the processor's own counter. The
    processor always matters. A GPU that is measured and cannot be read is there too, and says why.
    """
    gpu, mac = device.partition(":")[0] == CUDA, system == MAC
    makers: list[Callable[[], Adapter]] = [
        *([nvidia] if gpu else []),
        lambda: JetsonAdapter(root, run),
        *([lambda: AppleAdapter(run, root_user=os.geteuid() == 0)] if mac else []),
        lambda: CpuAdapter(root, run, is_mac=mac, measured=device == CPU),
    ]
    found, reasons = list[Adapter](), list[str]()
    for make in makers:
        try:
            found.append(make())
        except UnavailableError as cause:
            reasons.append(str(cause))
    if gpu and not {NvidiaAdapter.kind, JetsonAdapter.kind} & {adapter.kind for adapter in found}:
        return [Adapter(NvidiaAdapter.kind, reasons[0]), *found]
    return found


class Monitor:
    """Read devices before, during and after a run, as a context manager.

    Its cost is one thread that wakes every `interval_s` and reads what the adapters call cheap; `cost()` gives what
    that took. Commands, and everything that does not move, run before the thread starts. A device that raises is not
    asked again; it is flagged, and the run goes on.
    """

    def __init__(
        self, adapters: Sequence[Adapter], interval_s: float = INTERVAL_S,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:  # fmt: skip
        self._adapters, self._interval_s, self._clock = tuple(adapters), interval_s, clock
        self._names: dict[str, str] = {}
        self._facts: dict[str, Readings] = {}
        self._lost: dict[str, str] = {}
        self._spent_ns: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="samx-monitor", daemon=True)
        self._hangs = False
        self.before: dict[str, Readings] = {}
        self.after: dict[str, Readings] = {}
        self.samples: list[tuple[int, dict[str, Readings]]] = []

    def __enter__(self) -> Monitor:
        for adapter in self._adapters:
            self._facts[adapter.kind] = self._guarded(adapter, adapter.facts)
            self._names[adapter.kind] = self._name(adapter)
        self.before = self.sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(STOP_S)
        self._hangs = self._thread.is_alive()
        self.after = {} if self._hangs else self.sample()

    def sample(self) -> dict[str, Readings]:
        """Read every device once and keep it."""
        start = self._clock()
        readings = {adapter.kind: self._guarded(adapter, adapter.sample) for adapter in self._adapters}
        end = self._clock()
        self.samples.append(((start + end) // 2, readings))
        self._spent_ns.append(end - start)
        return readings

    def flags(self) -> list[str]:
        """Return what makes the numbers doubtful: throttling, lost devices, a busy machine. Begins with `information:`
        where it only explains them.
        """
        return [*self._throttled(), *self._losses(), *self._busy(), *self._governors()]

    def energy_mj(self, start_ns: int, end_ns: int) -> Reading:
        """Return what the measured device drew between two times of the clock, in mJ, idle power included.

        The first device that tells its power counts; what it covers is its fact `power_scope`.
        """
        slack_ns = int(2 * self._interval_s * 1e9)
        found = {kind: energy_mj(self._of(kind), start_ns, end_ns, slack_ns) for kind in self._kinds}
        reasons = "; ".join(f"{kind}: {reading.reason}" for kind, reading in found.items())
        known = (reading for reading in found.values() if reading.value is not None)
        return next(known, unread(reasons or "no device was watched", UNIT))

    def cost(self) -> Reading:
        """Return the mean time that one sample took, in microseconds."""
        spent = self._spent_ns
        return Reading(sum(spent) / len(spent) / 1e3, "us") if spent else unread("nothing was sampled", "us")

    def to_json(self) -> dict[str, Any]:
        """Return plain data; samples hold values alone, since units and reasons stand in `before`."""
        return {
            "devices": {kind: self._device(kind) for kind in self._kinds},
            "samples": [{"time_ns": at, "readings": _values(readings)} for at, readings in list(self.samples)],
            "flags": self.flags(),
            "sampling": {"interval_s": self._interval_s, "cost": self.cost().to_json()},
        }

    @property
    def _kinds(self) -> list[str]:
        return [adapter.kind for adapter in self._adapters]

    def _watch(self) -> None:
        while not self._stop.wait(self._interval_s):
            self.sample()

    def _of(self, kind: str) -> list[Sample]:
        return [(at, readings[kind]) for at, readings in list(self.samples)]

    def _guarded(self, adapter: Adapter, read: Callable[[], Readings]) -> Readings:
        if adapter.kind not in self._lost:
            try:
                return read()
            except Exception as cause:  # whatever a driver's library raises: it must not end the run
                self._lost[adapter.kind] = " ".join(str(cause).split()) or type(cause).__name__
        return {LOST: unread(self._lost[adapter.kind])}

    def _name(self, adapter: Adapter) -> str:
        named = self._guarded(adapter, lambda: {"name": Reading(adapter.name())})
        return str(named["name"].value) if "name" in named else "unknown"

    def _device(self, kind: str) -> dict[str, Any]:
        parts = {"facts": self._facts, "before": self.before, "after": self.after}
        return {"name": self._names.get(kind, "unknown")} | {
            part: {name: reading.to_json() for name, reading in readings.get(kind, {}).items()}
            for part, readings in parts.items()
        }

    def _throttled(self) -> list[str]:
        return [
            words for adapter in self._adapters for words in adapter.throttled([r for _, r in self._of(adapter.kind)])
        ]

    def _losses(self) -> list[str]:
        lost = [f"{kind} stopped answering: {reason}" for kind, reason in self._lost.items()]
        return [*lost, *([f"a device did not answer for {STOP_S:g} s at the end of the run"] if self._hangs else [])]

    def _busy(self) -> list[str]:
        loads = [
            (number(self.before.get(kind, {}), "load_1min"), number(facts, "cpus_usable"))
            for kind, facts in self._facts.items()
        ]
        return [
            f"the machine was busy before the run: load {load:.2f} on {cpus:g} usable CPUs"
            for load, cpus in loads
            if load is not None and cpus is not None and busy(load, cpus)
        ]

    def _governors(self) -> list[str]:
        names = [facts["governor"].value for facts in self._facts.values() if "governor" in facts]
        return [f"information: the processor's clocks are governed by {name}, not {STEADY_GOVERNOR}"
                for name in names if name not in (None, STEADY_GOVERNOR)]  # fmt: skip


def _values(readings: dict[str, Readings]) -> dict[str, dict[str, Any]]:
    return {
        kind: {name: reading.value for name, reading in found.items() if reading.value is not None}
        for kind, found in readings.items()
    }


def energy_mj(samples: Sequence[Sample], start_ns: int, end_ns: int, slack_ns: int) -> Reading:
    """Return the energy between two times, in mJ. A counter goes before power: it misses nothing between samples.

    The samples must reach over the interval, up to `slack_ns` at either end.
    """
    tried = [_energy(samples, name, integrate, start_ns, end_ns, slack_ns) for name, integrate in SOURCES.items()]
    return next((reading for reading in tried if reading.value is not None), tried[-1])


def _energy(
    samples: Sequence[Sample], name: str, integrate: Callable[..., float], start_ns: int, end_ns: int, slack_ns: int
) -> Reading:
    known = [(time, value) for time, readings in samples if (value := number(readings, name)) is not None]
    inside = sum(start_ns <= time <= end_ns for time, _ in known)
    if not known:
        reasons = [readings[name].reason for _, readings in samples if name in readings]
        return unread(reasons[-1] if reasons else NO_POWER, UNIT)
    if inside < LEAST_SAMPLES:
        return unread(f"{inside} samples of {name} lie in the interval, at least {LEAST_SAMPLES} are needed", UNIT)
    if known[0][0] > start_ns + slack_ns or known[-1][0] < end_ns - slack_ns:
        return unread(f"the samples of {name} do not reach over the whole interval", UNIT)
    times, values = (np.array(column, dtype=np.float64) for column in zip(*known, strict=True))
    return Reading(integrate((times - start_ns) * 1e-9, values, (end_ns - start_ns) * 1e-9) * 1e3, UNIT)


def _counted(times: Floats, joules: Floats, end: float) -> float:
    """Take the difference of a counter between 0 and `end`, at the pace of the nearest samples beyond them."""
    return _extended(times, joules, end) - _extended(times, joules, 0.0)


def _extended(times: Floats, joules: Floats, when: float) -> float:
    if times[0] <= when <= times[-1]:
        return float(np.interp(when, times, joules))
    near, far = (0, 1) if when < times[0] else (-1, -2)
    pace = (joules[near] - joules[far]) / (times[near] - times[far])
    return float(joules[near] + pace * (when - times[near]))


def _integrated(times: Floats, watts: Floats, end: float) -> float:
    """Integrate power between 0 and `end` by trapezoids; beyond the samples the nearest one holds."""
    grid = np.concatenate(([0.0], times[(times > 0) & (times < end)], [end]))
    power: Any = np.interp(grid, times, watts)
    return float(np.sum((power[1:] + power[:-1]) / 2 * np.diff(grid)))


SOURCES: dict[str, Callable[..., float]] = {"energy": _counted, "power": _integrated}
