"""A reading has a value or a reason; files and commands give one or the other."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from device_recordings import deny

from samx.devices import adapter as files
from samx.devices.adapter import CommandError, Reading, Tree, finite, number, scaled, unread


@pytest.mark.parametrize(("value", "reason"), [(None, None), (None, ""), (1.0, "a reason"), (0, "a reason")])
def test_a_value_and_a_reason_exclude_each_other(value: float | None, reason: str | None) -> None:
    with pytest.raises(ValueError, match="a value or a reason"):
        Reading(value, "W", reason)


def test_falsy_values_are_values() -> None:
    assert [Reading(value).value for value in (0, False, 0.0)] == [0, False, 0.0]


def test_json_has_all_three_fields() -> None:
    assert Reading(2.5, "W").to_json() == {"value": 2.5, "unit": "W", "reason": None}
    assert unread("no sensor", "W").to_json() == {"value": None, "unit": "W", "reason": "no sensor"}


def test_only_numbers_are_taken_as_numbers() -> None:
    readings = {"a": Reading(2), "b": Reading("2"), "c": unread("gone")}
    assert [number(readings, name) for name in "abcd"] == [2.0, None, None, None]


def test_a_file_is_read_without_the_kernels_zeros(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"A board\0\n")
    assert Tree(tmp_path).reading("/model") == Reading("A board")


def test_a_missing_file_is_named_without_the_root(tmp_path: Path) -> None:
    assert Tree(tmp_path).reading("/sys/x", int, "W") == unread("/sys/x is not there", "W")


def test_a_file_for_root_only_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deny(monkeypatch, "energy_uj")
    assert Tree(tmp_path).reading("/sys/energy_uj").reason == "/sys/energy_uj may be read by root only"


def test_a_sensor_that_is_off_says_what_the_kernel_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def off(self: Tree, path: str) -> str:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(Tree, "text", off)
    assert Tree(tmp_path).reading("/sys/temp").reason == "/sys/temp cannot be read: Resource temporarily unavailable"


@pytest.mark.parametrize("garbage", [b"", b"\0", b"n/a", b"\xff\xfe", b"12 13", b"<unknown>" * 50])
def test_garbage_is_no_number(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / "temp").write_bytes(garbage)
    reading = Tree(tmp_path).reading("/temp", scaled(1e-3), "C")
    assert reading.value is None
    assert "/temp holds something else" in str(reading.reason)
    assert len(str(reading.reason)) < 100


def test_an_empty_text_is_no_value(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"\n")
    assert Tree(tmp_path).reading("/model").reason == "/model is empty"


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "x"])
def test_numbers_are_finite(text: str) -> None:
    with pytest.raises(ValueError, match=text):
        finite(text)


def test_folders_are_found_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number_ in (10, 2, 1):
        (tmp_path / f"sys/zone{number_}").mkdir(parents=True)
    assert Tree(tmp_path).find("/sys/zone*") == ["/sys/zone1", "/sys/zone2", "/sys/zone10"]


def test_a_command_gives_what_it_printed() -> None:
    assert files.run(sys.executable, "-c", "import os; print(os.environ['LC_ALL'])").strip() == "C"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("/no/such/command",), "/no/such/command cannot be run: No such file or directory"),
        ((sys.executable, "-c", "raise SystemExit('needs  root')"), "failed with exit code 1: needs root"),
        ((sys.executable, "-c", "raise SystemExit(3)"), "failed with exit code 3: no message"),
    ],
)
def test_a_command_that_fails_says_why(words: tuple[str, ...], found: str) -> None:
    with pytest.raises(CommandError) as caught:
        files.run(*words)
    assert found in str(caught.value)


def test_a_command_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "TIMEOUT_S", 0.2)
    with pytest.raises(CommandError, match=r"did not answer in 0\.2 s"):
        files.run(sys.executable, "-c", "import time; time.sleep(60)")


def test_a_command_has_no_input() -> None:
    assert files.run(sys.executable, "-c", "import sys; print(repr(sys.stdin.read()))").strip() == "''"
