"""PyTorch's ways of decoding: compared before they are timed, when the device is done, left out by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from onnx import TensorProto, ValueInfoProto, helper
from safetensors.torch import save_file
from toys import image_tensors, prompt_tensors, toy_checkpoint, toy_decoder
from toys import one_thread as one_thread

from samx.benchmarks import torch_measure, torch_peaks, torch_plan
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
from samx.benchmarks.torch_agreement import compare, mean_mask_iou
from samx.benchmarks.torch_measure import GroupResult, results
from samx.benchmarks.torch_onnx import Bound, open_session, refuse_fallback
from samx.benchmarks.torch_peaks import Peaks
from samx.benchmarks.torch_plan import Task, plan
from samx.errors import ParityError, UnavailableError, UsageError
from samx.models.spec import sam1_spec
from samx.validators.metrics import mask_iou

pytestmark = pytest.mark.usefixtures("one_thread", "small_effort")
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
def small_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure what fits into a cache, and judge few prompts: quick, and good enough for a toy."""
    monkeypatch.setitem(torch_peaks.PRODUCT_SIDE, "cpu", 64)
    monkeypatch.setitem(torch_peaks.COPIED_BYTES, "cpu", 1 << 16)
    monkeypatch.setattr(torch_plan, "JUDGED", 4)


def quick(checkpoint: Path, kind: str = "plain", **changes: Any) -> list[GroupResult]:
    """Measure as little as possible."""
    base: dict[str, Any] = {"dtype": "float32", "prompts": (1,), "seconds": 0, "least": 1}
    return list(results(Task(kind, checkpoint=str(checkpoint), **{**base, **changes})))


def setting(half: torch.dtype | None = None) -> Setting:
    return Setting(toy_checkpoint(SPEC), image_tensors(SPEC), half)


def boxes(count: int = 3) -> Prompts:
    return tuple(prompt_tensors(SPEC, count, [2, 3]).values())


@pytest.fixture(scope="module")
def exact() -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        return reference_form(setting())(boxes())[:2]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_way_is_compared_and_then_timed(dtype: str, checkpoint: Path) -> None:
    (result,) = quick(checkpoint, dtype=dtype, prompts=(2,), least=6)
    assert result.not_measured == {}
    assert [entry.name for entry in result.samples] == list(result.work) == list(result.differences) == list(WORK)
    assert [work.keeps_image for work in result.work.values()] == [work.keeps_image for work in WORK.values()]
    assert list(result.ratios) == list(WORK)[1:]
    assert all(len(entry.call_ns) >= 6 and entry.prompts == 2 for entry in result.samples)
    assert list(result.shares) == list(WORK)
    assert all(reached.multiply_adds > 0 and reached.bytes > 0 for reached in result.shares.values())


def test_too_few_calls_give_no_ratio(checkpoint: Path) -> None:
    (result,) = quick(checkpoint, least=5)
    assert (result.work, result.points, result.ratios) == (WORK, 2, {})
    assert max(found.logit_error for found in result.differences.values()) < 1e-3


@pytest.mark.parametrize(
    ("dtype", "forms"), [("float32", ["absorbed", "direct", "low_rank"]), ("float16", ["absorbed", "direct"])]
)
def test_parity_compares_every_form_and_times_nothing(dtype: str, forms: list[str], checkpoint: Path) -> None:
    (result,) = quick(checkpoint, "parity", dtype=dtype)
    assert list(result.differences) == [BASELINE, *(f"samx {form}" for form in forms)]
    assert (result.samples, result.shares, result.peaks, result.not_measured, result.wrong) == ([], {}, None, {}, [])


