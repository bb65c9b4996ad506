"""The Core ML runtime: coremltools' own classes over a stand-in for its native part, which evaluates the program."""

from __future__ import annotations

from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
from coreml_toys import MANY, ON_CPU, artifact, check, image, loaded, placed, prompts, run_on
from coreml_toys import many as many
from coreml_toys import runtime as runtime
from coreml_toys import single as single
from fake_mac import FakeMac, Line
from fake_mac import fake_mac as fake_mac

from samx.artifacts.store import Artifact
from samx.errors import PromptError, UnavailableError
from samx.runtimes.coreml.runtime import UNITS, CoreMLRuntime, open_artifact
from samx.runtimes.mil import runtime as mil


@pytest.mark.parametrize(("points", "function"), [(1, "points_1"), (2, "points_2"), (3, "points_4"), (4, "points_4")])
def test_the_smallest_function_with_enough_rows_decodes(
    points: int, function: str, runtime: CoreMLRuntime, fake_mac: FakeMac
) -> None:
    feed = prompts(1, points)
    check(runtime.decode(feed), image(), feed)
    assert loaded(fake_mac) == [("CPU_AND_NE", function)]


def test_each_function_is_loaded_once(runtime: CoreMLRuntime, fake_mac: FakeMac) -> None:
    for points in (1, 2, 1, 2, 1):
        check(runtime.decode(prompts(1, points, seed=points)), image(), prompts(1, points, seed=points))
    assert [name for _, name in loaded(fake_mac)] == ["points_1", "points_2"]


def test_nothing_is_loaded_before_it_is_asked_for(runtime: CoreMLRuntime, fake_mac: FakeMac) -> None:
    assert loaded(fake_mac) == []


def test_prompts_beyond_a_call_are_cut_and_put_back_together(runtime: CoreMLRuntime) -> None:
    feed = prompts(5, 2)
    check(runtime.decode(feed), image(), feed)


def test_a_new_image_replaces_the_last(runtime: CoreMLRuntime) -> None:
    runtime.set_image(image(1))
    check(runtime.decode(prompts(1, 2)), image(1), prompts(1, 2))


def test_fewer_prompts_than_a_function_takes_are_filled_up(fake_mac: FakeMac, tmp_path: Path) -> None:
    four = artifact(tmp_path / "four", {"points_1": 1, "points_2": 2}, 4)
    run_on(fake_mac, four)
    opened = open_artifact(four)
    opened.set_image(image())
    for n in (1, 3, 4, 6):
        check(opened.decode(prompts(n, 2)), image(), prompts(n, 2))


def test_it_computes_what_the_evaluator_computes(runtime: CoreMLRuntime, many: Artifact) -> None:
    other = mil.open_artifact(many)
    other.set_image(image())
    for points in (1, 2, 3):
        feed = prompts(2, points)
        for name, value in other.decode(feed).items():
            np.testing.assert_array_equal(runtime.decode(feed)[name], value)


def test_the_feed_stays_the_callers(runtime: CoreMLRuntime) -> None:
    feed = prompts(1, 2)
    kept = {name: value.copy() for name, value in feed.items()}
    runtime.decode(feed)
    for name, value in kept.items():
        np.testing.assert_array_equal(feed[name], value)


def test_too_many_points_name_the_limit(runtime: CoreMLRuntime) -> None:
    with pytest.raises(PromptError, match=r"too many points a prompt.*found 5, expected at most 4"):
        runtime.decode(prompts(1, 5))


def test_one_function_is_loaded_without_a_name(fake_mac: FakeMac, single: Artifact) -> None:
    run_on(fake_mac, single)
    opened = open_artifact(single)
    opened.set_image(image())
    check(opened.decode(prompts(1, 2)), image(), prompts(1, 2))
    assert loaded(fake_mac) == [("CPU_AND_NE", "")]  # before macOS 15 no name can be given


NAMES = ["decoder.mlpackage/points_1", "decoder.mlpackage/points_2"]


def test_a_plan_with_the_neural_engine_honours_the_request(runtime: CoreMLRuntime) -> None:
    placement = placed(runtime, 1, 2)
    assert (placement.runtime, placement.requested, placement.operations) == ("coreml", "cpu+ane", {"cpu+ane": 4})
    assert placement.honoured
    assert placement.details == {
        "chip": "Apple M4", "macos": "15.1", "coremltools": ct.__version__, "compute_units": "CPU_AND_NE",
        "functions": NAMES, "planned": {"ANE": 2, "GPU": 0, "CPU": 2},
        "residency": {name: {"operations": 0.5, "cost": 0.75} for name in NAMES},
        "counted": "operations of the compute plan",
    }  # fmt: skip


def test_a_plan_without_the_neural_engine_is_no_silent_fallback(runtime: CoreMLRuntime, fake_mac: FakeMac) -> None:
    fake_mac.plans = dict.fromkeys(MANY, ON_CPU)
    placement = placed(runtime, 2)
    assert placement.operations == {"cpu": 3}
    assert not placement.honoured
    assert placement.details["planned"] == {"ANE": 0, "GPU": 0, "CPU": 2}


def test_one_function_off_the_engine_is_enough(runtime: CoreMLRuntime, fake_mac: FakeMac) -> None:
    fake_mac.plans = {**fake_mac.plans, "points_4": ON_CPU}
    assert placed(runtime, 2).honoured
    placement = placed(runtime, 4)
    assert placement.operations == {"cpu+ane": 2, "cpu": 3}
    assert not placement.honoured


def test_before_anything_ran_nothing_is_claimed(runtime: CoreMLRuntime) -> None:
    assert runtime.placement().operations == {}
    assert not runtime.placement().honoured


def test_a_plan_is_made_once_a_function(runtime: CoreMLRuntime, fake_mac: FakeMac) -> None:
    for _ in range(3):
        placed(runtime, 1)
    assert list(runtime.plans) == NAMES[:1]
    assert [entry for entry in fake_mac.log if entry[0] == "plan"] == [("plan", "CPU_AND_NE", "points_1")]


def test_a_plan_that_cannot_be_made_is_said(runtime: CoreMLRuntime, fake_mac: FakeMac) -> None:
    runtime.decode(prompts(1, 1))
    fake_mac.plans = {"points_1": [("ios18.conv", None, None)]}
    with pytest.raises(UnavailableError, match="Core ML gives no plan for function points_1"):
        runtime.placement()


@pytest.mark.parametrize(
    ("device", "lines", "operations"),
    [
        ("cpu+gpu", [("ios18.conv", "GPU", 1.0)], {"cpu+gpu": 1}),
        ("cpu+gpu", [("ios18.conv", "CPU", 1.0)], {"cpu": 1}),
        ("all", [("ios18.conv", "CPU", 1.0)], {"all": 1}),
        ("coreml-cpu", [("ios18.conv", "CPU", 1.0)], {"coreml-cpu": 1}),
    ],
)
def test_the_other_compute_units(
    device: str, lines: list[Line], operations: dict[str, int], fake_mac: FakeMac, many: Artifact
) -> None:
    run_on(fake_mac, many)
    fake_mac.plans = dict.fromkeys(MANY, lines)
    opened = open_artifact(many, device)
    opened.set_image(image())
    assert placed(opened, 1).operations == operations
    assert loaded(fake_mac) == [(UNITS[device], "points_1")]
