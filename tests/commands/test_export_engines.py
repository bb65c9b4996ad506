"""What an export does after its graph was judged, with stand-ins for the compiler and the GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from samx.artifacts.draft import Draft
from samx.artifacts.manifest import CheckpointEntry, Evidence, Lowered, Manifest, utc_now
from samx.commands import proof as module
from samx.commands.proof import compile_draft
from samx.errors import ParityError, UnavailableError
from samx.models.spec import DecoderSpec
from samx.progress import silent
from samx.registry import backend
from samx.validators.report import DEVICE_REPORT_FILE, ParityReport

HERE = __name__
GPU: list[str] = []
OPENED: list[bool] = []
FAULT: list[Exception] = []


def devices() -> list[str]:
    return GPU


def compile_toy(directory: Path, manifest: Manifest, progress: object) -> Lowered:
    if FAULT:
        raise FAULT[0]
    (directory / "decoder.engine").write_bytes(b"engine")
    (directory / "lowering.json").write_bytes(b"{}")
    evidence = Evidence("lowered", "lowering.json", True, "toy", "toy", utc_now())
    files = {"decoder.engine": "engine", "lowering.json": "lowering_report"}
    return Lowered(files, evidence, {"toy": "1"}, 0.1, (), OPENED[0])


class FakeReport:
    """Pass or fail as told."""

    level, placement = "device", {"runtime": "toy", "requested": "cuda"}
    evidence = ParityReport.evidence

    def __init__(self, passed: bool) -> None:
        self.passed = passed

    def summary(self) -> str:
        return "parity failed: toy"

    def save(self, path: Path) -> None:
        path.write_bytes(b"{}")


@pytest.fixture
def made(tmp_path: Path) -> Draft:
    """A draft whose graph was judged."""
    (tmp_path / "decoder.onnx").write_bytes(b"graph")
    draft = Draft(tmp_path, tmp_path / "toy")
    draft.add({"decoder.onnx": "decoder"})
    draft.seal(Manifest("trt", "fp16", DecoderSpec(), CheckpointEntry("t", "t", "0" * 64, 1)))
    return draft


def run(
    made: Draft, monkeypatch: pytest.MonkeyPatch, *, gpu: bool, opened: bool, anywhere: bool, good: bool
) -> ParityReport | None:
    monkeypatch.setattr(f"{HERE}.GPU", ["cuda"] if gpu else [])
    monkeypatch.setattr(f"{HERE}.OPENED", [opened])
    monkeypatch.setattr(module, "gate_in_child", lambda *_, **__: FakeReport(good))
    entry = replace(
        backend("trt"), library="json", devices=f"{HERE}:devices", compiler=f"{HERE}:compile_toy",
        compiles_anywhere=anywhere,
    )  # fmt: skip
    return compile_draft(made, entry, "Nothing was written.", silent)


@pytest.mark.parametrize(
    ("gpu", "opened", "anywhere", "levels"),
    [
        (True, True, False, ["lowered", "device"]),
        (False, False, False, []),
        (False, False, True, ["lowered"]),
        (True, False, True, ["lowered"]),  # an engine for other GPUs than this machine's
    ],
)
def test_what_was_shown_is_what_is_claimed(
    gpu: bool, opened: bool, anywhere: bool, levels: list[str], made: Draft, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = run(made, monkeypatch, gpu=gpu, opened=opened, anywhere=anywhere, good=True)
    assert [evidence.level for evidence in made.manifest.evidence] == levels
    assert (DEVICE_REPORT_FILE in made.manifest.files) is ("device" in levels)
    assert (report is not None) is ("device" in levels)


def test_an_engine_that_computes_something_else_is_no_export(made: Draft, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParityError, match="parity failed: toy"):
        run(made, monkeypatch, gpu=True, opened=True, anywhere=False, good=False)


def test_a_machine_that_cannot_compile_says_so_and_claims_nothing(made: Draft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{HERE}.FAULT", [UnavailableError("compiling needs a newer macOS")])
    run(made, monkeypatch, gpu=True, opened=True, anywhere=False, good=True)
    assert made.manifest.evidence == ()
    assert made.notes == ["Not compiled here: compiling needs a newer macOS"]
    with pytest.raises(UnavailableError):  # where it compiles anywhere, the engine is what was asked for
        run(made, monkeypatch, gpu=True, opened=True, anywhere=True, good=True)
