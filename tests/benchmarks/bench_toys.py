"""Sessions that take as long as they are told, on a clock that moves only then; and a report made by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from fake_candidates import FakeClock

from samx.artifacts.store import Artifact
from samx.benchmarks.cold_start import FIELDS
from samx.benchmarks.harness import Harness
from samx.benchmarks.results import (
    BenchReport,
    Comparison,
    DeviceRecord,
    NotMeasured,
    ParityRecord,
    Result,
    SubjectRecord,
)
from samx.benchmarks.scenarios import BY_NAME, Scenario, Workload
from samx.benchmarks.subjects import Subject
from samx.devices.adapter import Reading, unread
from samx.errors import PromptError
from samx.models.session import Feed, Outputs, Placement
from samx.models.spec import DecoderSpec, sam1_spec
from samx.progress import silent
from samx.runtimes.base import CopiesOnly

SPEC = sam1_spec(image_size=64)
MS = 1_000_000
PARITY = ParityRecord("passed", "graph", "cpu", "toy", "2026-01-01T00:00:00+00:00", "stored", 13, {"mask_iou_p05": 1.0})
NO_POWER = {"value": None, "unit": "mJ", "reason": "no power reading"}


class TimedSession:
    """Take a given time a prompt, and note what was asked."""

    def __init__(self, clock: FakeClock, name: str, prompt_ms: float = 20.0, spec: DecoderSpec = SPEC) -> None:
        self.spec = spec
        self.clock, self.name, self.prompt_ns = clock, name, round(prompt_ms * MS)
        self.first_ns, self.most_points = 0, 100
        self.fails: Callable[[int], BaseException | None] = lambda call: None
        self.asked: list[Feed] = []
        self.images = 0

    def set_image(self, image: Feed) -> None:
        self.images += 1
        self.clock.now_ns += 5 * MS

    def decode(self, prompts: Feed) -> Outputs:
        n, points = prompts["point_labels"].shape
        if points > self.most_points:
            raise PromptError("too many points a prompt", found=points, expected=self.most_points)
        self.asked.append(prompts)
        self.clock.calls.append((self.name, n))
        if error := self.fails(len(self.asked)):
            raise error
        self.clock.now_ns += n * self.prompt_ns + (self.first_ns if len(self.asked) <= 2 else 0)
        return self.answer(n)

    def answer(self, n: int) -> Outputs:
        size, masks = self.spec.mask_size, self.spec.masks_out
        level = np.float32(len(self.asked))  # another mask every time, so that a stale one shows
        return {
            "low_res_masks": np.full((min(n, 8), masks, size, size), level),
            "iou_predictions": np.tile(np.linspace(0.5, 0.9, masks, dtype=np.float32), (min(n, 8), 1)),
        }

    def placement(self) -> Placement:
        return Placement("toy", "cpu", {"cpu": 7}, {})


class CopyingSession(CopiesOnly, TimedSession):
    """Work on a device of its own: a call that only copies takes 2 ms."""

    def decode(self, prompts: Feed) -> Outputs:
        if self._works:
            return super().decode(prompts)
        self.clock.now_ns += 2 * MS
        return {}


def energy_mj(start_ns: int, end_ns: int) -> Reading:
    """Draw 10 W."""
    return Reading((end_ns - start_ns) * 10 / 1e6, "mJ") if end_ns > start_ns else unread("no time", "mJ")


def no_starter(artifact: Path, device: str, threads: int | None, feed: Feed, calls: int) -> dict[str, Any]:
    raise AssertionError("no process was expected")


def workload(spec: DecoderSpec = SPEC, images: int = 2) -> Workload:
    rng = np.random.default_rng(0)
    made = [
        {t.name: rng.normal(size=tuple(map(int, t.shape))).astype(np.float32) for t in spec.image_inputs}
        for _ in range(images)
    ]
    return Workload(spec, tuple(made), "toy images", 0)


def harness(sessions: Sequence[TimedSession], *, seconds: float = 0.5, **changes: Any) -> Harness:
    """Bind sessions to a harness without an artifact behind them."""
    clock = sessions[0].clock
    artifact = Artifact(Path("toy"), None)  # type: ignore[arg-type]  # nothing here asks for its manifest
    subjects = [Subject(session, toy_subject(session.name), artifact) for session in sessions]
    plain = Harness(
        subjects, workload(sessions[0].spec), "cpu", None, seconds, False, clock, energy_mj,
        silent, no_starter,
    )  # fmt: skip
    return replace(plain, **changes)


def calls_alone(*names: str) -> list[Scenario]:
    """Leave post-processing out: it is real work, for which the fake clock stands still."""
    return [replace(BY_NAME[name], post_processing=False) for name in names]


def measured(run: Harness, *names: str) -> dict[tuple[str, str, str], Result]:
    run.run(calls_alone(*names))
    assert run.partial is None
    return {(result.subject, result.scenario, result.phase): result for result in run.results}


def pair() -> tuple[TimedSession, TimedSession]:
    clock = FakeClock()
    return TimedSession(clock, "slow", 20), TimedSession(clock, "quick", 10)


def cold_start(artifact: Path, device: str, threads: int | None, feed: Feed, calls: int) -> dict[str, Any]:
    """Stand in for a process."""
    peak = {"value": 5_000_000, "unit": "bytes", "reason": None}
    spent = (300 * MS, 200 * MS, 50 * MS, [40 * MS] * calls, peak)
    return dict(zip(FIELDS, spent, strict=True))


def toy_result(subject: str = "a", times_ms: Sequence[float] = (10, 11, 12), **changes: Any) -> Result:
    samples = tuple(round(ms * MS) for ms in times_ms)
    plain = Result(subject, "click", "steady", 1, (2,), 3, 200 * MS, 5, 5 + sum(samples), samples, NO_POWER, None)
    return replace(plain, **changes)


def toy_subject(name: str = "a") -> SubjectRecord:
    placement = {"runtime": "toy", "requested": "cpu", "operations": {"cpu": 7}, "details": {}}
    sums = ("1" * 64, "2" * 64)
    return SubjectRecord(
        name, "onnx", "fp32", "sam1", "multimask", False, "toy", *sums, 2**20, None, {"slots": False}, PARITY, placement
    )


def toy_report(**changes: Any) -> BenchReport:
    """Make a report of two artifacts, the second twice as fast."""
    results = (toy_result("a", (20, 22, 24)), toy_result("b", (10, 11, 12)))
    reading = {"value": 1.5, "unit": "W", "reason": None}
    kind = {"name": "toy processor", "facts": {}, "before": {"power": reading}, "after": {"power": NO_POWER}}
    sample = {"time_ns": 5, "readings": {"cpu": {"power": 1.5, "governor": "powersave"}}}
    cost = {"value": 80.0, "unit": "us", "reason": None}
    device = DeviceRecord(
        "cpu", {"platform": "toy"}, {"cpu": kind}, (sample,), {"interval_s": 0.2, "cost": cost}, ("throttled",)
    )
    plain = BenchReport(
        created="2026-01-01T00:00:00+00:00", samx="0.1.0", quick=False, partial=None,
        command=("samx", "bench", "a", "b"), threads=None, seed=0, seconds=3.0, images="toy images",
        clock="perf_counter_ns", clock_step_ns=40,
        device=device, subjects=(toy_subject("a"), toy_subject("b")), results=results,
        ratios=(Comparison("click", "steady", "a", "b", 2.0, 1.9, 2.1),),
        not_measured=(NotMeasured("a", None, "transfer", "nothing is copied"),), flags=(),
    )  # fmt: skip
    return replace(plain, **changes)