def test_every_way_is_judged_on_enough_prompts(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """32 at least, however few a call has: as many calls, whose outputs are kept although the next overwrite them."""
    monkeypatch.setattr(torch_plan, "JUDGED", 32)
    judged = []

    def keep(name: str, found: Any, wanted: Any, dtype: str) -> Any:
        judged.append((len(found[0]), len(wanted[0])))
        return compare(name, found, wanted, dtype)

    monkeypatch.setattr(torch_measure, "compare", keep)
    memory: list[torch.Tensor] = []

    def reused(way: torch_ways.Way) -> torch_ways.Way:
        def call(prompts: Prompts) -> tuple[torch.Tensor, ...]:
            outputs = way.call(prompts)
            memory.extend([] if memory else [tensor.clone() for tensor in outputs])
            return tuple(kept.copy_(tensor) for kept, tensor in zip(memory, outputs, strict=True))

        return replace(way, call=call)

    first = torch_ways.baseline
    monkeypatch.setattr(torch_ways, "baseline", lambda setting: reused(first(setting)))
    (result,) = quick(checkpoint, "parity", prompts=(9,))
    assert judged == [(36, 36)] * 4
    assert result.not_measured == {}


def test_the_plan_begins_with_parity_and_names_everything() -> None:
    tasks = plan(Task(device="cuda"))
    assert [task.name for task in tasks[:3]] == ["parity float32", "parity float16", "parity bfloat16"]
    assert len(tasks) == 10
    assert {task.prompts for task in tasks if task.kind != "parity"} == {(1, 16, 64, 256, 1024)}
    assert {task.dtype for task in plan(Task(device="cpu"))} == {"float32"}
    assert [task.name for task in plan(Task(), ["float16"], ["plain"])] == ["plain float16"]
    with pytest.raises(UsageError, match="nothing to measure"):
        plan(Task(), ["float16"], ["onnxruntime"])


def test_the_mask_iou_is_the_gates() -> None:
    masks = torch.rand(2, 5, 3, 8, 8) > 0.6
    masks[:, 0] = False  # two empty masks agree
    found, wanted = masks
    exact = mask_iou(found.flatten(2).numpy(), wanted.flatten(2).numpy())
    assert mean_mask_iou(found, wanted) == pytest.approx(float(exact.mean()), abs=1e-12)


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
    "shifted": lambda masks: masks.roll(3, dims=-1),
    "slightly off": lambda masks: masks + 0.01,
    "not finite": lambda masks: masks * torch.nan,
    "fewer": lambda masks: masks[:, :1],
}


@pytest.mark.parametrize(
    ("fault", "dtype"),
    [(fault, "float32") for fault in FAULTS]
    + [("shifted", "bfloat16"), ("not finite", "float16"), ("fewer", "float16")],
)
def test_a_planted_difference_is_found(fault: str, dtype: str, exact: tuple[torch.Tensor, ...]) -> None:
    with pytest.raises(ParityError, match=r"spoiled (differs from|gives other shapes than) the reference form"):
        compare("spoiled", [FAULTS[fault](exact[0]), exact[1]], exact, dtype)


def test_half_precision_may_differ_by_what_it_costs(exact: tuple[torch.Tensor, ...]) -> None:
    with torch.no_grad():
        half = baseline(setting(torch.bfloat16)).call(boxes())[:2]
    assert compare("half", half, exact, "bfloat16").logit_error > 1e-3
    with pytest.raises(ParityError, match="half differs"):
        compare("half", half, exact, "float32")


ERRORS = {
    ParityError("other masks"): ("other masks", ["broken"]),
    torch.OutOfMemoryError("too large\nby far"): ("OutOfMemoryError: too large", []),
    KeyError("a module of somebody else"): ("KeyError: 'a module of somebody else'", []),
}


def plant(monkeypatch: pytest.MonkeyPatch, **makers: Any) -> None:
    """Measure these beside the baseline instead of samx's own ways."""
    monkeypatch.setitem(
        torch_measure.KINDS, "plain", lambda setting, task: {"baseline": lambda: baseline(setting), **makers}
    )


