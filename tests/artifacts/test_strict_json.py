"""JSON is read by type: what nothing wrote is one line that names the place, and never a traceback."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from samx.artifacts import strict_json as read
from samx.artifacts.strict_json import Count, Document, Positive, Sha256, Time, not_empty
from samx.errors import ArtifactError

HASH = "a" * 64


@dataclass(frozen=True)
class Part:
    """Be a dataclass inside a document."""

    name: str
    sizes: tuple[Positive, ...]
    share: float | None = None


@dataclass(frozen=True)
class Toy(Document):
    """Have a field of every kind."""

    HEADER = {"format": "toy", "schema_version": 1}
    DERIVED = ("total",)
    NOTES = ("remark",)
    ROUNDING = 1e-9

    kind: Literal["small", "large"]
    flag: bool
    count: Count
    number: float
    sha256: Sha256
    time: Time
    axis: tuple[str | Positive, ...]
    parts: Annotated[Mapping[str, Part], not_empty]
    anything: Mapping[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    remark = "for readers"

    @property
    def total(self) -> float:
        return self.number * self.count

    def check(self, where: str) -> None:
        if self.kind == "small" and self.count > 9:
            raise ArtifactError(f"{where} is not small")


TOY = Toy(
    "small", True, 3, 0.1, HASH, "2026-01-01T00:00:00+00:00", ("n", 2), {"one": Part("a", (1, 2)), "two": Part("b", ())}
)
Data = dict[str, Any]


def data() -> Data:
    found: Data = json.loads(TOY.to_bytes())
    return found


def refusal(text: bytes) -> str:
    """Read what is no Toy, and return the line that says so."""
    with pytest.raises(ArtifactError) as caught:
        Toy.from_bytes(text, "toy.json")
    line = str(caught.value)
    assert line.startswith("toy.json")
    assert "\n" not in line
    assert len(line) < 500
    line.encode()  # can be shown
    assert caught.value.exit_code == 6
    return line


def changed(path: str, value: Any) -> bytes:
    found = data()
    *folders, last = path.split("/")
    inner: Any = found
    for folder in folders:
        inner = inner[int(folder) if isinstance(inner, list) else folder]
    inner[int(last) if isinstance(inner, list) else last] = value
    return json.dumps(found).encode()


def test_a_document_survives_its_file() -> None:
    assert Toy.from_bytes(TOY.to_bytes(), "toy.json") == TOY
    assert list(data())[:4] == ["format", "schema_version", "total", "remark"]
    assert data()["parts"]["one"] == {"name": "a", "sizes": [1, 2], "share": None}


def test_whole_numbers_stand_for_floats_and_derived_ones_may_differ_in_their_last_digit() -> None:
    found = Toy.from_bytes(changed("number", 1).replace(b'"total": 0.30000000000000004', b'"total": 3'), "toy.json")
    assert type(found.number) is float
    assert Toy.from_bytes(changed("total", 0.3), "toy.json") == TOY
    assert type(Toy.from_bytes(changed("parts/one/share", 1), "t").parts["one"].share) is float
    assert Toy.from_bytes(changed("remark", "whatever"), "toy.json") == TOY


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("flag", 1, "flag has the wrong type: found 1, expected bool"),
        ("flag", "true", "flag has the wrong type"),
        ("flag", None, "flag has the wrong type: found None"),
        ("count", True, "count has the wrong type: found True, expected int"),
        ("count", 3.0, "count has the wrong type: found 3.0"),
        ("count", "3", "count has the wrong type"),
        ("count", -1, "count is out of range: found -1, expected 0 or more"),
        ("count", 10**30, "count is out of range"),
        ("number", True, "number has the wrong type"),
        ("number", "0.1", "number has the wrong type"),
        ("number", 10**30, "number has the wrong type"),
        ("kind", "middle", "kind is unknown: found 'middle', expected small or large"),
        ("kind", ["small"], "kind is unknown"),
        ("sha256", "A" * 64, "sha256 is no hash"),
        ("sha256", HASH + "\n", "sha256 is no hash"),
        ("time", "2026-01-01", "time is no time"),
        ("time", "2026-01-01T00:00:00+02:00", "time is no time"),
        ("axis", "n", "axis has the wrong type: found 'n', expected list"),
        ("axis", {"0": "n"}, "axis has the wrong type"),
        ("axis/1", 0, "axis 1 is out of range: found 0, expected 1 or more"),
        ("axis/0", " ", "axis 0 is empty"),
        ("axis/0", None, "axis 0 has the wrong type"),
        ("parts", {}, "parts is empty: expected at least one entry"),
        ("parts", [], "parts has the wrong type: found [], expected dict"),
        ("parts/one", [1, 2], "parts: one has the wrong type"),
        ("parts/one/more", 1, "parts: one has other fields: found unknown more"),
        ("parts/two/sizes", [5, True], "parts: two: sizes 1 has the wrong type"),
        ("parts/two/share", "x", "parts: two: share has the wrong type"),
        ("lines", ["a", ""], "lines 1 is empty"),
        ("anything", [], "anything has the wrong type"),
        ("total", 0.4, "total: the file contradicts itself: found 0.4, expected 0.3"),
        ("total", True, "total: the file contradicts itself"),
        ("total", "0.3", "total: the file contradicts itself"),
        ("surprise", {}, "has other fields: found unknown surprise"),
        ("x" * 1000, {}, "has other fields"),
        ("schema_version", 2, "another format: found schema_version 2, expected schema_version 1"),
        ("schema_version", True, "another format"),
        ("schema_version", 1.0, "another format"),
        ("format", "zip", "another format: found format 'zip', expected format 'toy'"),
        ("format", None, "another format"),
        ("count", 10, "another"),
    ],
)
def test_what_does_not_fit_is_named(path: str, value: Any, words: str) -> None:
    if (path, value) == ("count", 10):
        words = "toy.json is not small"
    assert words in refusal(changed(path, value))


@pytest.mark.parametrize("name", [*data()])
def test_every_field_must_be_there(name: str) -> None:
    found = data()
    del found[name]
    assert "another format" in (line := refusal(json.dumps(found).encode())) or f"no {name}" in line


@pytest.mark.parametrize(
    "text",
    [
        b"", b" ", b"{", b"[" * 100_000, b'{"a":' * 100_000, b"[" * 66 + b"]" * 66, b'{"a": 1, "a": 1}',
        b'{"a": {"b": 1, "b": 2}}', b"NaN", b'{"a": Infinity}', b'{"a": -Infinity}', b'{"a": 1e999}', b"[-1e999]",
        b"9" * 5000, b"\xff\xfe{}", b"\xef\xbb\xbf{}", "{}".encode("utf-16"), b'{"a": "\x80"}', b'{"a": "\\ud800"}',
        b'{"\\udfff": 1}', b"'a'", b"{} {}", b'{"a": 01}', b'{"a": 1,}', b'"\x00"', b"// no\n{}",
    ],
)  # fmt: skip
def test_what_is_no_json_of_ours_is_refused(text: bytes) -> None:
    assert "is not valid JSON" in refusal(text)


@pytest.mark.parametrize("text", [b"[]", b"null", b"1", b'"toy"', b"-0", b"true"])
def test_what_is_no_object_is_refused(text: bytes) -> None:
    assert "has the wrong type" in refusal(text)


def test_minus_zero_is_zero() -> None:
    negative = data() | {"count": 0, "total": 0.0}
    found = Toy.from_bytes(json.dumps(negative).replace('"count": 0', '"count": -0').encode(), "toy.json")
    assert (found.count, found.total) == (0, 0.0)


def test_deep_nesting_is_refused_before_anything_walks_through_it() -> None:
    deepest: Any = 1
    for _ in range(read.DEEPEST - 2):
        deepest = [deepest]
    assert Toy.from_bytes(changed("anything", {"a": deepest}), "toy.json").to_json()["anything"] == {"a": deepest}
    assert "nested too deeply" in refusal(changed("anything", {"a": [[[deepest]]]}))


def test_every_truncation_is_refused() -> None:
    whole = TOY.to_bytes().rstrip()
    for length in range(len(whole)):
        refusal(whole[:length])


def test_values_that_no_file_could_hold_are_refused_too() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ArtifactError, match="number is not finite"):
            Toy.from_json({**data(), "number": value}, "toy")


def test_what_is_not_finite_is_not_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Toy("large", True, 1, float("nan"), HASH, TOY.time, (), TOY.parts).to_bytes()


def test_an_object_without_a_class_is_read_by_names_and_types() -> None:
    shape = {"a": Count, "b": tuple[float, ...]}
    assert read.take(shape, {"a": 1, "b": [1]}, "it") == {"a": 1, "b": (1.0,)}
    with pytest.raises(ArtifactError, match=r"^it: b 1 has the wrong type"):
        read.take(shape, {"a": 1, "b": [1.0, "2"]}, "it")
    with pytest.raises(ArtifactError, match=r"^it has the wrong type: found \[\], expected str or int"):
        read.take(str | int, [], "it")


def test_a_tuple_of_fixed_length_is_no_type_that_is_read() -> None:
    with pytest.raises(TypeError, match=r"only tuple\[T, \.\.\.\]"):
        read.take(tuple[int, str], [1, "2"], "it")
