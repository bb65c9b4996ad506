"""bench() from the request to the file: everything is checked first, and the report is there whatever happens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_artifacts import SMALL, ConeSession, opener, toy_artifact, zeros
from bench_toys import toy_report

import samx.commands.bench
from samx.benchmarks import harness, subjects
from samx.benchmarks.cold_start import FIELDS
from samx.benchmarks.interleave import Effort
from samx.benchmarks.results import BenchReport, NotMeasured
from samx.benchmarks.scenarios import Scenario
from samx.commands.bench import bench, command_line, require_complete
from samx.errors import BenchmarkError, ImageError, ParityError, UsageError, WriteError
from samx.models.session import Feed, Outputs, Placement


class FailingSession(ConeSession):
    """Raise at one call."""

    def __init__(self, at: int, error: BaseException) -> None:
        super().__init__(SMALL)
        self.calls, self.at, self.error = 0, at, error

    def decode(self, prompts: Feed) -> Outputs:
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return super().decode(prompts)


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return toy_artifact(tmp_path / "toy")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure ten calls, whatever they take."""

    def effort(self: Scenario, seconds: float) -> Effort:
        return Effort(0, least=10, wanted=10, warm_up_s=0, warm_up_calls=1)

    def starter(artifact: Path, device: str, threads: int | None, feed: Feed, calls: int) -> dict[str, Any]:
        spent = (3, 2, 1, [5] * calls, {"value": 1, "unit": "bytes", "reason": None})
        return dict(zip(FIELDS, spent, strict=True))

    monkeypatch.setattr(Scenario, "effort", effort)
    monkeypatch.setattr(samx.commands.bench, "Harness", partial(harness.Harness, starter=starter))


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Callable[[ConeSession], None]:
    def use(found: ConeSession) -> None:
        monkeypatch.setattr(subjects, "open_session", opener(found))

    use(ConeSession(SMALL))
    return use


@pytest.mark.usefixtures("session")
def test_the_report_holds_everything_and_is_written(toy: Path, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []

    def note(text: str, done: int = 0, total: int = 0, /) -> None:
        steps.append((text, done, total))

    report = bench([toy], quick=True, output=tmp_path / "report.json", threads=1, seed=5, progress=note)
    assert BenchReport.load(tmp_path / "report.json") == report
    assert (report.partial, report.quick, report.threads, report.seed) == (None, True, 1, 5)
    assert {(entry.scenario, entry.phase) for entry in report.results} == {
        ("click", "steady"), ("click", "post_processing"), ("box", "steady"), ("batch8", "steady"),
        ("batch8", "post_processing"), ("cold", "import"), ("cold", "load"), ("cold", "first_call"),
    }  # fmt: skip
    assert report.subjects[0].parity.verdict == "passed"
    assert report.subjects[0].placement is not None
    assert report.subjects[0].placement["operations"] == {"cpu": 1}
    assert "cpu" in report.device.kinds
    assert report.device.samples
    assert report.images.startswith("parity suite of toy: synthetic")
    assert ("Measuring click, steady", 0, 4) in steps
    require_complete(report)


@pytest.mark.usefixtures("session")
def test_results_lie_on_the_clock_of_the_telemetry(toy: Path) -> None:
    report = bench([toy], scenarios=["click"])
    times = [sample["time_ns"] for sample in report.device.samples]
    for result in report.results:
        assert times[0] < result.start_ns < result.end_ns < times[-1]


@pytest.mark.usefixtures("session")
def test_two_artifacts_get_ratios_and_other_checkpoints_are_flagged(toy: Path, tmp_path: Path) -> None:
    other = toy_artifact(tmp_path / "other", checkpoint="large")
    report = bench([toy, other], scenarios=["click"])
    assert [(ratio.baseline, ratio.candidate, ratio.phase) for ratio in report.ratios] == [("toy", "other", "steady")]
    assert any("different checkpoints" in flag for flag in report.flags)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("the device is gone")])
def test_a_run_that_ends_early_leaves_its_report(
    toy: Path, tmp_path: Path, session: Callable[[ConeSession], None], error: BaseException
) -> None:
    session(FailingSession(20, error))
    report = bench([toy], scenarios=["click", "box"], output=tmp_path / "report.json")
    assert BenchReport.load(tmp_path / "report.json") == report
    assert report.partial is not None
    assert report.find("toy", "click") is not None
    with pytest.raises(BenchmarkError, match="the measurement is not complete: found") as caught:
        require_complete(report)
    assert caught.value.exit_code == 4


