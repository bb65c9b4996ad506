"""A reader takes damaged input for what it is, or raises one of samx's errors: nothing else, soon, in little memory."""

from __future__ import annotations

import os
import resource
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import readers
from hypothesis import HealthCheck, Phase, given, settings
from readers import Reader, quietly

from samx.errors import SamxError

# Those of a backend lie in a file of its own.
OF_BACKENDS = [import_module(path.stem) for path in sorted(Path(__file__).parent.glob("readers_*.py"))]
READERS: Mapping[str, Reader] = {name: reader for module in (readers, *OF_BACKENDS)
                                 for name, reader in module.READERS.items()}  # fmt: skip
FEW, MANY = 40, 100_000
LONGEST_LINE = 4000
MOST_S = 20.0  # of one input; a busy machine takes long for little
MOST_BYTES = 2 << 30  # beyond what the process holds already
ODD = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.large_base_example]


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """Take memory away, so that who asks for gigabytes fails."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else None
    before = resource.getrlimit(resource.RLIMIT_AS)
    if pages is not None:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MOST_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


class Damaged(NamedTuple):
    """Wrap an input, so that a failure does not print megabytes; it is kept in a file."""

    value: Any

    def __repr__(self) -> str:
        checksum = zlib.crc32(repr(self.value).encode("utf-8", "replace"))
        file = Path(tempfile.gettempdir()) / f"samx-failing-{checksum:08x}"
        data = self.value if isinstance(self.value, bytes) else self.value.encode("utf-8", "surrogatepass")
        file.write_bytes(data)
        return f"Damaged({file})"


def attack(name: str, count: int, repeatable: bool) -> tuple[int, int]:
    """Read so many damaged inputs; gives how many were taken and how many were refused."""
    reader = READERS[name]
    read, counts = quietly(reader.read), [0, 0]

    @settings(
        max_examples=count, derandomize=repeatable, database=None, deadline=None, suppress_health_check=ODD,
        print_blob=False, phases=[Phase.generate],
    )  # fmt: skip
    @given(reader.inputs().map(Damaged))
    def survives(value: Damaged) -> None:
        started, words = time.monotonic(), ""
        try:
            read(value.value)
        except SamxError as error:
            words = str(error)
        counts[bool(words)] += 1
        assert "\n" not in words
        assert len(words) < LONGEST_LINE, words[:200]
        assert time.monotonic() - started < MOST_S

    survives()
    return counts[0], counts[1]


@pytest.mark.parametrize("name", READERS)
def test_a_reader_survives_damaged_input(name: str) -> None:
    assert attack(name, FEW, repeatable=True)[1] > 0, "nothing was refused: no damage was done"


@pytest.mark.attack
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", READERS)
def test_a_reader_survives_much_damaged_input(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    taken, refused = attack(name, int(os.environ.get("ATTACK_INPUTS", MANY)), repeatable=False)
    with capsys.disabled():
        print(f"\n{name}: {taken + refused} inputs, {refused} refused")  # noqa: T201 - the figures of SECURITY.md
    assert refused > 0
