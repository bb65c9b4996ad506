"""PyTorch's ways of decoding: compared before they are timed, when the device is done, left out by name."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from toys import image_tensors, prompt_tensors, toy_checkpoint, toy_decoder
from toys import one_thread as one_thread

from samx.benchmarks import torch_measure, torch_peaks
from samx.benchmarks.contenders import pytorch as torch_ways
from samx.benchmarks.contenders.pytorch import (
    WARM_UPS,
    Graphed,
    Prompts,
    Setting,
    Work,
    baseline,
    clock_for,
    reference_form,
)
from samx.benchmarks.operations import count
from samx.benchmarks.torch_agreement import compare
from samx.benchmarks.torch_forms import group_table, torch_forms
from samx.benchmarks.torch_measure import Settings, run
from samx.benchmarks.torch_peaks import Peaks
from samx.errors import ParityError, UnavailableError, UsageError, WriteError
from samx.models.session import FloatArray
from samx.models.spec import sam1_spec
from samx.progress import silent

pytestmark = pytest.mark.usefixtures("one_thread", "small_peaks")
SPEC = sam1_spec(image_size=128)
BASELINE = "segment-anything eager"
WORK = {
    BASELINE: Work("reference", keeps_image=False),
    "samx eager": Work("low_rank", keeps_image=True),
    "samx eager, image in every call": Work("low_rank", keeps_image=False),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "toy.safetensors"
    save_file(toy_decoder(SPEC).state_dict(), path, {"image_size": str(SPEC.image_size)})
    return path


@pytest.fixture
def small_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure what fits into a cache: quick, and good enough for a toy."""
    monkeypatch.setitem(torch_peaks.PRODUCT_SIDE, "cpu", 64)
    monkeypatch.setitem(torch_peaks.COPIED_BYTES, "cpu", 1 << 16)


def quick(checkpoint: Path, **changes: Any) -> Settings:
    base: dict[str, Any] = {"prompts": (1,), "seconds": 0, "least": 1, "compile": False}
    return Settings(checkpoint=checkpoint, **{**base, **changes})


def setting(half: torch.dtype | None = None) -> Setting:
    return Setting(toy_checkpoint(SPEC), image_tensors(SPEC), half)


def boxes(count: int = 3) -> Prompts:
    return tuple(prompt_tensors(SPEC, count, [2, 3]).values())


@pytest.fixture(scope="module")
def exact() -> list[FloatArray]:
    with torch.no_grad():
        return [tensor.numpy() for tensor in reference_form(setting())(boxes())]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_way_is_compared_and_then_timed(dtype: str, checkpoint: Path) -> None:
    (result,) = run(quick(checkpoint, dtypes=(dtype,), prompts=(2,), least=6), silent).results
    assert result.not_measured == {}
    assert [entry.name for entry in result.samples] == list(result.work) == list(result.differences) == list(WORK)
    assert [work.keeps_image for work in result.work.values()] == [work.keeps_image for work in WORK.values()]
    assert list(result.ratios) == list(WORK)[1:]
    assert all(len(entry.call_ns) >= 6 and entry.prompts == 2 for entry in result.samples)
    assert list(result.shares) == list(WORK)
    assert all(reached.multiply_adds > 0 and reached.bytes > 0 for reached in result.shares.values())


def test_the_table_counts_microseconds_and_too_few_calls_give_no_ratio(checkpoint: Path) -> None:
    (result,) = run(quick(checkpoint, least=5), silent).results
    assert (result.work, result.points, result.ratios) == (WORK, 2, {})
    assert max(found.logit_error for found in result.differences.values()) < 1e-3
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(group_table(result))
    shown = console.export_text().splitlines()
    (line,) = (line for line in shown if line.strip().startswith("samx eager  "))
    assert line.split()[2] == f"{1e3 * np.median(result.samples[1].prompt_ms):.1f}"
    assert "us a prompt (median)" in "".join(shown)


