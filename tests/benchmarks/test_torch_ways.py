"""PyTorch's ways of decoding, as sessions: exact in every form, when the device is done, on tensors that stay."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, ValueInfoProto, helper
from safetensors.torch import save_file
from toys import one_thread as one_thread
from toys import toy_checkpoint, toy_decoder

from samx.benchmarks.contenders import Contender, Setting, chosen
from samx.benchmarks.contenders import pytorch as torch_ways
from samx.benchmarks.contenders.onnx_bound import Bound, open_session, refuse_fallback
from samx.benchmarks.contenders.pytorch import WARM_UPS, Graphed, Tensors, clock_for, peaks, split_prompts
from samx.benchmarks.results import NotMeasured
from samx.benchmarks.subjects import Subject, open_contenders
from samx.errors import PromptError, UnavailableError
from samx.models.checkpoint import load_checkpoint
from samx.models.spec import DecoderSpec, sam1_spec, sam2_spec
from samx.runtimes.torch import reference_session
from samx.validators.cases import parity_cases
from samx.validators.suite import ParitySuite

pytestmark = pytest.mark.usefixtures("one_thread")
SPEC = sam1_spec(image_size=128)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    path = tmp_path_factory.mktemp("checkpoint") / "toy.safetensors"
    save_file(toy_decoder(SPEC).state_dict(), path, {"image_size": str(SPEC.image_size)})
    loaded = load_checkpoint(path)
    return Setting(path, replace(loaded, spec=SPEC), threads=1)


@pytest.fixture(scope="module")
def suite(setting: Setting) -> ParitySuite:
    cases = [case for case in parity_cases(SPEC) if len(case.prompts["point_labels"]) < 8]
    return ParitySuite.build(reference_session(setting.loaded, SPEC), None, cases)


def opened(
    words: str, setting: Setting, suite: ParitySuite, resident: bool = False
) -> tuple[list[Subject], list[NotMeasured]]:
    return open_contenders(chosen([words]), setting, suite, resident=resident)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_every_form_is_judged_by_the_suite(precision: str, setting: Setting, suite: ParitySuite) -> None:
    names = ("meta-pytorch", "reference", "pytorch", "pytorch-whole")
    found, missing = opened(",".join(f"{name}:{precision}" for name in names), setting, suite)
    assert missing == []
    assert [subject.described.target for subject in found] == list(names)
    assert {subject.described.precision for subject in found} == {precision}
    assert [subject.described.options["split"] for subject in found] == [False, False, True, False]
    assert {subject.described.form for subject in found[:2]} == {"reference"}
    cases = [subject.described.parity.cases for subject in found]
    assert cases[1:] == [len(suite.cases)] * 3
    # Meta's predictor asks nothing without a click or a box, and pads every click.
    assert cases[0] == len(suite.cases) - len({"no_points", "padding_only", "padding_twice", "bare_point"})


def test_metas_onnx_export_agrees_one_prompt_a_call_and_with_a_thread_each(
    setting: Setting, suite: ParitySuite
) -> None:
    found, missing = opened("meta,meta-threads", setting, suite)
    assert missing == []
    assert [subject.described.parity.cases for subject in found] == [len(suite.cases)] * 2
    assert all(subject.session.placement().honoured for subject in found)


@pytest.mark.slow
def test_our_graph_on_bound_tensors_agrees(setting: Setting, suite: ParitySuite) -> None:
    (found,), missing = opened("onnx-bound", setting, suite)
    assert missing == []
    assert found.described.parity.metrics["mask_iou_min"] > 0.9999


@pytest.mark.parametrize("spec", [SPEC, sam2_spec(image_size=128)], ids=["sam1", "sam2"])
def test_other_peoples_packages_agree(spec: DecoderSpec) -> None:
    """Whichever of them are here."""
    loaded = toy_checkpoint(spec)
    cases = [case for case in parity_cases(spec) if len(case.prompts["point_labels"]) < 8]
    judged = ParitySuite.build(reference_session(loaded, spec), None, cases)
    setting = Setting(Path("toy"), loaded, threads=1)
    here = [entry for entry in chosen(["samexporter,huggingface"]) if importlib.util.find_spec(entry.library)]
    found, missing = open_contenders(here, setting, judged)
    assert (missing, len(found)) == ([], len(here))
    assert all(subject.described.parity.cases >= len(cases) - 4 for subject in found)


def test_what_stays_on_the_device_is_what_decode_gives(setting: Setting, suite: ParitySuite) -> None:
    (found,), _ = opened("pytorch-whole", setting, suite, resident=True)
    session: Any = found.session
    assert session.resident
    prompts = suite.cases[0].prompts
    session.set_image(suite.images[0])
    masks, _ = session.run(session.prepare(prompts))
    np.testing.assert_array_equal(masks.numpy(), session.decode(prompts)["low_res_masks"])


def shifted(setting: Setting, **options: Any) -> Any:
    """Open Meta's modules with one weight moved."""
    found = torch_ways.open_meta(setting)
    session: Any = found.session
    plain = session._decode
    session._decode = lambda prompts: {name: value + np.float32(0.01) for name, value in plain(prompts).items()}
    return found


