"""The script: its claims, its table, its report, its exit codes; with fake decoders and no clock."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from fake_candidates import samples
from rich.console import Console

from samx.benchmarks.bench_table import group_table
from samx.benchmarks.contenders.meta import CLAIMS, IMAGE_KEPT, META, META_MANY, ONE_GRAPH
from samx.benchmarks.interleave import Samples
from samx.benchmarks.summary import Ratio
from samx.commands import meta_onnx
from samx.commands.meta_onnx import enforce, judge, summary
from samx.console import run
from samx.errors import BenchmarkError, ParityError, UsageError


def group(peer: Samples, ours: Samples) -> dict[str, Any]:
    return {"title": "one prompt", "opset": 18, "threads": 1, **summary([peer, ours], META)}


def result(ours_ms: float, calls: int = 10) -> dict[str, Any]:
    """Measure nothing: the peer takes 20 ms."""
    return group(samples(META, *[20.0] * calls), samples(ONE_GRAPH, *[ours_ms] * calls))


def report(*results: dict[str, Any]) -> dict[str, Any]:
    return {
        "command": ["meta_onnx.py"], "embeddings": "synthetic",
        "environment": {"cpu": "a processor", "load_1min": "0.10", "cpus_usable": "2"},
        "agreement": [{"candidate": ONE_GRAPH, "prompts": 1, "logit_error": 1e-6, "iou_error": 1e-7}],
        "results": list(results),
    }  # fmt: skip


def drawn(found: dict[str, Any]) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(group_table(found["title"], found))
    return capture.get()


def test_claims_compare_with_the_decoder_alone() -> None:
    assert CLAIMS == {
        ONE_GRAPH: 1.8, "samx, image part kept": 2.5, "samx, one graph, N=16": 2.1,
        "samx, image part kept, N=16": 2.8, "samx, image part kept, N=64": 2.8,
    }  # fmt: skip
    assert "decoder only" in META
    assert META_MANY not in CLAIMS


def test_table_says_met_and_not_met_and_fits() -> None:
    fast, slow = drawn(result(10.0)), drawn(result(12.0))
    assert "1.8 met" in fast
    assert "2.00" in fast
    assert "1.8 not met" in slow
    assert "1.67" in slow
    assert "n/a" in fast
    assert "…" not in fast + slow
    assert "n/a" not in drawn(result(10.0, calls=64)).replace("n/a: too few", "")


def test_the_widest_row_fits_into_80_columns() -> None:
    peer, ours = samples(META, *[150.0, 250.0] * 40), samples(IMAGE_KEPT, *[110.0, 130.0] * 40)
    text = drawn(group(peer, ours))
    assert f"{CLAIMS[IMAGE_KEPT]} not met" in text
    assert "250.0" in text
    assert "…" not in text


def test_claims_that_are_not_met_are_an_error_only_when_enforced() -> None:
    enforce([result(10.0)])
    with pytest.raises(BenchmarkError, match=r"samx, one graph 1\.67 instead of 1\.8 \(opset 18, 1 thread") as caught:
        enforce([result(10.0), result(12.0)])
    assert caught.value.exit_code == 4


def script(monkeypatch: pytest.MonkeyPatch, outcome: dict[str, Any] | Exception, **options: Any) -> int:
    def compare(*_: Any) -> dict[str, Any]:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(meta_onnx, "compare", compare)
    return run(lambda: meta_onnx.meta_onnx(**{"opset": "18", **options}), as_json=False)


def test_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert script(monkeypatch, report(result(12.0))) == 0
    assert script(monkeypatch, report(result(12.0)), check=True) == 4
    assert script(monkeypatch, report(result(10.0)), check=True) == 0
    capsys.readouterr()
    assert script(monkeypatch, ParityError("low_res_masks differs")) == 3
    assert capsys.readouterr().out == ""  # no table


def test_report_keeps_the_raw_samples(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    assert script(monkeypatch, report(result(12.0)), json_file=target) == 0
    document = json.loads(target.read_text())
    (group,) = document["results"]
    assert group["samples"][0]["call_ns"] == [20_000_000] * 10
    assert group["samples"][1]["median_ms"] == 12.0
    assert group["verdicts"][0]["met"] is False
    assert document["agreement"][0]["logit_error"] == 1e-6
    assert document["command"]
    assert document["environment"]["cpu"] == "a processor"


def test_unknown_opset_is_refused() -> None:
    with pytest.raises(UsageError, match="18 or 23 or both"):
        meta_onnx.meta_onnx(opset="17")


def test_claims_are_met_or_not() -> None:
    claims = {"good": 2.0, "exact": 2.0, "slow": 2.0, "broken": 2.0, "not measured": 2.0}
    values = {"good": 2.5, "exact": 2.0, "slow": 1.99, "broken": math.nan, "not claimed": 0.5}
    verdicts = judge(claims, {name: Ratio(value, value, value) for name, value in values.items()})
    assert {verdict["candidate"]: verdict["met"] for verdict in verdicts} == {
        "good": True, "exact": True, "slow": False, "broken": False,
    }  # fmt: skip
