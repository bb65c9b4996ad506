"""The share of the processors that a container leaves to this process, and how often it was stopped for it."""

from __future__ import annotations

from pathlib import PurePosixPath

from samx.devices.files import Tree
from samx.devices.reading import Reading, unread

MEMBERSHIP, MOUNT = "/proc/self/cgroup", "/sys/fs/cgroup"
NO_LIMIT = Reading("none")
STOPS, NO_COUNT = "nr_throttled", "no CPU limit is counted for this process"


def cpu_limit(tree: Tree) -> Reading:
    """Read the limit in CPUs that holds here, the tightest of all groups around this process."""
    limits = [_limit(tree, f"{group}/cpu.max") for group in _groups(tree, unified=True)] + _old_limits(tree)
    known = [limit for limit in limits if limit is not None]
    return Reading(round(min(known), 3), "CPUs") if known else NO_LIMIT


def stat_file(tree: Tree) -> str | None:
    """Find the file that counts how often a limit stopped this process's group."""
    files = [f"{group}/cpu.stat" for unified in (True, False) for group in _groups(tree, unified)]
    return next((file for file in files if any(line.startswith(STOPS) for line in tree.lines(file))), None)


def quota_stops(tree: Tree, file: str | None) -> Reading:
    """Read how often the limit stopped this process's group."""
    return unread(NO_COUNT, "times") if file is None else tree.reading(file, _stops, "times")


def _stops(text: str) -> int:
    """Take the count from the file's lines.

    Raises: ValueError where there is none.
    """
    return int(dict(line.partition(" ")[::2] for line in text.splitlines()).get(STOPS, ""))


def _groups(tree: Tree, unified: bool) -> list[str]:
    """Find the folders of the groups around this process, innermost first."""
    lines = [line.split(":", 2) for line in tree.lines(MEMBERSHIP) if line.count(":") >= 2]
    inside = {controllers: path for _, controllers, path in lines}
    names = [name for name in inside if (name == "" if unified else "cpu" in name.split(","))]
    if not names:
        return []
    mount = MOUNT if unified else f"{MOUNT}/cpu"
    path = PurePosixPath(inside[names[0]])
    return [f"{mount}{group}".rstrip("/") for group in (path, *path.parents)]


def _limit(tree: Tree, path: str) -> float | None:
    """Read quota and period from one line; the word max means that there is no quota."""
    try:
        return _share(*tree.text(path).split())
    except (OSError, ValueError, TypeError):
        return None


def _old_limits(tree: Tree) -> list[float | None]:
    """Read quotas where each controller has its own hierarchy."""
    return [_old_limit(tree, group) for group in _groups(tree, unified=False)]


def _old_limit(tree: Tree, group: str) -> float | None:
    try:
        return _share(tree.text(f"{group}/cpu.cfs_quota_us"), tree.text(f"{group}/cpu.cfs_period_us"))
    except (OSError, ValueError):
        return None


def _share(quota: str, period: str) -> float | None:
    """Divide; a quota of -1 means that there is none."""
    return int(quota) / int(period) if int(quota) > 0 and int(period) > 0 else None
