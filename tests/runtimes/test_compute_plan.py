"""Compute plans, on coremltools' own classes over a stand-in for its native part."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
from pathlib import Path

import coremltools as ct
import pytest
from coremltools.models import compute_plan as ct_plan
from fake_mac import FakeMac, Line, block, doubling, operation, package, pretend
from fake_mac import fake_mac as fake_mac

from samx.errors import ArtifactError, SamxError, UnavailableError
from samx.runtimes.coreml import compute_plan as mac
from samx.runtimes.coreml import compute_plan as source
from samx.runtimes.coreml.compute_plan import ComputePlan, compute_plan

LINES: list[Line] = [
    ("const", None, None),
    ("ios18.constexpr_blockwise_shift_scale", None, None),
    ("ios18.conv", "ANE", 0.4),
    ("ios18.cast", "CPU", 0.1),
    ("ios18.matmul", "ANE", 0.3),
    ("ios18.gather", "GPU", None),
]
UNITS = "CPU_AND_NE"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of two functions, the first of which is the default."""
    path = tmp_path_factory.mktemp("two") / "two.mlpackage"
    return package(path, {"points_1": doubling(1, 2), "points_2": doubling(2, 2)})


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of one function."""
    return package(tmp_path_factory.mktemp("one") / "one.mlpackage", {"main": doubling(1, 2)})


@pytest.fixture
def plan(fake_mac: FakeMac, one: Path) -> ComputePlan:
    fake_mac.plans = {"main": LINES}
    return compute_plan(one, "main", UNITS)


def test_every_operation_has_its_device_and_its_share_of_the_cost(plan: ComputePlan) -> None:
    assert {name: (entry.dispatch, entry.supported, entry.cost) for name, entry in plan.operations.items()} == {
        "2_ios18.conv_x_weight": ("ANE", ("ANE", "CPU"), 50.0),
        "3_ios18.cast_x_weight": ("CPU", ("CPU",), 12.5),
        "4_ios18.matmul_x_weight": ("ANE", ("ANE", "CPU"), 37.5),
        "5_ios18.gather_x_weight": ("GPU", ("GPU", "CPU"), None),
    }
    assert plan.dispatch == {"ANE": 2, "GPU": 1, "CPU": 1}
    assert (plan.constants, plan.unplanned, plan.total) == (2, (), 4)


def test_residency_is_of_operations_and_of_cost(plan: ComputePlan) -> None:
    assert plan.residency == {"operations": 0.5, "cost": 0.875}
    assert plan.lines() == [
        "main: 50.0% of 4 operations and 87.5% of the estimated cost on the Neural Engine (ANE 2, GPU 1, CPU 1)"
    ]


def test_without_costs_there_is_no_share_of_cost(fake_mac: FakeMac, one: Path) -> None:
    fake_mac.plans = {"main": [("ios18.conv", "ANE", None), ("ios18.add", "CPU", None)]}
    plan = compute_plan(one, "main", UNITS)
    assert plan.residency == {"operations": 0.5, "cost": None}
    assert "no estimated cost" in plan.lines()[0]


def test_what_core_ml_says_nothing_of_counts_against_the_engine(fake_mac: FakeMac, one: Path) -> None:
    fake_mac.plans = {"main": [("ios18.conv", "ANE", 1.0), ("ios18.add", None, None)]}
    plan = compute_plan(one, "main", UNITS)
    assert (plan.unplanned, plan.total) == (("1_ios18.add_x_weight",), 2)
    assert plan.residency["operations"] == 0.5


def test_a_plan_is_of_the_function_that_was_asked_for(fake_mac: FakeMac, two: Path) -> None:
    fake_mac.plans = {"points_1": [("ios18.conv", "ANE", 1.0)], "points_2": [("ios18.conv", "CPU", 1.0)]}
    before = (two / "Data/com.apple.CoreML/model.mlmodel").read_bytes()
    plans = {name: compute_plan(two, name, UNITS) for name in ("points_1", "points_2")}
    assert {name: plan.dispatch["ANE"] for name, plan in plans.items()} == {"points_1": 1, "points_2": 0}
    assert [entry[-1] for entry in fake_mac.log if entry[0] == "plan"] == ["points_1", "points_2"]
    assert (two / "Data/com.apple.CoreML/model.mlmodel").read_bytes() == before


def test_a_compiled_model_is_asked_as_it_is(fake_mac: FakeMac, two: Path, tmp_path: Path) -> None:
    fake_mac.plans = {"points_1": [("ios18.conv", "ANE", 1.0)], "points_2": [("ios18.conv", "ANE", 1.0)]}
    compiled = Path(fake_mac.compile_model(str(two), str(tmp_path / "two.mlmodelc")))
    assert compute_plan(compiled, "points_1", UNITS).dispatch["ANE"] == 1
    with pytest.raises(UnavailableError, match=r"no plan for function points_2.*found 1 operations, none planned"):
        compute_plan(compiled, "points_2", UNITS)


def test_operations_in_nested_blocks_are_counted() -> None:
    inner = operation("ios18.add")
    names = list(source._named(block([operation("ios18.cond", blocks=[block([inner])])])))
    assert names == ["0_ios18.cond", "1_ios18.add"]


def test_the_machine_is_named(plan: ComputePlan) -> None:
    assert plan.machine == {"chip": "Apple M4", "macos": "15.1", "coremltools": ct.__version__}


def test_a_plan_is_plain_data_and_says_what_it_is(plan: ComputePlan) -> None:
    data = json.loads(json.dumps(plan.to_json()))
    assert (data["kind"], data["shows"], data["residency"]) == (
        "compute plan",
        ComputePlan.HEADER["shows"],
        {"operations": 0.5, "cost": 0.875},
    )
    record = data["operations"]["2_ios18.conv_x_weight"]  # the shape of WhisperKit's files
    assert record == {"dispatch": "ANE", "supported": ["ANE", "CPU"], "cost": 50.0}


def test_elsewhere_the_lint_is_named(one: Path) -> None:
    with pytest.raises(UnavailableError, match=r"needs a Mac: found Linux.*neural_engine_lint.json") as caught:
        compute_plan(one, "main", UNITS)
    assert caught.value.exit_code == 5


def test_an_older_macos_makes_no_plans(monkeypatch: pytest.MonkeyPatch, one: Path) -> None:
    pretend(monkeypatch, "14.3.1")
    with pytest.raises(UnavailableError, match=r"newer macOS: found macOS 14.3.1, expected 14.4 or newer"):
        compute_plan(one, "main", UNITS)


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (RuntimeError("planted"), ArtifactError, "does not compile the package: found planted"),
        (None, UnavailableError, "makes no compute plan here"),
    ],
)
def test_what_core_ml_refuses_is_said(
    fault: Exception | None, error: type[SamxError], words: str, fake_mac: FakeMac, one: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    fake_mac.fault = fault
    if fault is None:  # an installation without its native part
        monkeypatch.setattr(ct_plan, "_MLModelProxy", None)
    with pytest.raises(error, match=words):
        compute_plan(one, "main", UNITS)


@pytest.mark.parametrize(("name", "expected"), [("points_3", "points_1, points_2"), ("main", "points_1, points_2")])
def test_a_function_that_is_not_there_is_named(name: str, expected: str, fake_mac: FakeMac, two: Path) -> None:
    with pytest.raises(ArtifactError, match=f"no such function: found {name}, expected {expected}"):
        compute_plan(two, name, UNITS)


def test_a_compiled_model_of_another_kind_is_refused(fake_mac: FakeMac, one: Path) -> None:
    fake_mac.plans = {"other": LINES}
    with pytest.raises(ArtifactError, match="compiled model has no such function: found other, expected main"):
        compute_plan(one, "main", UNITS)


def asked_of_the_library() -> set[tuple[str, str]]:
    """List what the source asks of values that it annotates with coremltools' classes."""
    tree, found = ast.parse(inspect.getsource(source)), set()
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        nodes = list(ast.walk(function))
        annotated = [(node.arg, node.annotation) for node in nodes if isinstance(node, ast.arg) and node.annotation]
        annotated += [(ast.unparse(node.target), node.annotation) for node in nodes if isinstance(node, ast.AnnAssign)]
        known = {name: ast.unparse(kind).removesuffix(" | None") for name, kind in annotated}
        for node in (node for node in nodes if isinstance(node, ast.Attribute)):
            owner = known.get(ast.unparse(node.value), "")
            if owner.startswith("ct_plan."):
                found.add((owner.removeprefix("ct_plan."), node.attr))
    return found