def broken(error: Exception, good_calls: int = 0) -> torch_ways.Way:
    """Make a way that fails from one call on; before that it computes what the reference form does."""
    exact, calls = reference_form(setting()), iter(range(good_calls))

    def call(prompts: Prompts) -> tuple[torch.Tensor, ...]:
        if next(calls, None) is None:
            raise error
        return exact(prompts)

    return torch_ways.Way("broken", call, WORK["samx eager"])


@pytest.mark.parametrize("error", ERRORS)
def test_what_cannot_be_measured_is_left_out_by_name(
    error: Exception, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, broken=lambda: broken(error))
    (result,) = quick(checkpoint)
    reason, wrong = ERRORS[error]
    assert (result.not_measured, result.wrong) == ({"broken": reason}, wrong)
    assert [entry.name for entry in result.samples] == [BASELINE]


def test_what_cannot_be_made_is_left_out_by_name(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> torch_ways.Way:
        raise ImportError("no such library")

    plant(monkeypatch, unmade=make)
    (result,) = quick(checkpoint)
    assert result.not_measured == {"unmade": "ImportError: no such library"}
    assert [entry.name for entry in result.samples] == [BASELINE]


def test_one_that_fails_while_it_is_timed_leaves_the_others(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_measure, "image_of", lambda *given: setting().image)
    plant(monkeypatch, broken=lambda: broken(torch.OutOfMemoryError("too large"), good_calls=4))
    (result,) = quick(checkpoint, least=6)
    assert result.not_measured == {"broken": "OutOfMemoryError: too large"}
    assert list(result.differences) == [BASELINE, "broken"]
    assert [(entry.name, len(entry.call_ns) >= 6) for entry in result.samples] == [(BASELINE, True)]


def test_a_device_that_is_lost_while_timing_ends_the_group_alone(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("illegal memory access")

    monkeypatch.setattr(torch_measure, "measure", fail)
    (result,) = quick(checkpoint)
    assert result.samples == []
    assert result.not_measured == dict.fromkeys(WORK, "RuntimeError: illegal memory access")


def test_without_metas_package_the_report_says_what_stands_in(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_ways, "has_peer", lambda loaded: False)
    (result,) = quick(checkpoint, "parity")
    assert next(iter(result.differences)) == "reference eager"
    assert "not run: segment-anything is not here" in result.not_measured["segment-anything"]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"device": "tpu"}, UsageError, "found tpu, expected cpu or cuda"),
        ({"dtype": "float64"}, UsageError, "found float64"),
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
        quick(checkpoint, **change)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_compiled_ways_agree_too(checkpoint: Path) -> None:
    (result,) = quick(checkpoint, "compiled", prompts=(2,))
    compiled = [name.replace("eager", "compiled") for name in (BASELINE, "samx eager")]
    assert list(result.differences) == [BASELINE, *compiled, "samx aoti"]
    assert result.not_measured == {}


@pytest.mark.slow
def test_the_onnx_export_is_measured_too(checkpoint: Path) -> None:
    for result in quick(checkpoint, "onnxruntime", prompts=(2, 3), least=2):
        assert result.not_measured == {}
        assert list(result.differences) == [BASELINE, "samx ONNX, CPUExecutionProvider"]
        assert all(len(entry.call_ns) >= 2 for entry in result.samples)


