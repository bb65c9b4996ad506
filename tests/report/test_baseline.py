"""Only what is alike is compared, everything else is named, and doubtful runs accuse nobody."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_toys import CPU, bench_report, device, slower, subject

from samx.benchmarks.report.baseline import MARGIN, BaselineComparison, Change, compare, verdict
from samx.benchmarks.report.runs import Run
from samx.benchmarks.results import BenchReport
from samx.benchmarks.summary import Ratio
from samx.errors import InputError

HOT = "the GPU's clocks were held down in 3 of 40 samples: heat, by software"
SEVERAL = {"onnx opset 18": 18, "onnx opset 23": 23}


def compared(new: BenchReport, base: BenchReport) -> BaselineComparison:
    return compare((Run("A", Path("new.json"), new),), Run("baseline", Path("base.json"), base))


def one(found: BaselineComparison, scenario: str = "click", phase: str = "steady", of: str = "fp32") -> Change:
    (change,) = [c for c in found.changes if (c.scenario, c.phase) == (scenario, phase) and c.subject.endswith(of)]
    return change


def reasons(found: BaselineComparison) -> str:
    return "; ".join(str(gap["reason"]) for gap in found.not_compared)


def test_a_planted_slowdown_of_a_tenth_is_the_only_regression() -> None:
    found = compared(slower(bench_report(seed=1), 1.1), bench_report(seed=2))
    assert {(c.subject, c.scenario) for c in found.regressions} == {
        ("sam1-onnx-fp32", "click"),
        ("sam1-onnx-int8", "click"),
    }
    assert "sam1-onnx-fp32 in click on Toy processor takes 1." in found.regressions[0].sentence()
    assert "99% interval 1.0" in found.regressions[0].sentence()


def test_pure_noise_is_no_regression_in_many_runs() -> None:
    false = [compared(bench_report(seed=seed, noise=0.1), bench_report(seed=seed + 50, noise=0.1)).regressions
             for seed in range(5)]  # fmt: skip
    assert sum(map(len, false)) <= 1  # of 100 results


def test_a_slowdown_below_the_margin_is_no_regression() -> None:
    found = compared(slower(bench_report(noise=0.005), 1.03), bench_report(noise=0.005))
    assert one(found).ratio == pytest.approx(1.03, abs=0.005)
    assert one(found).verdict == "unchanged"


def test_an_improvement_is_called_one() -> None:
    assert one(compared(slower(bench_report(), 0.8), bench_report())).verdict == "faster"


@pytest.mark.parametrize(
    ("new", "base", "who"),
    [
        ({"where": device(flags=[HOT])}, {}, "this run: "),
        ({}, {"where": device(flags=[HOT])}, "the baseline: "),
        ({"partial": "stopped by the user (Ctrl-C)"}, {}, "this run: "),
        ({"where": device(flags=["nvidia stopped answering: gone"])}, {}, "this run: "),
        ({"where": device(flags=["the machine was busy before the run: load 7 on 2 usable CPUs"])}, {}, "this run: "),
        ({"where": device(flags=["something that no version of samx has said yet"])}, {}, "this run: "),
    ],
    ids=["throttled", "throttled baseline", "partial", "lost", "busy", "unknown flag"],
)
def test_a_doubtful_run_is_flagged_and_no_regression(new: dict[str, Any], base: dict[str, Any], who: str) -> None:
    found = compared(slower(bench_report(**new), 1.5), bench_report(**base))
    assert found.regressions == ()
    assert "2 seemingly slower, in doubtful runs" in found.summary()
    assert one(found).verdict == "doubtful"
    assert [text.startswith(who) for text in one(found).doubts] == [True]


@pytest.mark.parametrize("flag", ["other virtual machines were given the processors for 0.2 s", "information: noted"])
def test_what_only_explains_excuses_nothing(flag: str) -> None:
    found = compared(slower(bench_report(where=device(flags=[flag])), 1.5), bench_report())
    assert one(found).verdict == "slower"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: replace(r, device=device("Another processor")), f"device {CPU}, in the baseline Another processor"),
        (lambda r: replace(r, device=replace(r.device, requested="cuda")), "--device cpu, in the baseline cuda"),
        (lambda r: replace(r, threads=None), "threads 2, in the baseline all"),
        (lambda r: replace(r, device=replace(r.device, environment={"cpus_usable": "4"})), "usable CPUs 8"),
        (lambda r: replace(r, subjects=tuple(replace(s, checkpoint_sha256="6" * 64) for s in r.subjects)),
         "the baseline has no such artifact"),
        (lambda r: replace(r, subjects=tuple(replace(s, masks="single") for s in r.subjects)), "no such artifact"),
        (lambda r: replace(r, results=tuple(replace(e, samples_ns=e.samples_ns[:7]) for e in r.results)),
         "too few samples: 7 of at least 8"),
        (lambda r: replace(r, results=tuple(replace(e, prompts=e.prompts + 1) for e in r.results)), "other prompts"),
    ],
    ids=["device", "--device", "threads", "CPUs", "checkpoint", "masks", "samples", "prompts"],
)  # fmt: skip
def test_nothing_comparable_is_refused_with_the_reason(
    change: Callable[[BenchReport], BenchReport], words: str
) -> None:
    with pytest.raises(InputError, match=r"nothing can be compared with the baseline 'base\.json'") as caught:
        compared(bench_report(), change(bench_report(seed=3)))
    assert words in str(caught.value)
    assert caught.value.exit_code == 6


def test_devices_that_do_not_tell_their_names_are_not_compared() -> None:
    with pytest.raises(InputError, match="did not tell its name"):
        compared(bench_report(where=device("unknown")), bench_report(seed=3, where=device("unknown")))


def test_what_only_one_side_has_is_named_and_not_skipped() -> None:
    new = bench_report({"fp32": 11.0, "int8": 7.7})
    base = bench_report({"fp32": 11.0, "fp16": 8.0}, seed=5)
    base = replace(base, results=tuple(r for r in base.results if r.scenario != "box"), ratios=())
    found = compared(new, base)
    gaps = {(gap["subject"], gap["scenario"]): str(gap["reason"]) for gap in found.not_compared}
    assert "no such artifact" in gaps["sam1-onnx-int8", None]
    assert gaps["sam1-onnx-fp16", None] == "only the baseline has this artifact"
    assert gaps["sam1-onnx-fp32", "box"] == "the baseline has no such result"
    assert gaps["sam1-onnx-fp32", "memory"].startswith("too few samples: 3")


def test_every_result_of_both_runs_is_compared_or_named() -> None:
    new, base = bench_report(), bench_report(seed=3)
    base = replace(base, results=base.results[:-4], ratios=())
    found = compared(new, base)
    told = {(c.subject, c.scenario, c.phase) for c in found.changes}
    told |= {(gap["subject"] or "", gap["scenario"] or "", gap["phase"] or "") for gap in found.not_compared}
    assert told >= {(r.subject, r.scenario, r.phase) for r in (*new.results, *base.results)}


def with_several(names: list[str], seed: int) -> BenchReport:
    report = bench_report({"fp32": 11.0}, seed=seed)
    records = tuple(subject(name=name, options={"opset": SEVERAL.get(name, 18)}) for name in names)
    found = tuple(replace(r, subject=name) for name in names for r in report.results)
    return replace(report, subjects=records, results=found, not_measured=())


def test_artifacts_that_are_alike_are_told_apart_by_name() -> None:
    found = compared(with_several(list(SEVERAL), 1), with_several([*SEVERAL][::-1], 2))
    assert {change.subject for change in found.changes} == set(SEVERAL)
    renamed = compared(with_several([*SEVERAL], 1), with_several(["onnx opset 18", "other"], 2))
    assert {change.subject for change in renamed.changes} == {"onnx opset 18"}
    assert "no such artifact" in reasons(renamed)


def test_what_else_changed_is_named() -> None:
    base = bench_report(seed=3)
    older = {**base.device.environment, "onnxruntime": "1.30.0"}
    found = compared(bench_report(), replace(base, device=replace(base.device, environment=older)))
    assert found.differences == ("A: onnxruntime 1.30.0 \u2192 1.31.1",)


def test_a_device_that_was_set_otherwise_is_named() -> None:
    base = bench_report(seed=3)
    ((kind, found),) = base.device.kinds.items()
    memory = {"memory": {**found["facts"]["memory"], "value": 8192}}
    kinds = {kind: {**found, "facts": {**found["facts"], **memory}}}
    differences = compared(bench_report(), replace(base, device=replace(base.device, kinds=kinds))).differences
    assert differences == (f"A: {kind} memory 8192 \u2192 16384",)


def test_operations_that_ran_elsewhere_are_named() -> None:
    new = bench_report()
    moved = {**(new.subjects[0].placement or {}), "operations": {"cuda": 300, "cpu": 44}}
    new = replace(new, subjects=(replace(new.subjects[0], placement=moved), *new.subjects[1:]))
    assert compared(new, bench_report(seed=3)).differences == (
        "A: sam1-onnx-fp32 ran 344 on cpu \u2192 300 on cuda, 44 on cpu",
    )


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1.06, 1.2, "slower"),
        (1.05, 1.2, "unclear"),
        (0.96, 1.05, "unchanged"),
        (0.9, 1.1, "unclear"),
        (0.8, 0.95, "faster"),
    ],
)
def test_the_verdict_follows_the_whole_interval(low: float, high: float, expected: str) -> None:
    assert verdict(Ratio((low + high) / 2, low, high), MARGIN, ()) == expected


def test_a_change_within_the_spread_of_noisy_calls_is_unclear() -> None:
    found = one(compared(slower(bench_report(seed=1, noise=0.3), 1.22), bench_report(seed=2, noise=0.3)))
    assert found.low > 1 + MARGIN
    assert found.margin > 0.15
    assert found.verdict == "unclear"


def test_a_change_beyond_the_spread_of_noisy_calls_is_found() -> None:
    found = one(compared(slower(bench_report(seed=1, noise=0.2), 2), bench_report(seed=2, noise=0.2)))
    assert found.verdict == "slower"
