"""Nothing is measured that was not proven on this device, and nothing is compared that does not compare."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from bench_artifacts import SMALL, ConeSession, opener, toy_artifact, toy_parity

from samx.benchmarks import subjects
from samx.benchmarks.subjects import comparability_flags, open_subjects
from samx.errors import ArtifactError, ParityError, UnavailableError, UsageError
from samx.models.session import Placement
from samx.validators.report import ParityReport

CPU = ("cpu", None)


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Open toys without their runtime, and note what is compared afresh."""
    found: list[str] = []

    def gate(path: Path, **options: object) -> ParityReport:
        found.append(f"{path.name} {options['device']} {options['level']}")
        return toy_parity()

    monkeypatch.setattr(subjects, "open_session", opener(ConeSession(SMALL)))
    monkeypatch.setattr(subjects, "gate_in_child", gate)
    return found


def test_a_report_that_this_machine_stored_is_taken(tmp_path: Path, asked: list[str]) -> None:
    (subject,) = open_subjects([toy_artifact(tmp_path / "toy")], *CPU)
    assert asked == []
    parity = subject.described.parity
    assert (parity.verdict, parity.source, parity.level) == ("passed", "stored", "graph")
    assert parity.cases == len(toy_parity().cases)
    assert parity.metrics["mask_iou_min"] == 1.0
    assert {"mask_iou_mean", "mask_iou_p05"} <= set(parity.metrics)


@pytest.mark.parametrize("fact", ["cpu", "machine", "samx"])
def test_a_report_of_another_machine_is_made_anew(tmp_path: Path, asked: list[str], fact: str) -> None:
    report = toy_parity()
    elsewhere = replace(report, environment={**report.environment, fact: "another"})
    (subject,) = open_subjects([toy_artifact(tmp_path / "toy", report=elsewhere)], *CPU)
    assert asked == ["toy cpu graph"]
    assert subject.described.parity.source == "fresh"


def test_a_report_of_another_library_version_or_none_is_made_anew(tmp_path: Path, asked: list[str]) -> None:
    report = toy_parity()
    older = replace(report, placement={**report.placement, "details": {"onnxruntime": "1.0"}})
    unknown = replace(report, placement={**report.placement, "details": {}})
    open_subjects([toy_artifact(tmp_path / "older", report=older)], *CPU)
    open_subjects([toy_artifact(tmp_path / "unknown", report=unknown)], *CPU)
    open_subjects([toy_artifact(tmp_path / "none", evidence=False)], *CPU)
    assert asked == ["older cpu graph", "unknown cpu graph", "none cpu graph"]


def test_an_artifact_that_failed_is_not_measured(tmp_path: Path) -> None:
    failed = toy_parity(shift=2.0)
    assert not failed.passed
    with pytest.raises(ParityError, match="does not compute what PyTorch computes: found parity failed") as caught:
        open_subjects([toy_artifact(tmp_path / "toy", report=failed)], *CPU)
    assert caught.value.exit_code == 3
    assert caught.value.report == failed


def test_an_artifact_that_fails_now_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subjects, "gate_in_child", lambda path, **options: toy_parity(shift=2.0))
    with pytest.raises(ParityError, match="parity failed"):
        open_subjects([toy_artifact(tmp_path / "toy", evidence=False)], *CPU)


def test_an_altered_artifact_and_a_missing_device_are_refused(tmp_path: Path) -> None:
    artifact = toy_artifact(tmp_path / "toy")
    with pytest.raises(UnavailableError, match="'tpu'"):
        open_subjects([artifact], "tpu", None)
    (artifact / "parity_report.json").write_bytes(b"{}")
    with pytest.raises(ArtifactError, match="has another size"):
        open_subjects([artifact], *CPU)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"masks": "all"}, "masks all and multimask"), ({"image_size": 64}, "image_size 64 and 128"),
     ({"mask_input": True}, "mask_input True and False")],
)  # fmt: skip
def test_different_decoders_do_not_compare(tmp_path: Path, change: dict[str, object], words: str) -> None:
    one, other = toy_artifact(tmp_path / "one"), toy_artifact(tmp_path / "other", replace(SMALL, **change))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=f"different decoders.*found {words}") as caught:
        open_subjects([one, other], *CPU)
    assert caught.value.exit_code == 2


def test_different_checkpoints_compare_and_are_flagged(tmp_path: Path) -> None:
    paths = [toy_artifact(tmp_path / "one"), toy_artifact(tmp_path / "other", checkpoint="large")]
    assert comparability_flags(open_subjects(paths, *CPU)) == [
        "the artifacts were made from different checkpoints (one: toy, other: large)"
    ]
    assert comparability_flags(open_subjects(paths[:1], *CPU)) == []


def test_names_are_unique(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    paths = [toy_artifact(tmp_path / "a" / "toy"), toy_artifact(tmp_path / "b" / "toy"), toy_artifact(tmp_path / "c")]
    assert [subject.name for subject in open_subjects(paths, *CPU)] == ["toy (1)", "toy (2)", "c"]


def test_a_subject_is_described(tmp_path: Path) -> None:
    (subject,) = open_subjects([toy_artifact(tmp_path / "toy")], *CPU)
    record = subject.record(Placement("toy", "cpu", {"cpu": 3}, {}))
    assert (record.target, record.precision, record.family, record.masks) == ("onnx", "fp32", "sam1", "multimask")
    assert (record.bytes, record.form, len(str(record.manifest_sha256))) == (len(b"no model"), "absorbed", 64)
    assert record.placement == {"runtime": "toy", "requested": "cpu", "operations": {"cpu": 3}, "details": {}}
    assert subject.record(None).placement is None
