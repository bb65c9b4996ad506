"""Compiled code is bound to PyTorch, the system and the processor's instructions, and says which of them is missing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from samx.devices.adapter import Tree
from samx.errors import ArtifactError
from samx.formats.aoti import Host, HostStamp, instructions

HOST = Host("2.13.0+cpu", "Linux x86_64", ("avx2", "avx512f", "fma"))
STAMP = HostStamp(HOST, "a" * 64)
CPUINFO = {
    "x86": (
        "processor\t: 0\nflags\t\t: fpu vme sse2 avx2 constant_tsc hypervisor fma arat\n\n",
        ("avx2", "fma", "sse2"),
    ),
    "arm": ("processor\t: 0\nFeatures\t: fp asimd i8mm\n", ("asimd", "fp", "i8mm")),
    "other": ("processor\t: 0\n", ()),
}


def test_a_host_runs_its_own_code() -> None:
    assert HOST.lacks(HOST) == []


def test_more_instructions_are_no_hindrance() -> None:
    assert replace(HOST, instructions=("amx_tile", *HOST.instructions)).lacks(HOST) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"torch": "2.12.0"}, "compiled with PyTorch 2.13.0+cpu, here is 2.12.0"),
        ({"os": "Linux aarch64"}, "compiled for Linux x86_64, here is Linux aarch64"),
        ({"instructions": ("avx2",)}, "this processor has no avx512f fma"),
    ],
)
def test_what_is_missing_is_said(change: dict[str, object], words: str) -> None:
    assert replace(HOST, **change).lacks(HOST) == [words]  # type: ignore[arg-type]


@pytest.mark.parametrize("system", CPUINFO)
def test_instructions_are_read_and_other_flags_left_out(system: str, tmp_path: Path) -> None:
    text, expected = CPUINFO[system]
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(text)
    assert instructions(Tree(tmp_path)) == expected


def test_this_machine_is_described() -> None:
    here = Host.here("2.13.0")
    assert here.torch == "2.13.0"
    assert here.lacks(here) == []


def test_a_stamp_reads_back() -> None:
    assert HostStamp.from_bytes(STAMP.to_bytes(), "host.json") == STAMP


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"}, {"schema_version": 2}, {"sha256": "short"}, {"host": None}, {"more": 1},
        {"host": {"torch": "2.13", "os": "Linux"}}, {"host": {"torch": "", "os": "Linux", "instructions": []}},
        {"host": {"torch": "2.13", "os": "Linux", "instructions": [1]}},
    ],
)  # fmt: skip
def test_a_damaged_stamp_is_refused(change: dict[str, object]) -> None:
    body = {**json.loads(STAMP.to_bytes()), **change}
    with pytest.raises(ArtifactError, match=r"host\.json"):
        HostStamp.from_bytes(json.dumps(body).encode(), "host.json")
