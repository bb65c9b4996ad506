"""The evaluator: agreement with PyTorch, storage rounding, and faults that stop it before or at the operation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mil_packages import ct, edited, function, mb, operation, program, save_function, save_module, types
from torch import Tensor, nn
from torch.nn import functional as F

from samx.errors import ArtifactError, InputError
from samx.formats.coreml.package import package_from_directory
from samx.formats.coreml.program import Program, load_program, operations
from samx.runtimes.mil.evaluate import Evaluator, UnknownOperationError, limited_threads
from samx.runtimes.mil.operations import held, stored

FULL, HALF = np.float32, np.float16
INPUT = {"x": ((2, 4), "fp32")}


class Block(nn.Module):
    """A bit of everything that a decoder has."""

    never: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.widen, self.narrow = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)
        self.down, self.head = nn.Conv2d(8, 8, 2, stride=2), nn.Conv2d(8, 5, 1)
        # A tensor, because coremltools lifts what follows a bare number to float32.
        self.register_buffer("never", torch.full((1, 1, 1, 1), -1000.0))

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: (1, 8, 4, 6), (1, 3) -> (1, 1, 16, 24), (1, 6, 5)."""
        x = self.narrow(F.gelu(self.widen(x)))
        q, k = x.reshape(1, 2, 4, 24), torch.cat([x.sin(), x.cos()], 1)[:, 4:12].reshape(1, 2, 4, 24)
        empty = (labels == -2).to(x.dtype).reshape(1, 1, 3, 1) * self.never  # of the first three places
        scores = q.transpose(-1, -2) @ k
        weights = (torch.cat([scores[:, :, :3] + empty, scores[:, :, 3:]], 2)).softmax(2)
        among = torch.einsum("nchw,nwhu->nchu", x, x.transpose(1, 3))  # (1, 8, 4, 8)
        y = torch.einsum("nchw,nwhu->nchu", among, x) + (q @ weights).reshape(1, 8, 4, 6)
        grown = F.pixel_shuffle(F.pixel_shuffle(torch.cat([y, y], 1), 2), 2)
        tokens = F.relu(self.down(y))
        return grown, self.head(tokens).sigmoid().reshape(1, 5, 6).transpose(1, 2)


def block() -> Block:
    torch.manual_seed(3)
    return Block().eval().requires_grad_(False)


def feed(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    image = torch.randn(1, 8, 4, 6, generator=generator).to(dtype)
    return {"x": image, "labels": torch.tensor([[0.0, 1, -2]]).to(dtype)}


def numbers(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


OUTPUTS = ("grown", "scores")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """The block, saved in float32 and read back."""
    path = save_module(block(), feed(), OUTPUTS, tmp_path_factory.mktemp("full") / "block.mlpackage")
    return load_program(package_from_directory(path), "block")


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """The block, saved in float16 and read back."""
    path = tmp_path_factory.mktemp("half") / "block.mlpackage"
    return load_program(package_from_directory(save_module(block().half(), feed(torch.float16), OUTPUTS, path)), "half")


def test_float32_agrees_with_pytorch(full: Program) -> None:
    found = Evaluator(full, "main")(numbers(feed()))
    for name, wanted in zip(OUTPUTS, block()(**feed()), strict=True):
        assert found[name].dtype == FULL
        np.testing.assert_allclose(found[name], wanted.numpy(), rtol=1e-6, atol=1e-6)


def test_float16_is_rounded_after_every_operation(half: Program) -> None:
    found = Evaluator(half, "main")(numbers(feed(torch.float16)))
    rounded = {name: tensor.float() for name, tensor in feed(torch.float16).items()}
    for name, wanted in zip(OUTPUTS, block().half().float()(**rounded), strict=True):
        assert found[name].dtype == HALF
        error = np.abs(found[name].astype(FULL) - wanted.numpy()).max()
        assert 1e-5 < error < 1e-2  # rounded, and not lost


def test_a_call_leaves_no_trace(full: Program) -> None:
    evaluate, given = Evaluator(full, "main"), numbers(feed())
    before = {name: array.copy() for name, array in given.items()}
    first, second = evaluate(given), evaluate(given)
    for name in OUTPUTS:
        np.testing.assert_array_equal(first[name], second[name])
        first[name][:] = 0  # belongs to the caller
    np.testing.assert_array_equal(evaluate(given)["grown"], second["grown"])
    for name, array in given.items():
        np.testing.assert_array_equal(array, before[name])


def test_operations_are_counted_without_constants(full: Program) -> None:
    computed = [op for op in operations(full.function("main")) if op.op_type != "const"]
    assert Evaluator(full, "main").operations == len(computed) > 20


def test_what_depends_on_constants_alone_is_computed_once() -> None:
    made = program(lambda x: mb.add(x=x, y=mb.sin(x=mb.cos(x=np.array([1, 2, 3, 4], FULL)))), INPUT)
    evaluate = Evaluator(made, "main")
    assert (evaluate.operations, len(evaluate._steps)) == (3, 1)
    (found,) = evaluate({"x": np.zeros((2, 4), FULL)}).values()
    np.testing.assert_allclose(found[0], np.sin(np.cos([1, 2, 3, 4])), rtol=1e-5)


def test_memory_is_given_back_after_the_last_use() -> None:
    def chain(x: Any) -> Any:
        for _ in range(4):
            x = mb.cos(x=x)
        return x

    evaluate = Evaluator(program(chain, INPUT), "main")
    assert [len(done_with) for done_with in evaluate._done_with] == [1, 1, 1, 1]
    values = {evaluate._given[0]: torch.zeros(2, 4)}
    evaluate._run(values)
    assert list(values) == evaluate._returned


def test_an_input_may_be_an_output_and_an_output_occur_twice() -> None:
    made = program(lambda x: (mb.cos(x=x), mb.reshape(x=x, shape=[2, 4])), INPUT)
    x = np.ones((2, 4), FULL)
    first, second = Evaluator(made, "main")({"x": x}).values()
    np.testing.assert_allclose(first, np.cos(x), rtol=1e-6)
    np.testing.assert_array_equal(second, x)


class TestFeeds:
    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            ({}, "wrong inputs for function 'main' of a test: found , expected x"),
            ({"x": np.zeros((2, 4), FULL), "y": np.zeros(1, FULL)}, "found x, y, expected x"),
            ({"x": np.zeros((2, 5), FULL)}, r"found x \(2, 5\) float32, expected \(2, 4\) float32"),
            ({"x": np.zeros((2, 4), HALF)}, r"found x \(2, 4\) float16, expected"),
            ({"x": np.zeros((2, 4))}, "float64"),
        ],
    )
    def test_a_feed_that_does_not_fit(self, wrong: dict[str, Any], words: str) -> None:
        with pytest.raises(InputError, match=words):
            Evaluator(program(lambda x: mb.cos(x=x), INPUT), "main")(wrong)