def broken(setting: Setting, **options: Any) -> Any:
    raise torch.OutOfMemoryError("too large\nby far")


def planted(opener: str) -> Contender:
    return replace(chosen(["meta-pytorch"])[0], open=f"{__name__}:{opener}")


def test_what_computes_something_else_is_named_and_not_opened(setting: Setting, suite: ParitySuite) -> None:
    found, (missing,) = open_contenders([planted("shifted")], setting, suite)
    assert found == []
    assert (missing.subject, missing.scenario, missing.wrong) == ("meta-pytorch", None, True)
    assert "meta-pytorch does not compute what PyTorch computes: found parity failed" in missing.reason


def test_what_cannot_be_opened_is_named_and_the_rest_stands(setting: Setting, suite: ParitySuite) -> None:
    found, (missing,) = open_contenders([planted("broken"), *chosen(["reference"])], setting, suite)
    assert [subject.name for subject in found] == ["reference"]
    assert (missing.reason, missing.wrong) == ("OutOfMemoryError: too large by far", False)


@pytest.mark.parametrize("fault", [np.nan, 0.01])
def test_half_precision_is_judged_in_masks(
    fault: float, setting: Setting, suite: ParitySuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torch_ways, "_autocast", lambda setting, call: lambda *given: (call(*given)[0] * fault, call(*given)[1])
    )
    found, missing = opened("reference:bf16", setting, suite)
    assert [entry.wrong for entry in missing] == (
        [True] if np.isnan(fault) else []
    )  # scaled logits have the same masks
    assert len(found) == 1 - len(missing)


def test_prompts_that_others_do_not_take_are_refused() -> None:
    coords, labels = np.zeros((1, 3, 2), np.float32), np.array([[1, 0, -1]], np.float32)
    clicks, kinds, boxes = split_prompts({"point_coords": coords, "point_labels": labels})
    assert (clicks.shape, kinds.tolist(), boxes.shape) == ((1, 2, 2), [[1, 0]], (1, 0))
    box = {"point_coords": coords, "point_labels": np.array([[2, 3, 1]], np.float32)}
    assert [part.shape for part in split_prompts(box)] == [(1, 1, 2), (1, 1), (1, 4)]
    for change in ({"point_labels": np.full((1, 3), -1, np.float32)}, {"has_mask_input": np.ones(1, np.float32)}):
        with pytest.raises(PromptError):
            split_prompts({"point_coords": coords, "point_labels": labels, **change})


def test_peaks_are_the_best_of_several_tries(setting: Setting) -> None:
    """A clock whose steps of the product and of the copy are 2 and 1 s."""
    readings = iter(1_000_000_000 * second for second in (0, 0, 2, 2, 2, 3))
    found = peaks(setting, tiny=True, threads=1, clock=lambda: next(readings))
    assert found == {"threads": 1, "multiply_adds_per_s": 64**3 / 2, "bytes_per_s": 2 * (1 << 16)}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_compiled_forms_agree_too(setting: Setting, suite: ParitySuite) -> None:
    found, missing = opened("pytorch-compiled,meta-pytorch-compiled", setting, suite)
    assert missing == []
    assert len(found) == 2


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
    session, state = open_session(shifted_graph(), "cpu"), {"state": torch.ones(1, 3, side, side)}
    bound = Bound(session, state, SPEC, torch.device("cpu"))
    masks, scores = bound(torch.full((2, 2, 2), 4.0), torch.tensor([[2.0, 3.0]] * 2))
    assert torch.equal(masks, torch.full((2, 3, side, side), 5.0))
    assert torch.equal(scores, torch.tensor([[2.0, 3.0, 2.5]] * 2))
    again, _ = bound(torch.zeros(2, 2, 2), torch.zeros(2, 2))
    assert again is masks
    assert torch.equal(masks, torch.ones(2, 3, side, side))
    (other, _) = bound(torch.zeros(3, 2, 2), torch.zeros(3, 2))
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


def test_time_is_read_when_the_gpu_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[object] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    clock = clock_for("cuda")
    assert clock() < clock()
    assert waited == ["cuda"] * 2


@dataclass
class FakeCuda:
    """Record nothing, and run the call again at every replay: what a graph does with the same memory."""

    calls: list[Tensors] = field(default_factory=list)
    replays: int = 0
    pools: list[object] = field(default_factory=list)

    def call(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
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
    outputs = graphed(*first)
    assert (len(cuda.calls), cuda.pools, cuda.replays) == (WARM_UPS + 1, ["the pool"], 1)
    kept = cuda.calls[-1]
    assert outputs is graphed(torch.full((2, 2, 2), 7.0), torch.ones(2, 2))
    assert (len(cuda.calls), cuda.replays) == (WARM_UPS + 1, 2)
    assert torch.equal(kept[0], torch.full((2, 2, 2), 7.0))
    assert torch.equal(first[0], torch.ones(2, 2, 2))  # a copy was recorded


def test_another_shape_is_recorded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    cuda.install(monkeypatch)
    graphed = Graphed(cuda.call, "the pool")
    for prompts in (2, 3):
        (outputs,) = graphed(torch.ones(prompts, 2, 2), torch.zeros(prompts, 2))
        assert len(outputs) == prompts
    assert cuda.pools == ["the pool"] * 2
