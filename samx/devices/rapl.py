"""Energy that an x86 processor counts itself (RAPL), as Linux shows it.

Source: the kernel's powercap documentation (energy_uj wraps at max_energy_range_uj; since 5.10 only root may read it).
"""

from __future__ import annotations

from samx.devices.files import Tree, scaled
from samx.devices.reading import Reading, unread

DOMAINS = "/sys/class/powercap/intel-rapl:*"  # AMD processors appear under this name too
PACKAGE = "package"
JOULES = scaled(1e-6)
SCOPE = "processor packages by RAPL, without memory"
NONE_HERE = "this machine shows no RAPL counters in /sys/class/powercap"


class Rapl:
    """Count the energy of all processor packages from the first call on, across the counters' ends."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._domains = [path for path in tree.find(DOMAINS) if _name(tree, path).startswith(PACKAGE)]
        self._last: dict[str, float] = {}
        self._total = 0.0

    def scope(self) -> Reading:
        """Say what is counted, if anything."""
        return Reading(SCOPE) if (energy := self.energy()).value is not None else unread(str(energy.reason))

    def energy(self) -> Reading:
        """Read the energy since the first call."""
        if not self._domains:
            return unread(NONE_HERE, "J")
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


def _name(tree: Tree, path: str) -> str:
    return str(tree.reading(f"{path}/name").value or "")
