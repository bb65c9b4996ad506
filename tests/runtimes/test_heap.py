"""Memory that PyTorch freed is used again inside, and goes back to the system after; elsewhere nothing happens."""

from __future__ import annotations

import ctypes
import json
import resource
import subprocess
import sys

import pytest

from samx.runtimes import heap
from samx.runtimes.heap import kept_heap

BLOCK = 64 << 20
IS_GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt")
PROGRAM = f"""
import json, resource, torch
from samx.runtimes.heap import kept_heap

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones({BLOCK // 4})
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmRSS"))

torch.ones(4)
outside = [faults() for _ in range(2)]
before = resident()
with kept_heap():
    inside = [faults() for _ in range(16)]
print(json.dumps([outside, inside, resident() - before, [faults() for _ in range(2)]]))
"""


@pytest.mark.skipif(not IS_GLIBC, reason="needs glibc")
def test_pages_are_asked_for_once_and_go_back() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    outside, inside, left, after = json.loads(done.stdout)
    pages = min(outside)
    assert pages > 100
    assert max(inside[-4:]) < pages / 10  # the first find their place
    assert left < BLOCK / 4
    assert min(after) > pages / 2


def test_it_is_put_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[int, ...]] = []
    library = type("Library", (), {"mallopt": lambda *args: said.append(args[1:]), "malloc_trim": lambda *args: 1})()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    with pytest.raises(KeyError), kept_heap():
        raise KeyError
    assert said[-2:] == list(heap.USUAL.items())
    assert [value for _, value in said[:2]] == [heap.MOST] * 2


def test_other_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with kept_heap():
        assert resource.getpagesize() > 0
