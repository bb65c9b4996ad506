"""The fast form inside PyTorch: no graph breaks, no work on another device, nothing that a CUDA graph cannot hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toys import image_tensors, prompt_tensors, toy_decoder
from toys import one_thread as one_thread

from samx.models.fast.decoder import FastDecoder, Form
from samx.models.fast.precision import set_precision
from samx.models.spec import DecoderSpec, sam1_spec, sam2_spec

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = 128
SPECS = {
    "sam1": sam1_spec(image_size=SMALL),
    "sam1_mask": sam1_spec(image_size=SMALL, mask_input=True),
    "sam2": sam2_spec(image_size=SMALL),
    "sam2_single": sam2_spec(image_size=SMALL, masks="single"),
}
FORMS: list[tuple[str, Form]] = [
    (name, form)
    for name, spec in SPECS.items()
    for form in ("low_rank", "absorbed", "direct")
    if form != "low_rank" or not spec.mask_input
]
IDS = [f"{name}-{form}" for name, form in FORMS]
# Of operations that read a value back, or whose output's shape hangs on values: both make the host wait.
WAITING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
TRACED = [("sam1", "low_rank")]  # each takes seconds; the others run with the slow tests


class OneDevice(TorchDispatchMode):
    """Fail on every operation that waits for the device, or that takes or gives a tensor of another one."""

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device, self.seen = device, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not WAITING & set(func.tags), func
        given = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, given)):
            if isinstance(tensor, Tensor):
                assert tensor.device.type == self.device, f"{func} on {tensor.device}"
        self.seen += 1
        return given


def prompts(spec: DecoderSpec, count: int, points: int) -> tuple[Tensor, ...]:
    return tuple(prompt_tensors(spec, count, [1, 0] * (points // 2) + [1] * (points % 2)).values())


def decoder(spec: DecoderSpec, form: Form, half: torch.dtype | None = None) -> FastDecoder:
    made = FastDecoder(toy_decoder(spec), form, fused=True, padded_points=True)
    return made if half is None else set_precision(made, half=half)


def halves(form: Form) -> list[torch.dtype | None]:
    return [None] if form == "low_rank" else [None, torch.float16, torch.bfloat16]


@contextmanager
def one_device(device: str) -> Iterator[OneDevice]:
    with OneDevice(device) as mode:
        yield mode
    assert mode.seen > 50  # the mode was really there


@pytest.mark.parametrize(("name", "form"), FORMS, ids=IDS)
def test_nothing_is_made_on_the_cpu(name: str, form: Form) -> None:
    """On a device without values nothing can be read back either."""
    spec = SPECS[name]
    for half in halves(form):
        module = decoder(spec, form, half).to("meta")
        image = [tensor.to("meta") for tensor in image_tensors(spec).values()]
        given = [tensor.to("meta") for tensor in prompts(spec, 3, 2)]
        with one_device("meta"):
            outputs = module.decode(module.image_state(*image), *given)
        assert [tuple(output.shape[1:]) for output in outputs] == [tuple(t.shape[1:]) for t in spec.outputs]


@pytest.mark.parametrize(("name", "form"), FORMS, ids=IDS)
def test_nothing_waits_for_the_device(name: str, form: Form) -> None:
    spec = SPECS[name]
    module = decoder(spec, form)
    with one_device("cpu"):
        module.decode(module.image_state(*image_tensors(spec).values()), *prompts(spec, 3, 2))


@pytest.mark.parametrize(
    "fault",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.to("meta"),
        lambda x: torch.zeros(3, device="meta"),
        lambda x: x if x.any() else -x,
    ],
    ids=["item", "mask", "nonzero", "copy", "new tensor", "branch"],
)
def test_a_planted_wait_or_foreign_tensor_is_found(fault: Any) -> None:
    with pytest.raises(AssertionError), OneDevice("cpu"):
        fault(torch.ones(4))


@pytest.mark.parametrize(
    ("name", "form"), [pytest.param(*key, marks=() if key in TRACED else pytest.mark.slow) for key in FORMS], ids=IDS
)
def test_it_compiles_whole_and_again_only_for_other_kinds_of_size(name: str, form: Form) -> None:
    """One graph for the first sizes, one for any other sizes from two up: no break, no graph per number of points."""
    spec = SPECS[name]
    module = decoder(spec, form)
    state = module.image_state(*image_tensors(spec).values())
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(module.decode, fullgraph=True, backend=counter)
    for count, points in [(4, 3), (5, 4), (2, 2), (9, 7), (5, 11)]:
        outputs = compiled(state, *prompts(spec, count, points))
        assert all(len(output) == count for output in outputs)
    assert counter.frame_count == 2


@pytest.mark.slow
def test_half_precision_compiles_whole_too() -> None:
    spec = SPECS["sam2"]
    module = decoder(spec, "absorbed", torch.bfloat16)
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    for count, points in [(4, 3), (5, 6), (2, 2)]:
        compiled(**image_tensors(spec), **prompt_tensors(spec, count, [1] * points))
    assert counter.frame_count == 1


def test_a_planted_graph_break_is_found() -> None:
    module = decoder(SPECS["sam1"], "absorbed")
    module.points.register_forward_hook(lambda _, __, output: print(float(output.sum())))  # noqa: T201
    torch._dynamo.reset()
    state = module.image_state(*image_tensors(module.spec).values())
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(module.decode, fullgraph=True, backend="eager")(state, *prompts(module.spec, 2, 2))


@pytest.mark.slow
def test_inductor_computes_the_same() -> None:
    spec = SPECS["sam1"]
    module = decoder(spec, "low_rank")
    state = module.image_state(*image_tensors(spec).values())
    torch._dynamo.reset()
    compiled = torch.compile(module.decode, fullgraph=True, dynamic=True)
    for count, points in [(4, 3), (5, 6)]:
        given = prompts(spec, count, points)
        for found, wanted in zip(compiled(state, *given), module.decode(state, *given), strict=True):
            assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-5