def test_peaks_are_the_best_of_several_tries() -> None:
    """A clock whose steps of the product are 4, 2 and 6 s, of the copy 1 s each."""
    readings = iter(1_000_000_000 * second for second in (0, 0, 4, 4, 6, 6, 12, 12, 12, 12, 13, 13, 14, 14, 15, 15))
    found = torch_peaks.peaks(torch.device("cpu"), torch.float32, lambda: next(readings), 0)
    assert found == Peaks(multiply_adds_per_s=64**3 / 2, bytes_per_s=2 * (1 << 16))


def test_a_call_is_divided_by_the_peaks() -> None:
    """At N = 3 in 2 s: everything for each prompt, or the prompts' work on what is kept."""
    best, weights = Peaks(1e6, 1e3), sum(tensor.numel() for tensor in setting().loaded.weights.values())
    masks = 3 * 3 * SPEC.mask_size**2 * 4
    kept = count(SPEC, "absorbed", 2, cached=True)
    cases = {
        Work("reference", keeps_image=False): (3 * count(SPEC, "reference", 2, cached=False).prompt, 256 * 8 * 8 * 4),
        Work("absorbed", keeps_image=False): (3 * kept.prompt + kept.image, 256 * 8 * 8 * 4),
        Work("absorbed", keeps_image=True): (3 * kept.prompt, kept.kept_bytes),
    }
    for work, (adds, read) in cases.items():
        found = torch_peaks.shares(setting(), work, 3, 2, 2e9, best)
        assert found.multiply_adds == pytest.approx(adds / 2 / 1e6)
        assert found.bytes == pytest.approx((4 * weights + read + masks) / 2 / 1e3)
    half = torch_peaks.shares(setting(torch.float16), work, 3, 2, 2e9, best)
    assert half.bytes == pytest.approx(((4 * weights + read) / 2 + masks) / 2 / 1e3)


def test_without_metas_package_the_reference_form_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    assert baseline(setting()).name == BASELINE
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert baseline(setting()).name == "reference eager"


FAULTS: dict[str, Any] = {
    "shifted": lambda masks: np.roll(masks, 3, axis=-1),
    "slightly off": lambda masks: masks + 0.01,
    "not finite": lambda masks: masks * np.nan,
    "fewer": lambda masks: masks[:, :1],
}


@pytest.mark.parametrize(
    ("fault", "dtype"),
    [(fault, "float32") for fault in FAULTS]
    + [("shifted", "bfloat16"), ("not finite", "float16"), ("fewer", "float16")],
)
def test_a_planted_difference_is_found(fault: str, dtype: str, exact: list[FloatArray]) -> None:
    with pytest.raises(ParityError, match=r"spoiled (differs from|gives other shapes than) the reference form"):
        compare("spoiled", [FAULTS[fault](exact[0]), exact[1]], exact, dtype)


def test_half_precision_may_differ_by_what_it_costs(exact: list[FloatArray]) -> None:
    with torch.no_grad():
        half = [tensor.float().numpy() for tensor in baseline(setting(torch.bfloat16)).call(boxes())]
    assert compare("half", half, exact, "bfloat16").logit_error > 1e-3
    with pytest.raises(ParityError, match="half differs"):
        compare("half", half, exact, "float32")


@pytest.mark.parametrize("error", [ParityError("other masks"), torch.OutOfMemoryError("too large\nby far")])
def test_what_cannot_be_measured_is_left_out_by_name(
    error: Exception, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(prompts: Prompts) -> tuple[torch.Tensor, ...]:
        raise error

    broken = torch_ways.Way("broken", fail, WORK["samx eager"])
    monkeypatch.setattr(torch_ways, "ours", lambda decoder, setting: [broken])
    (result,) = run(quick(checkpoint), silent).results
    assert result.not_measured == {"broken": str(error).splitlines()[0]}
    assert [entry.name for entry in result.samples] == [BASELINE]


def test_memory_that_ends_while_timing_ends_the_group_alone(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise torch.OutOfMemoryError("too large")

    monkeypatch.setattr(torch_measure, "measure", fail)
    (result,) = run(quick(checkpoint), silent).results
    assert result.samples == []
    assert result.not_measured == dict.fromkeys(WORK, "too large")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"device": "tpu"}, UsageError, "found tpu, expected cpu or cuda"),
        ({"dtypes": ("float64",)}, UsageError, "found float64"),
        pytest.param(
            {"device": "cuda"}, UnavailableError, "no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device"),
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(
    change: dict[str, Any], error: type[Exception], words: str, checkpoint: Path
) -> None:
    with pytest.raises(error, match=words):
        run(quick(checkpoint, **change), silent)


