"""Every scenario measures what it says, in turns, and what is missing has a reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_toys import MS, SPEC, CopyingSession, TimedSession, cold_start, harness, measured, pair, workload
from fake_candidates import FakeClock

from samx.benchmarks.harness import COLD_STARTS, QUICK_CALLS, QUICK_COLD_STARTS, Harness
from samx.benchmarks.interleave import now_ns
from samx.benchmarks.scenarios import BY_NAME, MOST_POINTS, NAMES, SCENARIOS, chosen
from samx.commands.bench import comparisons
from samx.errors import UsageError
from samx.models.session import Feed
from samx.models.spec import sam1_spec, sam2_spec
from samx.processing.prompts import PromptBatch


def test_times_are_exact_and_the_warm_up_is_not_among_them() -> None:
    session = TimedSession(FakeClock(), "a", 20)
    session.first_ns = 900 * MS  # of the probe and of the first call of the warm-up
    result = measured(harness([session]), "click")["a", "click", "steady"]
    assert set(result.samples_ns) == {20 * MS}
    assert (result.warm_up_calls, result.warm_up_ns) == (3, 960 * MS)
    assert len(result.samples_ns) == 50  # the second 0.5 s, in the hope of 64 calls
    assert result.end_ns - result.start_ns == 50 * 20 * MS
    assert result.prompts_per_second == 50


def test_artifacts_take_turns_in_a_shuffled_order_and_are_asked_the_same() -> None:
    slow, quick = pair()
    results = measured(harness([slow, quick]), "box")
    turns = [name for name, _ in slow.clock.calls][2:]
    rounds = [tuple(turns[i : i + 2]) for i in range(0, len(turns), 2)]
    assert set(rounds) == {("slow", "quick"), ("quick", "slow")}
    assert len(results["slow", "box", "steady"].samples_ns) == len(results["quick", "box", "steady"].samples_ns)
    for one, other in zip(slow.asked, quick.asked, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_prompts_change_every_round_and_come_again_with_the_same_seed() -> None:
    first, second = TimedSession(FakeClock(), "a"), TimedSession(FakeClock(), "a")
    for session in (first, second):
        measured(harness([session]), "click")
    coords = [feed["point_coords"].tobytes() for feed in first.asked]
    assert len(set(coords[-40:])) == 40
    assert coords == [feed["point_coords"].tobytes() for feed in second.asked]
    assert coords[-1] != workload().feed(BY_NAME["box"], 39)["point_coords"].tobytes()


def test_ratios_compare_with_the_first_artifact() -> None:
    slow, quick = pair()
    run = harness([slow, quick])
    measured(run, "click", "batch8")
    ratios, too_few = comparisons(run.results, ["slow", "quick"])
    assert {(ratio.scenario, ratio.phase): ratio.value for ratio in ratios} == {
        ("click", "steady"): 2.0,
        ("batch8", "steady"): 2.0,
    }
    assert all((ratio.low, ratio.high, ratio.candidate) == (2.0, 2.0, "quick") for ratio in ratios)
    assert too_few == []


def test_too_few_rounds_give_no_ratio_and_say_so() -> None:
    run = harness(pair())
    measured(run, "everything")
    assert comparisons(run.results, ["slow", "quick"]) == (
        [], ["too few rounds to compare quick in everything, steady: 3 of at least 6"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "prompts", "points"),
    [("click", 1, (2,)), ("box", 1, (2,)), ("batch8", 8, (2,)), ("batch64", 64, (2,)), ("batch256", 256, (2,)),
     ("everything", 1024, (2,)), ("points", 1, (2, 3, 4, 5, 6, 7, 8)), ("image", 1, (2,))],
)  # fmt: skip
def test_scenarios_ask_what_they_say(name: str, prompts: int, points: tuple[int, ...]) -> None:
    session = TimedSession(FakeClock(), "a", 0.1)
    result = measured(harness([session], seconds=0.01), name)["a", name, "steady"]
    assert (result.prompts, result.points) == (prompts, points)
    assert {feed["point_labels"].shape[0] for feed in session.asked} == {prompts}
    timed = session.asked[1 + result.warm_up_calls :][: len(result.samples_ns)]
    assert all(feed["point_labels"].shape[1] == points[number % len(points)] for number, feed in enumerate(timed))
    assert len(result.samples_ns) >= BY_NAME[name].least


def test_in_haste_slow_calls_are_few_and_still_bear_a_ratio() -> None:
    slow, quick = TimedSession(clock := FakeClock(), "slow", 400), TimedSession(clock, "quick", 200)
    run = harness([slow, quick], quick=True)
    results = measured(run, "batch8")
    assert [len(result.samples_ns) for result in results.values()] == [QUICK_CALLS] * 2
    assert [result.warm_up_calls for result in results.values()] == [1, 1]
    assert comparisons(run.results, ["slow", "quick"])[0][0].value == 2.0


def test_a_new_image_is_timed_with_the_click_on_it() -> None:
    session = TimedSession(FakeClock(), "a", 20)
    result = measured(harness([session]), "image")["a", "image", "steady"]
    assert set(result.samples_ns) == {25 * MS}
    assert session.images >= len(result.samples_ns)


def test_the_other_scenarios_keep_their_image() -> None:
    session = TimedSession(FakeClock(), "a")
    measured(harness([session]), "image", "click")
    assert measured(harness([session]), "click")["a", "click", "steady"].samples_ns[0] == 20 * MS


def test_refinement_feeds_the_last_mask_back_and_begins_again() -> None:
    spec = replace(SPEC, mask_input=True)
    session = TimedSession(FakeClock(), "a", 20, spec)
    result = measured(harness([session], seconds=0.01), "refine")["a", "refine", "steady"]
    assert result.points == (2, 3, 4, 5)
    first = 1 + result.warm_up_calls  # after the probe
    timed = session.asked[first : first + len(result.samples_ns)]
    for number, feed in enumerate(timed):
        step = number % 4
        assert feed["has_mask_input"].tolist() == [float(step > 0)]
        if step:
            assert (feed["mask_input"] == first + number).all()  # the answer to the call before
            earlier = timed[number - 1]["point_coords"][:, :step]
            assert np.array_equal(feed["point_coords"][:, :step], earlier)


def test_an_artifact_without_mask_input_does_not_offer_refinement() -> None:
    run = harness(pair())
    assert measured(run, "refine") == {}
    assert {(entry.subject, entry.scenario) for entry in run.not_measured if entry.scenario} == {
        ("slow", "refine"), ("quick", "refine"),
    }  # fmt: skip
    assert "export with --mask-input" in run.not_measured[-1].reason


def test_an_artifact_whose_points_do_not_fit_says_so_and_the_others_are_measured() -> None:
    slow, quick = pair()
    quick.most_points = MOST_POINTS
    run = harness([slow, quick])
    results = measured(run, "points", "click")
    assert ("slow", "points", "steady") in results
    assert ("quick", "points", "steady") not in results
    assert ("quick", "click", "steady") in results
    (refused,) = [entry for entry in run.not_measured if entry.scenario == "points"]
    assert refused.subject == "quick"
    assert "found 8, expected 7" in refused.reason


def as_contender(run: Harness, name: str) -> Harness:
    """Take the artifact from one of the subjects."""
    subjects = [replace(one, artifact=None) if one.name == name else one for one in run.subjects]
    return replace(run, subjects=subjects)


def test_a_contender_is_measured_in_turns_and_has_no_process_of_its_own() -> None:
    run = as_contender(harness(pair(), starter=cold_start), "quick")
    results = measured(run, "click", "cold", "memory")
    assert results["slow", "click", "steady"].samples_ns[0] == 2 * results["quick", "click", "steady"].samples_ns[0]
    assert {(entry.subject, entry.scenario) for entry in run.not_measured if entry.scenario} == {
        ("quick", "cold"), ("quick", "memory"),
    }  # fmt: skip
    assert "in this process alone" in run.not_measured[-1].reason


def test_post_processing_is_measured_of_artifacts_only() -> None:
    run = as_contender(harness(pair(), clock=now_ns, seconds=1e-4), "quick")
    run.run([BY_NAME["click"]])
    assert [one.subject for one in run.results if one.phase == "post_processing"] == ["slow"]


@pytest.mark.parametrize("call", [1, 20])
def test_a_contender_that_fails_is_named_and_the_others_begin_again(call: int) -> None:
    slow, quick = pair()
    quick.fails = lambda number: MemoryError("too large") if number == call else None
    run = as_contender(harness([slow, quick]), "quick")
    results = measured(run, "click", "box") if call == 1 else measured(run, "click")
    assert ("quick", "click", "steady") not in results
    assert len(results["slow", "click", "steady"].samples_ns) >= BY_NAME["click"].least
    (entry,) = [entry for entry in run.not_measured if entry.scenario]
    assert (entry.subject, entry.scenario, entry.reason) == ("quick", "click", "MemoryError: too large")
    assert call != 1 or ("quick", "box", "steady") in results  # only that scenario


def test_post_processing_is_apart() -> None:
    session = TimedSession(FakeClock(), "a")
    ticking: Callable[[], int] = lambda: session.clock.now_ns  # noqa: E731

    def clock() -> int:
        session.clock.now_ns += 1000  # every reading of the clock moves it, so that NumPy's work is not free
        return ticking()

    run = harness([session], clock=clock, seconds=1e-4)
    run.run([BY_NAME["batch8"]])
    results = {(entry.subject, entry.scenario, entry.phase): entry for entry in run.results}
    result = results["a", "batch8", "post_processing"]
    assert result.prompts == 8
    assert max(result.samples_ns) < 20 * MS
    assert min(results["a", "batch8", "steady"].samples_ns) >= 160 * MS


def test_transfers_are_apart_where_the_runtime_can_tell() -> None:
    clock = FakeClock()
    plain, copying = TimedSession(clock, "plain"), CopyingSession(clock, "copying")
    run = harness([plain, copying])
    results = measured(run, "click")
    assert set(results["copying", "click", "transfer"].samples_ns) == {2 * MS}
    assert set(results["copying", "click", "steady"].samples_ns) == {20 * MS}
    assert ("plain", "click", "transfer") not in results
    (reason,) = [entry.reason for entry in run.not_measured]
    assert "nothing is copied to a device" in reason


def test_energy_is_that_of_the_timed_rounds_and_of_one_artifact() -> None:
    alone = measured(harness([TimedSession(FakeClock(), "a")]), "batch8")["a", "batch8", "steady"]
    assert alone.energy_mj == {"value": pytest.approx(200.0), "unit": "mJ", "reason": None}  # 10 W for 20 ms
    shared = measured(harness(pair()), "batch8")["slow", "batch8", "steady"]
    assert shared.energy_mj["value"] is None
    assert "took turns" in shared.energy_mj["reason"]


@pytest.mark.parametrize(("quick", "starts"), [(True, QUICK_COLD_STARTS), (False, COLD_STARTS)])
def test_cold_starts_are_fresh_processes_with_their_phases_apart(quick: bool, starts: int) -> None:
    asked: list[tuple[Path, str, Feed, int]] = []

    def starter(artifact: Path, device: str, threads: int | None, feed: Feed, calls: int) -> dict[str, Any]:
        asked.append((artifact, device, feed, calls))
        return cold_start(artifact, device, threads, feed, calls)

    results = measured(harness([TimedSession(FakeClock(), "a")], starter=starter, quick=quick), "cold")
    times = {phase: result.samples_ns for (_, _, phase), result in results.items()}
    assert times == {
        "import": (300 * MS,) * starts, "load": (200 * MS,) * starts, "first_call": (50 * MS,) * starts,
    }  # fmt: skip
    assert [result.prompts for result in results.values()] == [0, 0, 1]
    assert len({feed["point_coords"].tobytes() for _, _, feed, _ in asked}) == starts
    assert {(artifact, device, calls) for artifact, device, _, calls in asked} == {(Path("toy"), "cpu", 0)}


def test_peak_memory_comes_from_a_process_of_its_own() -> None:
    result = measured(harness([TimedSession(FakeClock(), "a")], starter=cold_start), "memory")["a", "memory", "steady"]
    assert result.peak_bytes == {"value": 5_000_000, "unit": "bytes", "reason": None}
    assert (result.samples_ns, result.warm_up_ns, result.prompts) == ((40 * MS,) * 3, 50 * MS, 256)


@pytest.mark.parametrize("spec", [sam1_spec(image_size=64), sam2_spec(image_size=64)], ids=["sam1", "sam2"])
def test_every_prompt_lies_in_the_picture(spec: object) -> None:
    asked = workload(spec)  # type: ignore[arg-type]
    for scenario in SCENARIOS:
        for number in range(20):
            batch = asked.batch(scenario, number)
            assert isinstance(batch, PromptBatch)
            assert len(batch) == scenario.prompts
            asked.feed(scenario, number)  # checks every coordinate


def test_scenarios_are_chosen_by_name_or_by_haste() -> None:
    assert [scenario.name for scenario in chosen((), quick=True)] == ["click", "box", "batch8", "cold"]
    assert [scenario.name for scenario in chosen(None, quick=False)] == NAMES
    assert [scenario.name for scenario in chosen(("image", "click"), quick=True)] == ["click", "image"]
    with pytest.raises(UsageError, match=r"unknown scenario: found clik, expected click, box"):
        chosen(("clik",), quick=False)
