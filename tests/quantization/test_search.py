"""The sensitivity search: what gives way, what is remembered, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from samx.errors import ParityError
from samx.quantization.search import Budget, Found, Judged, Plan, Trial, search, search_halving

# What each group costs in IoU: as integer products, with weights in 8 bits.
COSTS = {"a": (0.05, 0.001), "b": (0.004, 0.0005), "c": (0.002, 0.015)}
PLAN = Plan(integer=("a", "b"), stored=("c",))
BUDGET = Budget(mean_iou=0.98, p05_iou=0.95, size_share=0.9)
FLOAT_BYTES = 100


class Toy(Trial):
    """Judge plans by COSTS, and remember which were judged."""

    def __init__(self, stop_at: int | None = None, identity: Mapping[str, str] = MappingProxyType({})) -> None:
        self.judged: list[Plan] = []
        self.stop_at, self.float_bytes = stop_at, FLOAT_BYTES
        self.multiply_adds = Counter({"a": 300, "b": 200})
        self.identity = {"calibration": "c" * 64, "prompts": "p", **identity}

    def judge(self, plan: Plan) -> Judged:
        if len(self.judged) == self.stop_at:
            raise KeyboardInterrupt
        self.judged.append(plan)
        lost = sum(COSTS[group][0] for group in plan.integer) + sum(COSTS[group][1] for group in plan.stored)
        return Judged.of([1 - lost] * 40, FLOAT_BYTES - 10 * len({*plan.integer, *plan.stored}))


def find(trial: Toy, cache: Path | None = None, budget: Budget = BUDGET) -> Found:
    return search(trial, PLAN, budget, cache)


def test_the_worst_gives_way_until_the_budget_is_met() -> None:
    found = find(Toy())
    assert found.gave_way == ("a",)  # 0.05 + 0.004 + 0.015 is too much; 0.001 + 0.004 + 0.015 is just 0.02
    assert found.plan == Plan(("b",), ("c", "a"))
    assert found.judged.mean_iou == pytest.approx(0.98)
    assert (found.judged.bytes, found.float_bytes) == (70, 100)


def test_a_group_gives_way_in_two_steps() -> None:
    found = find(Toy(), budget=Budget(0.9945, 0.9, 0.9))
    assert found.gave_way == ("a", "c")
    assert found.plan == Plan(("b",), ("a",))


def test_each_group_stands_in_the_table_as_it_costs_alone() -> None:
    rows = {(row.group, row.how): row for row in find(Toy()).rows}
    assert set(rows) == {("a", "integer"), ("b", "integer"), *((group, "stored") for group in "abc")}
    assert rows["a", "integer"].mean_iou_lost == pytest.approx(0.05)
    assert rows["c", "stored"].p05_iou_lost == pytest.approx(0.015)
    assert rows["a", "integer"].multiply_adds == 300
    assert (rows["a", "stored"].multiply_adds, rows["a", "stored"].bytes_saved) == (0, 10)


def test_the_fifth_percentile_counts_too() -> None:
    class Suffers(Toy):
        def judge(self, plan: Plan) -> Judged:
            return Judged.of([0.5] * 3 + [1.0] * 37 if "a" in (*plan.integer, *plan.stored) else [1.0], 50)

    assert search(Suffers(), PLAN, Budget(0.9, 0.95, 0.9)).gave_way == ("a", "a")


def test_the_same_search_gives_the_same_result() -> None:
    assert find(Toy()).to_json() == find(Toy()).to_json()
    json.dumps(find(Toy()).to_json())


def test_a_rerun_reads_what_is_known(tmp_path: Path) -> None:
    cache, again = tmp_path / "search.json", Toy()
    first = find(Toy(), cache)
    assert find(again, cache) == first
    assert again.judged == []


def test_an_interrupted_search_goes_on_where_it_was(tmp_path: Path) -> None:
    cache, again = tmp_path / "search.json", Toy()
    with pytest.raises(KeyboardInterrupt):
        find(Toy(stop_at=3), cache)
    assert find(again, cache) == find(Toy())
    assert len(again.judged) == 8 - 3


@pytest.mark.parametrize(
    "identity",
    [{"calibration": "d" * 64}, {"prompts": "others"}],
    ids=["calibration", "prompts"],
)
def test_another_search_is_judged_anew(tmp_path: Path, identity: dict[str, str]) -> None:
    cache, other = tmp_path / "search.json", Toy(identity=identity)
    find(Toy(), cache)
    search(other, PLAN, BUDGET, cache)
    assert len(other.judged) == 8


@pytest.mark.parametrize("text", ["", "[]", '{"key": 1}', '{"key": "KEY", "judged": {"x": {"iou": 1}}}'])
def test_a_damaged_cache_is_begun_anew(tmp_path: Path, text: str) -> None:
    cache = tmp_path / "search.json"
    cache.write_text(text.replace("KEY", Toy().key()))
    assert find(Toy(), cache) == find(Toy())


def test_a_budget_that_cannot_be_met_names_the_best_and_the_worst() -> None:
    with pytest.raises(
        ParityError, match=r"at best mean IoU 0\.9995.*'a' costs most, alone 0\.0500.*0\.99999"
    ) as caught:
        find(Toy(), budget=Budget(0.99999, 0.99999, 1.0))
    assert caught.value.exit_code == 3


def test_what_is_too_large_is_no_result() -> None:
    with pytest.raises(ParityError, match=r"at best mean IoU 0\.9800.*in 70% of the bytes"):
        find(Toy(), budget=Budget(0.9999, 0.9999, 0.7))
    with pytest.raises(ParityError, match="no file small enough"):
        find(Toy(), budget=Budget(0.5, 0.5, 0.1))


def test_progress_names_what_is_judged() -> None:
    told: list[tuple[str, int, int]] = []
    search(Toy(), PLAN, BUDGET, progress=lambda *told_now: told.append(told_now))
    assert told[:2] == [("Judging a, integer", 0, 5), ("Judging b, integer", 1, 5)]
    assert told[-1] == ("Judging 3 groups together", 5, 5)


def halved(trial: Toy, costs: str, budget: Budget = BUDGET, cache: Path | None = None) -> Found:
    return search_halving(trial, Plan(integer=tuple(costs)), budget, cache)


class Many(Toy):
    """Groups that cost their place in the alphabet, in thousandths."""

    def judge(self, plan: Plan) -> Judged:
        self.judged.append(plan)
        return Judged.of([1 - sum("_abcdefgh".index(group) for group in plan.integer) / 1000] * 40, FLOAT_BYTES)


def test_halving_judges_no_group_alone_where_all_of_them_meet_the_budget() -> None:
    trial = Many()
    assert halved(trial, "abcde").gave_way == ()
    assert trial.judged == [Plan(integer=tuple("abcde"))]


def test_halving_leaves_the_fewest_of_the_costliest_in_float() -> None:
    trial = Many()
    found = halved(trial, "bcadefgh")  # 36 in all; 21 without h and g, 15 without f too
    assert found.gave_way == ("h", "g", "f")
    assert found.plan == Plan(integer=tuple("bcade"))
    assert found.judged.mean_iou == pytest.approx(0.985)
    assert len(trial.judged) <= 1 + 1 + 8 + 3, "together, nothing, each alone, and three halvings"


def test_halving_gives_the_least_that_it_tried_where_nothing_meets_the_budget() -> None:
    found = halved(Many(), "abc", Budget(0.9999, 0.9999))
    assert found.plan == Plan(integer=("a",))
    assert not Budget(0.9999, 0.9999).met(found.judged)
    assert halved(Many(), "a", Budget(0.9999, 0.9999)).plan == Plan()


def test_halving_that_was_interrupted_goes_on_where_it_was(tmp_path: Path) -> None:
    cache, again = tmp_path / "search.json", Many()
    first = halved(Many(), "abcdefgh", cache=cache)
    assert halved(again, "abcdefgh", cache=cache) == first
    assert again.judged == []
