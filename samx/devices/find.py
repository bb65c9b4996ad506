"""Find what can be read on this machine, by what is there and not by what it is called."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from samx.devices.adapter import Adapter
from samx.devices.apple import AppleAdapter
from samx.devices.commands import Run, run
from samx.devices.cpu import CpuAdapter
from samx.devices.jetson import JetsonAdapter
from samx.devices.nvidia import NvidiaAdapter
from samx.devices.reading import Readings, unread
from samx.errors import UnavailableError

CPU, CUDA = "cpu", "cuda"
MAC = "Darwin"


@dataclass(frozen=True)
class Machine:
    """Say where to look: files below a root, commands, the system's name, and what opens NVIDIA's library."""

    root: Path = Path("/")
    run: Run = run
    system: str = platform.system()
    nvidia: Callable[[], Adapter] = NvidiaAdapter


class Missing:
    """Stand for a measured device that cannot be read, so that a report says why."""

    def __init__(self, kind: str, reason: str) -> None:
        self.kind, self._reason = kind, reason

    def name(self) -> str:
        """Say that nothing is known."""
        return "unknown"

    def facts(self) -> Readings:
        """Say why nothing is known."""
        return {"power_scope": unread(self._reason)}

    def sample(self) -> Readings:
        """Say why nothing is known."""
        return {"power": unread(self._reason, "W")}

    def throttled(self, samples: Sequence[Readings]) -> list[str]:
        """Nothing is known."""
        return []


def _nvidia(device: str, machine: Machine) -> Adapter:
    if device.partition(":")[0] != CUDA:
        raise UnavailableError("the GPU is not what is measured")
    return machine.nvidia()


def _jetson(device: str, machine: Machine) -> Adapter:
    return JetsonAdapter(machine.root, machine.run)


def _apple(device: str, machine: Machine) -> Adapter:
    if machine.system != MAC:
        raise UnavailableError("this machine is no Mac")
    return AppleAdapter(machine.run, root_user=os.geteuid() == 0)


def _cpu(device: str, machine: Machine) -> Adapter:
    return CpuAdapter(machine.root, machine.run, is_mac=machine.system == MAC, measured=device == CPU)


# In the order in which their power counts: what measures a whole module goes before the processor's own counter.
FINDERS: dict[str, Callable[[str, Machine], Adapter]] = {
    NvidiaAdapter.kind: _nvidia,
    JetsonAdapter.kind: _jetson,
    AppleAdapter.kind: _apple,
    CpuAdapter.kind: _cpu,
}


def adapters(device: str, machine: Machine = Machine()) -> list[Adapter]:
    """Open an adapter for each kind of device that is here and matters when `device` is measured: cpu, cuda, cpu+ane.

    The processor always does. A GPU that is measured and cannot be read is there too, and says why.
    """
    found: dict[str, Adapter] = {}
    reasons: dict[str, str] = {}
    for kind, make in FINDERS.items():
        try:
            found[kind] = make(device, machine)
        except UnavailableError as cause:
            reasons[kind] = str(cause)
    unread_gpu = device.partition(":")[0] == CUDA and not {NvidiaAdapter.kind, JetsonAdapter.kind} & set(found)
    missing = [Missing(NvidiaAdapter.kind, reasons[NvidiaAdapter.kind])] if unread_gpu else []
    return [*missing, *found.values()]
