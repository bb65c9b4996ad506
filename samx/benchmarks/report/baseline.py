"""What became slower than in an earlier run of the same artifact on the same device, by statistics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from samx.benchmarks.report.runs import UNKNOWN, Run, device_name, places
from samx.benchmarks.results import BenchReport, Result, SubjectRecord
from samx.benchmarks.summary import BLOCKS, CHANGE_CONFIDENCE, CHANGE_SAMPLES, RESAMPLES, Ratio, counted, time_ratio
from samx.errors import InputError

MARGIN = 0.05  # the smallest change that is spoken of: two starts of one program differ by a few percent
# What has no counterpart, and why: run, subject, scenario, phase, reason; None stands for all of them.
Gap = dict[str, str | None]
REGRESSED, FASTER, SAME, UNCLEAR, DOUBTFUL = "slower", "faster", "unchanged", "unclear", "doubtful"
NO_TWIN = (
    "the baseline has no such artifact: same checkpoint, masks, target and precision, and where several are alike, "
    "the same name"
)
RULE = (
    f"Two runs of one program differ: by {MARGIN:.0%}, or where calls are noisy, by as much as a quarter of them "
    f"differs from the median (half the IQR); that is the margin. A result is called slower when the "
    f"{CHANGE_CONFIDENCE:.0%} interval of its time, divided by the baseline's, lies wholly above the margin, faster "
    f"when it lies wholly below, unchanged when it lies within {MARGIN:.0%}, and unclear otherwise: measure longer "
    f"then. The ratio is that of the medians of all calls; the interval comes from {RESAMPLES:,} times drawing blocks "
    f"of consecutive calls (at most {BLOCKS} a run) with replacement. A change is doubtful, and no regression, when "
    f"either run ended early, was throttled, lost its device or began on a busy machine. Fewer than {CHANGE_SAMPLES} "
    f"calls are not compared."
)


@dataclass(frozen=True)
class Change:
    """How the time of a result changed."""

    run: str
    device: str
    subject: str
    scenario: str
    phase: str
    base_ms: float
    new_ms: float
    ratio: float  # time now by time in the baseline
    low: float
    high: float
    margin: float
    verdict: str
    doubts: tuple[str, ...]

    def sentence(self) -> str:
        """Return subject, scenario, ratio and interval in a sentence."""
        phase = "" if self.phase == "steady" else f", {self.phase}"
        return (
            f"{self.subject} in {self.scenario}{phase} on {self.device} takes {self.ratio:.3g} times as long "
            f"({CHANGE_CONFIDENCE:.0%} interval {self.low:.3g} to {self.high:.3g})"
        )


@dataclass(frozen=True)
class BaselineComparison:
    """Everything that was, and was not, compared with a baseline."""

    baseline: Run
    changes: tuple[Change, ...]
    not_compared: tuple[Gap, ...]
    differences: tuple[str, ...]  # in what surrounded the runs

    @property
    def regressions(self) -> tuple[Change, ...]:
        """Return what became slower for sure."""
        return tuple(change for change in self.changes if change.verdict == REGRESSED)

    @property
    def suspects(self) -> tuple[Change, ...]:
        """Return what would have become slower, were it not for doubts about the runs."""
        return tuple(change for change in self.changes if change.verdict == DOUBTFUL and change.ratio > 1)

    @property
    def unclear(self) -> tuple[Change, ...]:
        """Return what was measured too shortly, or too noisily, to tell."""
        return tuple(change for change in self.changes if change.verdict == UNCLEAR)

    def summary(self) -> str:
        """Return in a line how it went."""
        of = counted(len(self.changes), "result")
        found = [f"{len(self.regressions) or 'none'} of {of} became slower than the baseline"]
        found += [f"{len(self.suspects)} seemingly slower, in doubtful runs"] if self.suspects else []
        found += [f"{len(self.unclear)} unclear"] if self.unclear else []
        return "; ".join(found)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "baseline": str(self.baseline.path),
            "rule": RULE,
            "changes": [asdict(change) for change in self.changes],
            "not_compared": list(self.not_compared),
            "differences": list(self.differences),
        }


def compare(runs: tuple[Run, ...], baseline: Run) -> BaselineComparison:
    """Compare runs with a baseline: the same decoder on the same device, scenario by scenario.

    Raises: InputError when nothing can be compared.
    """
    found = [entry for run in runs for entry in _compare_run(run, baseline)]
    changes = tuple(entry for entry in found if isinstance(entry, Change))
    missing = tuple(entry for entry in found if not isinstance(entry, Change))
    if not changes:
        raise InputError(
            f"nothing can be compared with the baseline '{baseline.path}'",
            found="; ".join(dict.fromkeys(str(entry["reason"]) for entry in missing)),
            expected="a run of the same decoder, target and precision on the same device",
            fix="Measure the baseline again on this device, or name another one.",
        )  # fmt: skip
    return BaselineComparison(baseline, changes, missing, tuple(_differences(runs, baseline)))


def place(report: BenchReport) -> dict[str, str]:
    """Return what has to agree for times to be compared at all."""
    return {
        "device": device_name(report),
        "--device": report.device.requested,
        "threads": "all" if report.threads is None else str(report.threads),
        "usable CPUs": report.device.environment.get("cpus_usable", UNKNOWN),
    }


def verdict(ratio: Ratio, margin: float, doubts: tuple[str, ...]) -> str:
    """Return the verdict on a ratio of times."""
    rules = {
        REGRESSED: ratio.low > 1 + margin,
        FASTER: ratio.high < 1 / (1 + margin),
        SAME: ratio.low >= 1 / (1 + MARGIN) and ratio.high <= 1 + MARGIN,
    }
    found = next((name for name, holds in rules.items() if holds), UNCLEAR)
    return DOUBTFUL if doubts and found in (REGRESSED, FASTER) else found


def _compare_run(run: Run, baseline: Run) -> Iterator[Change | Gap]:
    if reason := _other_place(run.report, baseline.report):
        yield _gap(run, reason)
        return
    twins = {subject.name: _twin(subject, run.report, baseline.report) for subject in run.report.subjects}
    for name, twin in twins.items():
        if twin is None:
            yield _gap(run, NO_TWIN, name)
        else:
            yield from _compare_subject(run, baseline, name, twin)
    for subject in baseline.report.subjects:
        if subject.name not in twins.values():
            yield _gap(run, "only the baseline has this artifact", subject.name)


def _gap(
    run: Run, reason: str, subject: str | None = None, scenario: str | None = None, phase: str | None = None
) -> Gap:
    return {"run": run.key, "subject": subject, "scenario": scenario, "phase": phase, "reason": reason}


def _compare_subject(run: Run, baseline: Run, subject: str, twin: str) -> Iterator[Change | Gap]:
    before = {(r.scenario, r.phase): r for r in baseline.report.results if r.subject == twin}
    now = {(r.scenario, r.phase): r for r in run.report.results if r.subject == subject}
    for where in now | before:
        reason = _not_alike(before.get(where), now.get(where))
        if reason is None:
            yield _change(run, baseline, before[where], now[where])
        else:
            yield _gap(run, reason, subject, *where)


def _change(run: Run, baseline: Run, base: Result, new: Result) -> Change:
    ratio = time_ratio(base.samples_ns, new.samples_ns, max(len(new.points), 1))
    margin = max(MARGIN, base.summary.spread / 2, new.summary.spread / 2)  # half an IQR: to the quartile
    doubts = tuple(_excuses(run, "this run") + _excuses(baseline, "the baseline"))
    judged = verdict(ratio, margin, doubts)
    named = (run.key, run.device, new.subject, new.scenario, new.phase)
    medians = (base.summary.median_ms, new.summary.median_ms)
    return Change(*named, *medians, ratio.value, ratio.low, ratio.high, margin, judged, doubts)


def _excuses(run: Run, who: str) -> list[str]:
    return [f"{who}: {doubt['text']}" for doubt in run.doubts if doubt["excuses"]]


def _other_place(new: BenchReport, base: BenchReport) -> str | None:
    """Return why times of the two do not compare."""
    here, there = place(new), place(base)
    if here["device"] == UNKNOWN:
        return "the device did not tell its name"
    differing = [f"{name} {here[name]}, in the baseline {there[name]}" for name in here if here[name] != there[name]]
    return f"measured elsewhere: {'; '.join(differing)}" if differing else None


def _not_alike(base: Result | None, new: Result | None) -> str | None:
    """Return why two results do not compare."""
    if base is None or new is None:
        return "the baseline has no such result" if base is None else "only the baseline has this result"
    if (base.prompts, base.points) != (new.prompts, new.points):
        return "it had other prompts in the baseline"
    fewest = min(len(base.samples_ns), len(new.samples_ns))
    return None if fewest >= CHANGE_SAMPLES else f"too few samples: {fewest} of at least {CHANGE_SAMPLES}"


def _twin(subject: SubjectRecord, new: BenchReport, base: BenchReport) -> str | None:
    """Find the same decoder in the baseline; by its name, where either report has several of them."""
    alike = [other.name for other in base.subjects if _identity(other) == _identity(subject)]
    siblings = [other for other in new.subjects if _identity(other) == _identity(subject)]
    if len(alike) == len(siblings) == 1:
        return alike[0]
    return subject.name if subject.name in alike else None


def _identity(subject: SubjectRecord) -> tuple[object, ...]:
    return (subject.checkpoint_sha256, subject.family, subject.masks, subject.mask_input, subject.target,
            subject.precision)  # fmt: skip


def _differences(runs: tuple[Run, ...], baseline: Run) -> Iterator[str]:
    """Name what else changed, since it may be the cause: system, libraries, where operations ran."""
    for run in runs:
        if _other_place(run.report, baseline.report) is None:
            now, before = _surroundings(run.report, baseline.report), _surroundings(baseline.report, baseline.report)
            for name in sorted(now.keys() & before.keys()):
                if now[name] != before[name]:
                    yield f"{run.key}: {name} {before[name]} \u2192 {now[name]}"


def _surroundings(report: BenchReport, base: BenchReport) -> dict[str, str]:
    """Describe what surrounded a run, artifacts by the names that they have in the baseline."""
    twins = {twin: subject for subject in report.subjects if (twin := _twin(subject, report, base)) is not None}
    ran = {f"{twin} ran": places((subject.placement or {}).get("operations")) for twin, subject in twins.items()}
    facts = {f"{kind} {name}": str(reading["value"]) for kind, device in report.device.kinds.items()
             for name, reading in device["facts"].items() if reading["value"] is not None}  # fmt: skip
    return {**report.device.environment, **facts, **ran}
