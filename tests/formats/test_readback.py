"""What a network or an engine says about itself is compared with the plan, axis by axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from engine_toys import toy_plan

from samx.errors import ArtifactError
from samx.formats.tensorrt.engine import Understood, check_engine, mismatches
from samx.formats.tensorrt.library import Opened, library_of
from samx.formats.tensorrt.plan import BuildPlan, Limits, Port
from samx.models.shape_range import ShapeRange

PLAN = toy_plan()
FIXED = toy_plan(prompts=ShapeRange(8, 8, 8), points=ShapeRange(3, 3, 3))
IN, OUT = "in", "out"


class FakeEngine:
    """An engine that was built from a plan, as its library describes it."""

    num_optimization_profiles = 1

    def __init__(self, plan: BuildPlan, fixed: bool = False) -> None:
        sizes = plan.fixed if fixed else {}

        def shape(port: Port) -> tuple[int, ...]:
            return tuple(sizes.get(d, -1) if isinstance(d, str) else d for d in port.shape)

        self.tensors: list[tuple[str, str, tuple[int, ...], str]] = [
            *((port.name, OUT, shape(port), "FLOAT") for port in plan.outputs),
            *((port.name, IN, shape(port), "FLOAT") for port in plan.inputs),
        ]
        self.limits: dict[str, Limits] = dict(plan.profile)

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def _of(self, name: str) -> tuple[str, str, tuple[int, ...], str]:
        return next(tensor for tensor in self.tensors if tensor[0] == name)

    def get_tensor_name(self, i: int) -> str:
        return self.tensors[i][0]

    def get_tensor_mode(self, name: str) -> str:
        return self._of(name)[1]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._of(name)[2]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self._of(name)[3])

    def get_tensor_profile_shape(self, name: str, profile: int) -> Sequence[tuple[int, ...]]:
        return self.limits.get(name, ())

    def edit(self, tensor_name: str, **changes: Any) -> None:
        """Change one tensor: its name, its way, its shape or its type."""
        i = next(i for i, tensor in enumerate(self.tensors) if tensor[0] == tensor_name)
        facts = dict(zip(("name", "mode", "shape", "dtype"), self.tensors[i], strict=True)) | changes
        self.tensors[i] = (facts["name"], facts["mode"], facts["shape"], facts["dtype"])


def opened() -> Opened:
    module = ModuleType("tensorrt_rtx")
    module.__dict__["TensorIOMode"] = SimpleNamespace(INPUT=IN, OUTPUT=OUT)
    return Opened(library_of("trt-rtx"), module, None, [])


@pytest.mark.parametrize(("plan", "fixed"), [(PLAN, False), (FIXED, False), (FIXED, True)])
def test_an_engine_of_the_plan_is_accepted(plan: BuildPlan, fixed: bool) -> None:
    found = check_engine(FakeEngine(plan, fixed), opened(), plan, "toy")
    assert [port.name for port in found.outputs] == ["low_res_masks", "iou_predictions"]


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("low_res_masks", {"name": "masks"}, r"outputs: found \['iou_predictions', 'masks'\]"),
        ("low_res_masks", {"mode": IN}, "inputs: found"),
        ("point_labels", {"dtype": "INT32"}, "input point_labels: found int32, expected float32"),
        ("iou_predictions", {"dtype": "HALF"}, "output iou_predictions: found float16, expected float32"),
        ("iou_predictions", {"dtype": "FP4"}, "output iou_predictions: found FP4"),
        ("image_embeddings", {"shape": (1, 256, 2, 2)}, "input image_embeddings"),
        ("point_coords", {"shape": (4, -1, 2)}, "input point_coords"),  # one size, and the plan has a range
        ("point_coords", {"shape": (-1, -1)}, "input point_coords"),
        ("point_coords", {"shape": (-1, -1, 2, 1)}, "input point_coords"),
    ],
)
def test_another_tensor_is_refused(name: str, change: dict[str, Any], words: str) -> None:
    engine = FakeEngine(PLAN)
    engine.edit(name, **change)
    with pytest.raises(ArtifactError, match=rf"is not what its plan says: .*{words}.*samx build toy"):
        check_engine(engine, opened(), PLAN, "toy")


def test_another_size_than_the_fixed_one_is_refused() -> None:
    engine = FakeEngine(FIXED, fixed=True)
    engine.edit("iou_predictions", shape=(4, 3))
    with pytest.raises(ArtifactError, match="output iou_predictions"):
        check_engine(engine, opened(), FIXED, "toy")


@pytest.mark.parametrize("count", [0, 2])
def test_another_number_of_profiles_is_refused(count: int) -> None:
    engine = FakeEngine(PLAN)
    engine.num_optimization_profiles = count
    with pytest.raises(ArtifactError, match="profiles: found"):
        check_engine(engine, opened(), PLAN, "toy")


def test_other_limits_are_refused() -> None:
    engine = FakeEngine(PLAN)
    engine.limits["point_labels"] = ((1, 1), (2, 2), (4, 4))
    with pytest.raises(ArtifactError, match="profiles: found"):
        check_engine(engine, opened(), PLAN, "toy")
    engine.limits.clear()
    with pytest.raises(ArtifactError, match="profiles: found"):
        check_engine(engine, opened(), PLAN, "toy")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"strongly_typed": False}, "strongly typed: found False, expected True"),
        ({"tf32": True}, "TF32: found True, expected False"),
        ({"shape_tensors": ("x",)}, "shape tensors: found ('x',), expected ()"),
        ({"compute_capabilities": ("SM89",)}, "compute capabilities: found ('SM89',), expected ()"),
    ],
)
def test_every_setting_is_compared(change: dict[str, Any], words: str) -> None:
    found = Understood(PLAN.inputs, PLAN.outputs, (dict(PLAN.profile),))
    assert mismatches(found, PLAN) == []
    assert mismatches(replace(found, **change), PLAN) == [words]
