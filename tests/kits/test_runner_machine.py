"""What the runner reads of a machine, on texts made by hand as such machines print them."""

from __future__ import annotations

import re
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from samx.kits.runner import machine

from samx.devices.apple import AppleAdapter
from samx.devices.cpu import CpuAdapter
from samx.devices.jetson import JetsonAdapter
from samx.devices.nvidia import NvidiaAdapter

# By kind and name: what the file or command says, and what is read.
TEXTS: dict[tuple[str, str], tuple[str, Any]] = {
    ("cpu", "model"): ("processor\t: 0\nmodel name\t: Intel(R) Core(TM) i7-1165G7\n", "Intel(R) Core(TM) i7-1165G7"),
    ("cpu", "governor"): ("powersave\n", "powersave"),
    ("cpu", "clock_limit"): ("4700000\n", 4700.0),
    ("cpu", "memory"): ("MemTotal:       16252928 kB\nMemFree: 1 kB\n", 15872.0),
    ("cpu", "clock_first"): ("1497600\n", 1497.6),
    ("jetson", "model"): ("NVIDIA Jetson Orin Nano Developer Kit\0", "NVIDIA Jetson Orin Nano Developer Kit"),
    ("jetson", "release"): ("# R36 (release), REVISION: 4.3, GCID: 1, EABI: x\n", "R36 (release), REVISION: 4.3"),
    ("jetson", "power_mode"): ("NV Power Mode: MAXN_SUPER\n2\n", "MAXN_SUPER"),
    ("jetson", "clock_gpu"): ("1020000000\n", 1020.0),
    ("nvidia", "gpu"): ("NVIDIA GeForce RTX 4090\n", "NVIDIA GeForce RTX 4090"),
    ("nvidia", "driver"): ("580.95.05\n", "580.95.05"),
    ("nvidia", "clock_sm"): ("2520\n", 2520.0),
    ("nvidia", "power"): ("61.32\n", 61.32),
    ("nvidia", "temperature"): ("41\n", 41.0),
    ("apple", "chip"): ("Apple M4 Pro\n", "Apple M4 Pro"),
    ("apple", "macos"): ("15.1\n", "15.1"),
    ("apple", "thermal_warning"): (
        "Note: No thermal warning level has been recorded\n", "Note: No thermal warning level has been recorded"
    ),
}  # fmt: skip
FROM_THE_SYSTEM = {("cpu", "cpus_usable"), ("cpu", "load_1min")}


@pytest.mark.parametrize(("of", "name", "unit", "where", "pattern", "factor"), machine.PROBES)
def test_every_probe_reads_what_its_source_says(
    of: str, name: str, unit: str | None, where: Any, pattern: str, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (of.split()[0], name) in FROM_THE_SYSTEM:
        assert machine.reading(unit, where, pattern, factor)["value"] > 0
        return
    text, expected = TEXTS[of.split()[0], name]
    monkeypatch.setattr(machine, "raw_text", lambda where: text)
    found = machine.reading(unit, where, pattern, factor)
    assert found == {"value": pytest.approx(expected) if unit else expected, "unit": unit, "reason": None}


def test_the_kinds_are_those_of_samx() -> None:
    adapters = (AppleAdapter, CpuAdapter, JetsonAdapter, NvidiaAdapter)
    assert {of.split()[0] for of, *_ in machine.PROBES} == {adapter.kind for adapter in adapters}


@pytest.mark.parametrize("text", ["", "[N/A]", "no number"])
def test_a_source_that_says_something_else_is_told(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "raw_text", lambda where: text)
    found = machine.reading("W", ("nvidia-smi", "--id=0"), r"([\d.]+)", 1)
    assert found == {"value": None, "unit": "W", "reason": "nvidia-smi --id=0: tells something else"}


def test_a_number_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "raw_text", lambda where: "1.2.3")
    assert machine.reading("W", "file", r"([\d.]+)", 1)["value"] is None


def test_a_command_that_fails_is_told() -> None:
    found = machine.reading(None, (sys.executable, "-c", "raise SystemExit(9)"), "(.+)", 1)
    assert found["value"] is None
    assert "exit status 9" in found["reason"]


def test_a_command_is_read() -> None:
    assert machine.reading(None, (sys.executable, "-c", "print('hello')"), "(.+)", 1)["value"] == "hello"


def test_the_first_file_that_fits_is_read(tmp_path: Path) -> None:
    for name in ("17000000.gpu", "zzz.gpu"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cur_freq").write_text(f"{len(name)}")
    assert machine.raw_text(f"{tmp_path}/*g[pv]*/cur_freq") == "12"


@pytest.mark.parametrize("node", ["17000000.gpu", "17000000.ga10b", "17000000.gv11b", "gpu.0", "gpu-gpc-0"])
def test_the_gpu_s_clock_is_found_by_its_names(node: str) -> None:
    where = next(probe[3] for probe in machine.PROBES if probe[1] == "clock_gpu")
    assert fnmatch(f"/sys/class/devfreq/{node}/cur_freq", where)


@pytest.mark.parametrize("node", ["15340000.vic", "15480000.nvdec", "15540000.nvjpg", "15a50000.ofa", "actmon"])
def test_another_unit_s_clock_is_not_the_gpu_s(node: str) -> None:
    where = next(probe[3] for probe in machine.PROBES if probe[1] == "clock_gpu")
    assert not fnmatch(f"/sys/class/devfreq/{node}/cur_freq", where)


def test_a_kind_of_which_nothing_can_be_read_is_not_here() -> None:
    found = machine.readings("facts")
    assert "cpu" in found
    assert all(any(entry["reason"] is None for entry in facts.values()) for facts in found.values())
    assert re.fullmatch(r"[\d.]+", str(found["cpu"]["cpus_usable"]["value"]))