def test_what_is_asked_of_the_library_is_there() -> None:
    nested = {("MLModelStructureProgramBlock", "operations"), ("MLModelStructureProgramOperation", "blocks")}
    asked = asked_of_the_library() | nested  # which samx.formats.coreml.program.operations() walks through
    assert {
        ("MLModelStructureProgram", "functions"),
        ("MLModelStructureProgramOperation", "operator_name"), ("MLModelStructureProgramOperation", "inputs"),
        ("MLComputePlanDeviceUsage", "preferred_compute_device"),
        ("MLComputePlanDeviceUsage", "supported_compute_devices"), ("MLComputePlanCost", "weight"),
        ("MLComputePlan", "get_compute_device_usage_for_mlprogram_operation"),
        ("MLComputePlan", "get_estimated_cost_for_mlprogram_operation"),
    } <= asked  # fmt: skip
    for owner, attribute in asked:
        kind = getattr(ct_plan, owner)
        assert attribute in {*vars(kind), *getattr(kind, "__dataclass_fields__", ())}, f"{owner}.{attribute}"


def test_the_device_classes_are_coremltools_own() -> None:
    classes = {name for name, kind in vars(ct.models.compute_device).items() if isinstance(kind, type)}
    assert set(mac.CLASSES) <= classes
    assert mac.device_word(object()) == "unknown"


def test_the_calls_have_the_parameters_that_are_given() -> None:
    assert list(inspect.signature(ct_plan.MLComputePlan.load_from_path).parameters) == ["path", "compute_units"]
    assert list(inspect.signature(ct.models.utils.compile_model).parameters) == ["model", "destination_path"]
    assert UNITS in ct.ComputeUnit.__members__


def test_the_chip_is_what_the_system_says(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], 0, stdout="Apple M4\n")
    monkeypatch.setattr(subprocess, "run", lambda *words, **options: done)
    assert mac.chip() == "Apple M4"


def test_a_system_that_does_not_say_leaves_the_chip_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mac, "SYSCTL", "/nowhere/sysctl")
    assert mac.chip() == "unknown"
