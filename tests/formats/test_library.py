"""A library of the wrong version, or one that does not load, is an unavailable backend and says what to do."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

from samx.errors import MissingExtraError, UnavailableError
from samx.formats.tensorrt.library import (
    LIBRARIES,
    Library,
    concerns,
    figures,
    first_error,
    library_of,
    summary,
    version_of,
)

RTX, TRT = library_of("trt-rtx"), library_of("trt")


def test_the_installed_library_opens() -> None:
    opened = RTX.start()
    assert opened.version.startswith("1.7")
    assert opened.messages == []


@pytest.mark.parametrize(
    ("library", "version", "works"),
    [
        (TRT, "10.3.0", True), (TRT, "10.3.0.30", True), (TRT, "10.16.1.11", True), (TRT, "11.4.0.106", True),
        (TRT, "8.6.1", False), (TRT, "10.2.0", False), (TRT, "unknown", False),
        (RTX, "1.7.1.116", True), (RTX, "1.6.0", False), (RTX, "1.8.0", False), (RTX, "2.0", False),
    ],
)  # fmt: skip
def test_versions(library: Library, version: str, works: bool) -> None:
    if works:
        library.check_version(version)
        return
    with pytest.raises(UnavailableError, match=f"found {version}, expected {library.versions}") as caught:
        library.check_version(version)
    assert caught.value.exit_code == 5


def test_the_versions_are_said() -> None:
    assert (TRT.versions, RTX.versions) == ("10.3 or newer", "1.7 or newer, older than 1.8")


@pytest.mark.parametrize(("error", "words"), [(ImportError, "libnvinfer.so.10"), (OSError, "libnvinfer.so.10")])
def test_a_library_that_does_not_load_is_unavailable(
    error: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> ModuleType:
        raise error(f"{words}: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(UnavailableError, match=f"TensorRT does not load: found {words}") as caught:
        TRT.open()
    assert not isinstance(caught.value, MissingExtraError)


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> ModuleType:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(importlib, "import_module", fail)
    for library in LIBRARIES:
        with pytest.raises(MissingExtraError, match=rf"pip install 'samx\[{library.extra}\]'"):
            library.open()


@pytest.mark.parametrize(
    ("library", "a", "b", "same"),
    [
        (RTX, "1.7.1.116", "1.7.0.2", True), (RTX, "1.7.1", "1.8.0", False),
        (TRT, "10.3.0", "10.3.0", True), (TRT, "10.3.0.26", "10.3.0.30", False),
    ],
)  # fmt: skip
def test_how_much_of_a_version_binds_an_engine(library: Library, a: str, b: str, same: bool) -> None:
    assert (library.engine_version(a) == library.engine_version(b)) is same


def test_a_version_is_read_up_to_what_is_no_number() -> None:
    assert version_of("10.7.0.post1") == (10, 7, 0)


def test_the_log_is_recorded_with_its_severity() -> None:
    opened = RTX.start()
    severity = opened.module.ILogger.Severity
    opened.logger.log(severity.WARNING, "two\n  lines")
    opened.logger.log(severity.VERBOSE, "much")
    assert opened.messages == [("WARNING", "two lines")]


@pytest.mark.parametrize(
    ("text", "topics"),
    [
        ("Detected layernorm nodes in FP16. Running layernorm in FP16 may cause overflow", ["precision"]),
        ("Your ONNX model has INT64 weights. Attempting to cast down to INT32.", ["precision"]),
        ("One or more weights outside the range of INT32 was clamped", ["precision"]),
        ("Weights [name=W] had subnormal FP16 values", ["precision"]),
        ("Input point_coords: dimension 0 lies outside the optimization profile", ["shape"]),
        ("Broadcasting of tensor x is implicit", ["shape"]),
        ("CUDA lazy loading is not enabled. Enabling it can reduce device memory usage", []),
        ("Using a timing cache of another device", []),
    ],
)
def test_warnings_about_precision_and_shape_are_told_apart(text: str, topics: list[str]) -> None:
    assert [found.partition(":")[0] for found in concerns([("WARNING", text)])] == topics
    assert concerns([("INFO", text)]) == []


def test_memory_is_read_from_the_log_as_far_as_it_is_said() -> None:
    said = [("INFO", "Max Scratch Memory: 30 bytes"), ("INFO", "Max Scratch Memory: 20 bytes")]
    assert figures(said) == {"scratch_bytes": 30, "weights_bytes": None}


def test_the_report_counts_everything_and_keeps_what_is_more_than_information() -> None:
    messages = [("INFO", "a"), ("INFO", "b"), ("WARNING", "c"), ("ERROR", "d")]
    found = summary(messages)
    assert found["counts"] == {"INFO": 2, "WARNING": 1, "ERROR": 1}
    assert [entry["text"] for entry in found["messages"]] == ["c", "d"]
    assert first_error(messages) == "d"
    assert first_error([]) == "no message"
