"""Find what can be read on this machine, by what is there and not by what it is called."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

from samx.devices.adapter import Adapter, Readings, unread
from samx.devices.apple import AppleAdapter
from samx.devices.cpu import CpuAdapter
from samx.devices.files import Run, run
from samx.devices.jetson import JetsonAdapter
from samx.devices.nvidia import NvidiaAdapter
from samx.errors import UnavailableError

CPU, CUDA = "cpu", "cuda"
MAC = "Darwin"


class Missing:
    """Stand for a measured device that cannot be read, so that a report says why."""

    def __init__(self, kind: str, reason: str) -> None:
        self.kind, self._reason = kind, reason

    def name(self) -> str:
        """Return that nothing is known."""
        return "unknown"

    def facts(self) -> Readings:
        """Return why nothing is known."""
        return {"power_scope": unread(self._reason)}

    def sample(self) -> Readings:
        """Return why nothing is known."""
        return {"power": unread(self._reason, "W")}

    def throttled(self, samples: Sequence[Readings]) -> list[str]:
        """Return nothing."""
        return []


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
        return [Missing(NvidiaAdapter.kind, reasons[0]), *found]
    return found
