"""The circumstances are read from the system, and never guessed."""

from __future__ import annotations

from samx.commands.bench import benchmark_environment
from samx.devices import cpu


def test_names_the_machine_and_the_libraries() -> None:
    facts = benchmark_environment()
    assert {"cpu", "cpus_usable", "onnxruntime", "torch", "numpy"} <= set(facts)
    assert int(facts["cpus_usable"]) >= 1


def test_a_busy_machine_is_called_busy() -> None:
    assert cpu.busy(1.5, 2)
    assert not cpu.busy(0.9, 2)
