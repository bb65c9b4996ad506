"""Opening an engine without a driver is an unavailable device; what is no engine is a refused artifact."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from engine_toys import toy_onnx, toy_plan

from samx.errors import ArtifactError, UnavailableError
from samx.exporters.tensorrt.build import build_engine
from samx.formats.tensorrt.engine import load_engine
from samx.formats.tensorrt.library import Message, Opened, library_of


@pytest.fixture(scope="module")
def rtx() -> Opened:
    return library_of("trt-rtx").start()


def test_an_engine_does_not_open_without_a_driver(rtx: Opened) -> None:
    engine, *_ = build_engine(toy_onnx(), toy_plan(), rtx)
    with pytest.raises(UnavailableError, match=r"finds no usable GPU: found .*driver") as caught:
        load_engine(engine, rtx, "toy")
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_engine_are_refused(rtx: Opened) -> None:
    with pytest.raises(
        ArtifactError, match=r"refuses the engine of toy: found .* Build it here with 'samx build toy'"
    ) as caught:
        load_engine(b"no engine at all" * 100, rtx, "toy")
    assert caught.value.exit_code == 6


def fake_library(diagnostics: int, error: str) -> Opened:
    """A library that refuses every engine, and tells why in bits."""
    messages: list[Message] = []

    class Runtime:
        engine_header_size = 4

        def __init__(self, logger: object) -> None:
            pass

        def deserialize_cuda_engine(self, data: bytes) -> None:
            messages.append(("ERROR", error))

        def get_engine_validity(self, header: bytes) -> tuple[int, int]:
            assert header == b"engi"
            return 2, diagnostics

    module = ModuleType("tensorrt_rtx")
    members: dict[str, Any] = {"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2, "MALFORMED_ENGINE": 32}
    module.__dict__.update(
        Runtime=Runtime, __version__="1.7.1", EngineInvalidityDiagnostics=SimpleNamespace(__members__=members)
    )
    return Opened(library_of("trt-rtx"), module, None, messages)


@pytest.mark.parametrize(
    ("bits", "words"), [(1, "VERSION_MISMATCH"), (3, "VERSION_MISMATCH, UNSUPPORTED_CC"), (0, "the log's own words")]
)
def test_why_an_engine_is_refused_is_said(bits: int, words: str) -> None:
    with pytest.raises(ArtifactError, match=f"refuses the engine of toy: found {words}"):
        load_engine(b"engine", fake_library(bits, "the log's own words"), "toy")


def test_host_code_in_engines_is_never_allowed(rtx: Opened) -> None:
    assert rtx.module.Runtime(rtx.logger).engine_host_code_allowed is False
