"""What is said about INT8's speed: faster, as fast, or slower in so many words."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from samx.benchmarks.summary import compare_speed, speed_facts

FEED = {"point_coords": np.zeros((4, 2, 2), np.float32)}
SIZES = {"float": 1000, "int8": 310}


@pytest.mark.parametrize(
    ("int8_ms", "words"),
    [(12.0, "INT8 is SLOWER than float here"), (10.4, "as fast as"), (9.6, "as fast as"), (8.0, "faster than")],
)
def test_the_sentence_says_which_is_slower(int8_ms: float, words: str) -> None:
    sentence = speed_facts(1, 1, 10, 10.0, int8_ms, 1000, 310)["sentence"]
    assert words in sentence
    assert f"{int8_ms:.2f} against 10.00 ms a prompt" in sentence
    assert "31% of the size" in sentence


def test_both_are_measured_in_turns_a_prompt() -> None:
    order: list[str] = []

    def sleeper(name: str, seconds: float) -> None:
        order.append(name)
        time.sleep(seconds)

    runs = {"float": lambda _: sleeper("float", 0.002), "int8": lambda _: sleeper("int8", 0.008)}
    found = compare_speed(runs, FEED, SIZES, threads=1, seconds=0.05)
    assert found["calls"] >= 10
    assert found["int8_ms"] >= 2  # 8 ms for 4 prompts
    assert found["ratio"] > 1.5
    assert {"float", "int8"} == set(order[:2]) == set(order[2:4])
    assert json.loads(json.dumps(found)) == found