class TestRefusedBeforeAnythingRuns:
    def test_an_operation_that_is_not_in_the_table(self, tmp_path: Path) -> None:
        made = function(lambda x: mb.cumsum(x=mb.cos(x=x), axis=1, name="running"), INPUT)
        package = package_from_directory(save_function(made, tmp_path / "toy.mlpackage"))
        with pytest.raises(UnknownOperationError, match=r"found cumsum 'running'.*Mac"):
            Evaluator(load_program(package, "toy"), "main")

    def test_many_of_them_are_counted(self) -> None:
        def build(x: Any) -> Any:
            for _ in range(5):
                x = mb.cumsum(x=x, axis=1)
            return x

        with pytest.raises(UnknownOperationError, match="and 2 more"):
            Evaluator(program(build, INPUT), "main")

    def test_nested_blocks(self) -> None:
        def build(x: Any) -> Any:
            few = mb.greater(x=mb.reduce_sum(x=x), y=FULL(0))
            return mb.cond(pred=few, _true_fn=lambda: mb.cos(x=x), _false_fn=lambda: mb.sin(x=x))

        with pytest.raises(UnknownOperationError, match="found cond 'cond"):
            Evaluator(program(build, INPUT), "main")

    @pytest.mark.parametrize(
        ("build", "words"),
        [
            (lambda x: mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"), "way of gelu 'gelu.*found mode = 'SIGMOID_APPROX"),
            (
                lambda x: mb.conv(
                    x=mb.reshape(x=x, shape=[1, 2, 2, 2]), weight=np.ones((2, 2, 1, 1), FULL), pad_type="same"
                ),
                "found pad_type = 'same', expected valid",
            ),
            (lambda x: mb.concat(values=[x, x], axis=0, interleave=True), "found interleave = True"),
        ],
    )  # fmt: skip
    def test_a_way_that_is_not_known(self, build: Callable[..., Any], words: str) -> None:
        with pytest.raises(UnknownOperationError, match=words):
            Evaluator(program(build, INPUT), "main")

    def test_a_type_whose_meaning_is_open(self) -> None:
        made = program(lambda x: mb.real_div(x=x, y=np.int32(2)), {"x": ((2,), "int32")})
        with pytest.raises(ArtifactError, match=r"real_div 'real_div.*found x int32; y int32, expected x and y alike"):
            Evaluator(made, "main")

    def test_a_shape_that_is_not_fixed(self) -> None:
        made = program(lambda x: mb.cos(x=x), {"x": ((2, ct.converters.mil.mil.get_new_symbol()), "fp32")})
        with pytest.raises(ArtifactError, match=r"no fixed shape: found x \(2, \?\) fp32"):
            Evaluator(made, "main")

    def test_a_parameter_that_only_a_call_gives(self) -> None:
        made = program(
            lambda x, at: mb.slice_by_index(x=x, begin=at, end=[2, 4], begin_mask=[True] * 2, end_mask=[True] * 2),
            {**INPUT, "at": ((2,), "int32")},
        )
        with pytest.raises(ArtifactError, match="depends on a value of the call: found at"):
            Evaluator(made, "main")

    def test_a_value_that_nothing_gives(self) -> None:
        made = program(lambda x: mb.cos(x=x), INPUT)
        made.functions["main"].operations[0]._input_vars["x"] = function(lambda x: mb.sin(x=x), INPUT).outputs[0]
        with pytest.raises(ArtifactError, match=r"cos 'cos.* reads what nothing before it gives"):
            Evaluator(made, "main")

    def test_types_mixed_behind_the_loaders_back(self) -> None:
        made = program(lambda x, y: mb.add(x=x, y=y), {"x": ((2,), "fp32"), "y": ((2,), "fp32")})
        made.functions["main"].inputs["y"]._sym_type = types.tensor(types.fp16, (2,))
        with pytest.raises(ArtifactError, match=r"add 'add.* do not go together: found x fp32; y fp16"):
            Evaluator(made, "main")


def test_a_wrong_declared_shape_in_the_file_is_an_error(tmp_path: Path) -> None:
    made = function(lambda x: mb.cos(x=x), INPUT)
    package = package_from_directory(save_function(made, tmp_path / "toy.mlpackage"))

    def change(spec: Any) -> None:
        operation(spec, "cos").outputs[0].type.tensorType.dimensions[1].constant.size = 5
        spec.description.output[0].type.multiArrayType.shape[1] = 5

    with pytest.raises(ArtifactError, match="Mismatch between var types"):
        load_program(edited(package, change), "toy")


def test_a_wrong_declared_shape_behind_the_loaders_back_is_an_error() -> None:
    made = program(lambda x: mb.sin(x=mb.cos(x=x, name="wrong")), INPUT)
    made.functions["main"].operations[0].outputs[0]._sym_type = types.tensor(types.fp32, (2, 5))
    evaluate = Evaluator(made, "main")
    with pytest.raises(
        ArtifactError, match=r"cannot evaluate cos 'wrong' .* it gives \(2, 4\), declared is wrong \(2, 5\)"
    ):
        evaluate({"x": np.zeros((2, 4), FULL)})


def test_weights_of_another_float_type_are_applied_as_they_are() -> None:
    weight = np.array([[1, 1 + 2.0**-12]] * 3, FULL).reshape(3, 2, 1, 1)
    made = program(lambda x: mb.conv(x=x, weight=weight), {"x": ((1, 2, 1, 1), "fp16")})
    (found,) = Evaluator(made, "main")({"x": np.array([0, 1], HALF).reshape(1, 2, 1, 1)}).values()
    assert found.dtype == HALF
    assert found[0, :, 0, 0].tolist() == [1, 1, 1]  # a float16 result of a float32 product


class TestThreads:
    def test_they_are_set_for_a_while(self) -> None:
        before = torch.get_num_threads()
        with limited_threads(before + 1):
            assert torch.get_num_threads() == before + 1
        assert torch.get_num_threads() == before

    def test_none_is_one(self) -> None:
        before = torch.get_num_threads()
        with limited_threads(None):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == before

    def test_they_come_back_after_an_error(self) -> None:
        before = torch.get_num_threads()
        with pytest.raises(KeyError), limited_threads(before + 1):
            raise KeyError
        assert torch.get_num_threads() == before


class TestStorage:
    def test_float16_is_rounded_to_even_and_keeps_subnormals(self) -> None:
        x = torch.tensor([1 + 2.0**-11, 1 + 3 * 2.0**-11, 2.0**-24, 2.0**-26, 65520, -1e9])
        assert stored(x, "fp16").tolist() == [1, 1 + 2.0**-9, 2.0**-24, 0, np.inf, -np.inf]

    @pytest.mark.parametrize(
        ("value", "dtype"), [(torch.ones(1), "int32"), (torch.tensor([1]), "fp32"), (torch.ones(1), "bool")]
    )
    def test_another_kind_of_value_is_refused(self, value: Tensor, dtype: str) -> None:
        with pytest.raises(ValueError, match="cannot be stored"):
            stored(value, dtype)

    def test_a_type_without_a_holder_is_refused(self) -> None:
        with pytest.raises(ValueError, match="int64 are not evaluated"):
            held(np.zeros(1, np.int64), "int64")

    def test_what_is_held_shares_no_memory(self) -> None:
        x = np.ones(2, FULL)
        held(x, "fp32")[0] = 5
        assert x.tolist() == [1, 1]