def test_a_run_that_ends_at_once_leaves_its_report(
    toy: Path, tmp_path: Path, session: Callable[[ConeSession], None]
) -> None:
    session(FailingSession(1, KeyboardInterrupt()))
    bench([toy], output=tmp_path / "report.json")
    report = BenchReport.load(tmp_path / "report.json")
    assert (report.results, report.subjects[0].placement) == ((), None)


@pytest.mark.usefixtures("session")
def test_a_report_that_is_there_is_not_replaced_unasked(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("mine")
    with pytest.raises(WriteError, match="exists already"):
        bench([toy], output=tmp_path / "report.json")
    assert (tmp_path / "report.json").read_text() == "mine"
    bench([toy], output=tmp_path / "report.json", overwrite=True, scenarios=["click"])
    assert BenchReport.load(tmp_path / "report.json").results


@pytest.mark.usefixtures("session")
def test_own_embeddings_are_measured(toy: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "photo.npz", **zeros(SMALL, 1.0))  # type: ignore[arg-type]
    report = bench([toy], scenarios=["click"], embeddings=[tmp_path / "photo.npz"])
    assert report.images == "embeddings: photo.npz"
    np.savez(tmp_path / "photo.npz", image_embeddings=np.full((1, 256, 8, 8), np.nan, np.float32))
    with pytest.raises(ImageError, match="not finite"):
        bench([toy], scenarios=["click"], embeddings=[tmp_path / "photo.npz"])


@pytest.mark.parametrize(
    ("values", "words"),
    [({"paths": []}, "artifacts to measure"), ({"threads": 0}, "threads"), ({"seconds": 0.0}, "seconds"),
     ({"seconds": float("nan")}, "seconds"), ({"seconds": float("inf")}, "seconds"), ({"seed": -1}, "seed")],
)  # fmt: skip
def test_requests_that_cannot_be_meant_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=f"{words} cannot be"):
        bench(**{"paths": [Path("toy")], **values})  # type: ignore[arg-type]


@pytest.mark.usefixtures("session")
def test_the_command_measures_the_same_again(toy: Path) -> None:
    report = bench([toy], scenarios=["click"], seconds=1.5, threads=2)
    words = f"samx bench {toy} --device cpu --threads 2 --seed 0 --seconds 1.5 --scenario click"
    assert " ".join(report.command) == words
    options = {"--threads": None, "--embedding": [Path("x.npz"), Path("y.npz")], "--checkpoint": Path("w.pth")}
    assert " ".join(command_line([Path("a"), Path("b")], True, options)) == (
        "samx bench a b --quick --embedding x.npz --embedding y.npz --checkpoint w.pth"
    )
    report = bench([toy], quick=True, scenarios=("click",))
    assert " ".join(report.command) == f"samx bench {toy} --quick --device cpu --seed 0 --scenario click"


@pytest.mark.usefixtures("session")
def test_contenders_have_to_have_the_artifacts_weights(toy: Path) -> None:
    with pytest.raises(UsageError, match=r"made from another checkpoint.*Name its file with --checkpoint") as caught:
        bench([toy], scenarios=["click"], against=["meta"])
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="nobody of that name"):
        bench([toy], against=["nobody"])


def test_a_contender_that_computes_something_else_ends_with_3_and_one_that_is_missing_does_not() -> None:
    missing = NotMeasured("meta", None, None, "its package 'segment_anything' is not installed")
    require_complete(toy_report(not_measured=(missing,)))
    with pytest.raises(ParityError, match="meta was not measured: it computes something else") as caught:
        require_complete(toy_report(not_measured=(replace(missing, wrong=True),)))
    assert caught.value.exit_code == 3


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize(
    ("asked", "seconds"), [({"quick": True}, 1.0), ({"quick": True, "seconds": 0.1}, 0.1), ({}, 3.0)]
)
def test_quick_is_never_longer(asked: dict[str, Any], seconds: float, toy: Path) -> None:
    assert bench([toy], scenarios=["click"], **asked).seconds == seconds


def test_a_complete_report_passes() -> None:
    require_complete(toy_report())
    with pytest.raises(BenchmarkError):
        require_complete(toy_report(partial="stopped"))


def test_work_that_ran_elsewhere_and_a_coarse_clock_are_flagged(
    toy: Path, session: Callable[[ConeSession], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    astray = ConeSession(SMALL)
    placement = Placement("onnxruntime", "cuda", {"cuda": 5, "cpu": 2}, {})
    monkeypatch.setattr(astray, "placement", lambda: placement)
    session(astray)
    monkeypatch.setattr(samx.commands.bench, "step_ns", lambda clock: 10**9)
    flags = bench([toy], scenarios=["click"]).flags
    assert "toy was asked to run on cuda, and ran {'cuda': 5, 'cpu': 2} operations by device" in flags
    assert "the clock is too coarse for click of toy: steps of 1000000000 ns" in flags