def shifted_graph() -> bytes:
    """Make a graph with a prompt graph's inputs and outputs: masks of the state plus the mean coordinate."""
    side, floats = SPEC.mask_size, TensorProto.FLOAT
    nodes = [
        helper.make_node("ReduceMean", ["point_coords"], ["mean"], axes=[1, 2], keepdims=1),
        helper.make_node("Unsqueeze", ["mean", "last"], ["shift"]),
        helper.make_node("Add", ["state", "shift"], ["low_res_masks"]),
        helper.make_node("Concat", ["point_labels", "one_label"], ["iou_predictions"], axis=1),
    ]

    def tensors(**shapes: list[str | int | None]) -> list[ValueInfoProto]:
        return [helper.make_tensor_value_info(name, floats, shape) for name, shape in shapes.items()]

    inputs = tensors(state=[1, 3, side, side], point_coords=["N", 2, 2], point_labels=["N", 2])
    outputs = tensors(low_res_masks=["N", 3, side, side], iou_predictions=["N", 3])
    nodes.insert(3, helper.make_node("ReduceMean", ["point_labels"], ["one_label"], axes=[1], keepdims=1))
    last = helper.make_tensor("last", TensorProto.INT64, [1], [3])
    graph = helper.make_graph(nodes, "toy", inputs, outputs, initializer=[last])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def test_a_graph_reads_and_writes_tensors_that_stay() -> None:
    side = SPEC.mask_size
    bound = Bound(open_session(shifted_graph(), "cpu"), {"state": torch.ones(1, 3, side, side)}, setting())
    masks, scores = bound((torch.full((2, 2, 2), 4.0), torch.tensor([[2.0, 3.0]] * 2)))
    assert torch.equal(masks, torch.full((2, 3, side, side), 5.0))
    assert torch.equal(scores, torch.tensor([[2.0, 3.0, 2.5]] * 2))
    again, _ = bound((torch.zeros(2, 2, 2), torch.zeros(2, 2)))
    assert again is masks
    assert torch.equal(masks, torch.ones(2, 3, side, side))
    (other, _) = bound((torch.zeros(3, 2, 2), torch.zeros(3, 2)))
    assert other.shape == (3, 3, side, side)


def test_a_provider_that_is_not_here_is_named() -> None:
    with pytest.raises(UnavailableError, match="this ONNX Runtime has no CUDAExecutionProvider"):
        open_session(shifted_graph(), "cuda")


@dataclass(frozen=True)
class FakeSession:
    """Tell where the nodes of a graph run."""

    providers: tuple[str, ...]
    nodes: dict[str, str]  # operation -> provider

    def get_providers(self) -> list[str]:
        return list(self.providers)

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [
            SimpleNamespace(ep_name=provider, get_nodes=lambda op=op: [SimpleNamespace(op_type=op)])
            for op, provider in self.nodes.items()
        ]


CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


@pytest.mark.parametrize(
    ("providers", "nodes", "words"),
    [
        ((CPU,), {"MatMul": CPU}, f"did not load {CUDA}"),
        ((CUDA, CPU), {"MatMul": CPU, "Gelu": CUDA}, f"{CUDA} did not take all of the graph: found MatMul"),
    ],
)
def test_a_graph_that_fell_back_is_refused(providers: tuple[str, ...], nodes: dict[str, str], words: str) -> None:
    with pytest.raises(UnavailableError, match=words):
        refuse_fallback(FakeSession(providers, nodes), CUDA)


def test_shapes_may_be_computed_on_the_processor() -> None:
    session = FakeSession((CUDA, CPU), {"MatMul": CUDA, "Shape": CPU, "Gather": CPU})
    refuse_fallback(session, CUDA)
    with pytest.raises(UnavailableError):
        refuse_fallback(session, CPU)


def test_a_way_is_made_once_for_itself_and_its_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else everything would be compiled twice."""
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "the pool")
    made = []

    def make() -> torch_ways.Way:
        made.append(broken(KeyError()))
        return made[-1]

    monkeypatch.setattr(torch_ways, "compiled", lambda way: make())
    makers = torch_measure.compiled(setting(), Task("compiled", device="cuda", checkpoint="none"))
    assert list(makers) == [
        "baseline", "baseline compiled", "samx compiled", "baseline compiled, CUDA graph",
        "samx compiled, CUDA graph",
    ]  # fmt: skip
    way, graph = makers["baseline compiled"](), makers["baseline compiled, CUDA graph"]()
    assert len(made) == 1
    assert way is made[0]
    assert graph.name == "broken, CUDA graph"
    assert isinstance(graph.call, Graphed)


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
