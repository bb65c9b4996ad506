"""The circumstances are read from the system, or are unknown; never guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from samx.benchmarks import environment


def test_names_the_machine_and_the_libraries() -> None:
    facts = environment.benchmark_environment()
    assert {"cpu", "isa", "governor", "cpus_usable", "load_1min", "onnxruntime", "torch", "numpy"} <= set(facts)
    assert int(facts["cpus_usable"]) >= 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 fma avx512f sse\n", ["avx2", "fma", "avx512f"]),
        ("Features\t: fp asimd asimddp\n", ["asimd", "asimddp"]),
        ("no such line\n", []),
    ],
)
def test_instruction_sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, expected: list[str]) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(environment, "CPUINFO", tmp_path / "cpuinfo")
    assert environment.isa() == expected


def test_unknown_stays_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CPUINFO", "GOVERNOR"):
        monkeypatch.setattr(environment, name, tmp_path / "missing")
    facts = environment.benchmark_environment()
    assert (facts["isa"], facts["governor"]) == ("unknown", "unknown")


def test_a_busy_machine_is_called_busy() -> None:
    assert environment.busy({"load_1min": "1.50", "cpus_usable": "2"})
    assert not environment.busy({"load_1min": "0.90", "cpus_usable": "2"})
    assert not environment.busy({"load_1min": "unknown", "cpus_usable": "2"})