def test_the_program_writes_raw_samples_and_never_over_a_file(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "result.json"

    def measure() -> None:
        torch_forms("cpu", None, [1], 0, 6, False, 1, checkpoint, file, False)

    measure()
    report = json.loads(file.read_text())
    assert (report["schema"], report["device"]) == ("samx-benchmark-torch-forms/1", {"threads": "1"})
    assert all(entry["call_ns"] and entry["summary"]["median_ms"] > 0 for entry in report["results"][0]["samples"])
    assert report["results"][0]["work"][BASELINE] == {"form": "reference", "keeps_image": False}
    with pytest.raises(WriteError, match=r"result\.json"):
        measure()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_compiled_ways_agree_too(checkpoint: Path) -> None:
    (result,) = run(quick(checkpoint, prompts=(2,), compile=True), silent).results
    compiled = [name.replace("eager", "compiled") for name in WORK]
    assert list(result.differences) == [*WORK, *compiled, "samx aoti"]
    assert result.not_measured == {}


def test_time_is_read_when_the_gpu_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[object] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    clock = clock_for(torch.device("cuda"))
    assert clock() < clock()
    assert waited == [torch.device("cuda")] * 2


@dataclass
class FakeCuda:
    """Record nothing, and run the call again at every replay: what a graph does with the same memory."""

    calls: list[Prompts] = field(default_factory=list)
    replays: int = 0
    pools: list[object] = field(default_factory=list)

    def call(self, given: Prompts) -> tuple[torch.Tensor, ...]:
        self.calls.append(given)
        return (given[0] * 2,)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Stream:
            def wait_stream(self, other: object) -> None: ...

        class Graph:
            def replay(graph) -> None:  # noqa: N805
                self.replays += 1

        @contextmanager
        def record(graph: object, pool: object) -> Iterator[None]:
            self.pools.append(pool)
            yield

        stand_ins = {
            "Stream": Stream, "current_stream": Stream, "stream": lambda stream: nullcontext(), "CUDAGraph": Graph,
            "graph": record,
        }  # fmt: skip
        for name, value in stand_ins.items():
            monkeypatch.setattr(torch.cuda, name, value)


def test_a_graph_is_fed_through_tensors_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    cuda.install(monkeypatch)
    first = (torch.ones(2, 2, 2), torch.zeros(2, 2))
    graphed = Graphed(cuda.call, "the pool")
    outputs = graphed(first)
    assert (len(cuda.calls), cuda.pools, cuda.replays) == (WARM_UPS + 1, ["the pool"], 1)
    kept = cuda.calls[-1]
    assert outputs is graphed((torch.full((2, 2, 2), 7.0), torch.ones(2, 2)))
    assert (len(cuda.calls), cuda.replays) == (WARM_UPS + 1, 2)
    assert torch.equal(kept[0], torch.full((2, 2, 2), 7.0))
    assert torch.equal(first[0], torch.ones(2, 2, 2))  # a copy was recorded


def test_another_shape_is_recorded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    cuda.install(monkeypatch)
    graphed = Graphed(cuda.call, "the pool")
    for prompts in (2, 3):
        (outputs,) = graphed((torch.ones(prompts, 2, 2), torch.zeros(prompts, 2)))
        assert len(outputs) == prompts
    assert cuda.pools == ["the pool"] * 2
