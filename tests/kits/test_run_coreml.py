"""run.py of a Core ML kit, on a Mac that is none: coremltools' own classes over a stand-in for Core ML."""

from __future__ import annotations

import ast
import importlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import coremltools as ct
import numpy as np
import pytest
from coreml_toys import MANY, ON_CPU, run_on, toy_program
from fake_mac import FakeMac, package, pretend
from fake_mac import fake_mac as fake_mac
from kits import artifact, call, copied, kit_of, runner, suite
from numpy.typing import NDArray
from samx.kits.readme import PHONE
from samx.kits.runner.coreml import CoreML

from samx.artifacts.store import Artifact
from samx.benchmarks.results import BenchReport
from samx.formats.coreml.contract import CONTRACTS, Signature
from samx.formats.coreml.package import DECODER
from samx.kits import places
from samx.models.spec import TensorSpec, sam2_spec
from samx.validators.report import ParityReport

Arrays = Mapping[str, NDArray[Any]]


def coreml_artifact(folder: Path, functions: Mapping[str, int]) -> Path:
    """Write an artifact of toy programs, with parity evidence."""
    made = package(folder / "made.mlpackage", {name: toy_program(rows) for name, rows in functions.items()})
    names = [path for path in made.rglob("*") if path.is_file()]
    files = {f"{DECODER}/{path.relative_to(made).as_posix()}": ("package", path.read_bytes()) for path in names}
    rows = sorted(functions.values())
    options = {
        "slots": True, "points": [rows[0], rows[0], rows[-1]], "prompts": [1, 1, 1], "ios": 18,
        "functions": dict(functions), "contract": "samx",
    }  # fmt: skip
    small = suite(extent=0.4)  # float16 has room for it
    return artifact(folder / "toy", files, "coreml", options, small, precision="fp16")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coreml_artifact(tmp_path_factory.mktemp("coreml"), MANY)


@pytest.fixture(scope="module")
def kit(made: Path) -> Path:
    return kit_of(made)


@pytest.fixture
def mac(fake_mac: FakeMac, made: Path) -> FakeMac:
    run_on(fake_mac, Artifact.open(made))
    return fake_mac


def test_packages_are_compared_and_timed(kit: Path, mac: FakeMac, tmp_path: Path, capsys: Any) -> None:
    assert call(runner(kit), kit, tmp_path / "report.json") == 0, capsys.readouterr()
    subject = BenchReport.load(tmp_path / "report.json").subjects[0]
    assert (subject.parity.level, subject.parity.device, subject.parity.runtime) == ("device", "cpu+ane", "coremltools")
    assert subject.placement is not None
    assert set(subject.placement["operations"]) == {"cpu+ane"}
    planned = subject.placement["details"]["planned"]
    assert planned["artifact/decoder.mlpackage:points_2"] == {"ANE": 1, "CPU": 1}
    assert {entry[1] for entry in mac.log if entry[0] == "load"} == {"CPU_AND_NE"}


def test_each_prompt_uses_the_smallest_function(kit: Path, mac: FakeMac, tmp_path: Path) -> None:
    call(runner(kit), kit, tmp_path / "report.json")
    asked = [entry[1] for entry in mac.log if entry[0] == "predict"]
    assert asked[:7] == ["points_1", "points_2", *["points_4"] * 5]


def test_other_units_are_a_device(kit: Path, mac: FakeMac, tmp_path: Path) -> None:
    mac.plans = {name: [("ios18.conv", "GPU", 1.0)] for name in MANY}
    assert call(runner(kit), kit, tmp_path / "report.json", "--device", "cpu+gpu") == 0
    placement = BenchReport.load(tmp_path / "report.json").subjects[0].placement
    assert placement is not None
    assert set(placement["operations"]) == {"cpu+gpu"}


def test_a_fall_back_to_the_cpu_fails(kit: Path, mac: FakeMac, tmp_path: Path, capsys: Any) -> None:
    mac.plans = dict.fromkeys(MANY, ON_CPU)
    assert call(runner(kit), kit, tmp_path / "report.json") == 3
    judged = ParityReport.from_bytes((tmp_path / "report.json").read_bytes(), "report")
    assert "asked for cpu+ane, ran 9 operations on cpu" in judged.failures
    assert "asked for cpu+ane" in capsys.readouterr().err


def test_a_wrong_prediction_is_not_timed(kit: Path, mac: FakeMac, tmp_path: Path, capsys: Any) -> None:
    right = mac.predict
    mac.predict = lambda function, feed: {name: value + 1 for name, value in right(function, feed).items()}
    assert call(runner(kit), kit, tmp_path / "report.json") == 3
    assert "mask_iou_mean is 0.8" in capsys.readouterr().err


def test_a_package_of_one_function_needs_no_name(fake_mac: FakeMac, tmp_path: Path) -> None:
    path = coreml_artifact(tmp_path, {"main": 4})
    run_on(fake_mac, Artifact.open(path))
    kit = kit_of(path)
    assert call(runner(kit), kit, tmp_path / "report.json") == 0
    assert {entry[2] for entry in fake_mac.log if entry[0] == "load"} == {""}


@pytest.mark.parametrize(("version", "system"), [("14.6", "Darwin"), ("", "Linux")])
def test_another_machine_is_refused(
    kit: Path, version: str, system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pretend(monkeypatch, version)
    monkeypatch.setattr("platform.system", lambda: system)
    assert call(runner(kit), kit, tmp_path / "report.json") == 5
    assert "this needs a Mac with macOS 15.0 or newer; for a phone, see README.txt" in capsys.readouterr().err


def test_a_damaged_package_is_refused(kit: Path, mac: FakeMac, tmp_path: Path, capsys: Any) -> None:
    damaged = copied(kit, tmp_path)
    file = next((damaged / "artifact").rglob("*.mlmodel"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert call(runner(kit), damaged, tmp_path / "report.json") == 6
    assert f"artifact/{DECODER}/Data" in capsys.readouterr().err
    assert mac.log == []


def test_inputs_for_a_phone_fit_the_package(kit: Path) -> None:
    with np.load(kit / "inputs" / "decoder.npz", allow_pickle=False) as stored:
        feed = {name: stored[name] for name in stored.files}
    assert {name: (value.shape, value.dtype.name) for name, value in feed.items()} == {
        "image_embeddings": ((1, 256, 1, 1), "float16"), "point_coords": ((1, 2, 2), "float32"),
        "point_labels": ((1, 2), "float32"),
    }  # fmt: skip
    assert feed["point_labels"].tolist() == [[1, -1]]


def test_the_readme_names_the_package_and_the_function_of_a_click(kit: Path) -> None:
    text = (kit / "README.txt").read_text()
    assert 'on_phone("artifact/decoder.mlpackage", "inputs/decoder.npz", "TEAM")' in text
    assert "function_name='points_2'" in text
    assert (kit / "artifact" / DECODER).is_dir()


def code_of(text: str) -> str:
    lines = [line.removeprefix("    ") for line in text.splitlines() if line.startswith("    ") or not line]
    return "\n".join(lines)


def test_what_the_readme_imports_of_coremltools_is_there(kit: Path) -> None:
    text = (kit / "README.txt").read_text()
    part = text[text.index("    import asyncio") : text.index("That measures and compares nothing")]
    tree = ast.parse(code_of(part))
    found = [(str(node.module), alias.name) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
             for alias in node.names]  # fmt: skip
    assert len(found) == 4
    assert [name for module, name in found if not hasattr(importlib.import_module(module), name)] == []
    assert "asyncio.run(on_phone(" in part
    assert "compares nothing" in PHONE


# ---- the packages of the public SAM 2.1 apps: two, the second fed by the first

SPEC = sam2_spec(image_size=64)
ROWS = 3


def declared(signature: Signature) -> Any:
    """Describe a package's tensors as its program would."""
    sizes = CONTRACTS["apple"].sizes(ROWS)

    def tensor(spec: TensorSpec) -> Any:
        kind = {"int32": np.int32, "float32": np.float16}[spec.dtype]
        shape = tuple(sizes[d] if isinstance(d, str) else d for d in spec.shape)
        return SimpleNamespace(name=spec.name, array_type=kind, shape=shape)

    inputs, outputs = list(map(tensor, signature.inputs)), list(map(tensor, signature.outputs))
    return SimpleNamespace(inputs=lambda function: inputs, outputs=lambda function: outputs)


class Recorder:
    """Compute something of every package's inputs, and note what it was given."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, NDArray[Any]]]] = []

    def __call__(self, folder: str, function: str, feed: Arrays) -> dict[str, NDArray[Any]]:
        signature = next(one for one in CONTRACTS["apple"].signatures(SPEC) if one.folder == folder)
        kinds = {tensor.name: np.int32 if tensor.dtype == "int32" else np.float16 for tensor in signature.inputs}
        typed = {name: np.asarray(value).astype(kinds[name]) for name, value in feed.items()}
        self.calls.append((folder, typed))
        total = float(sum(float(value.astype(np.float64).mean()) for value in typed.values()))
        sizes = CONTRACTS["apple"].sizes(ROWS)
        shapes = {t.name: [sizes[d] if isinstance(d, str) else d for d in t.shape] for t in signature.outputs}
        return {name: np.full(shape, total + i, np.float16) for i, (name, shape) in enumerate(shapes.items())}


def test_the_apps_packages_are_called_as_samx_calls_them(monkeypatch: pytest.MonkeyPatch) -> None:
    contract = CONTRACTS["apple"]
    programs = {one.folder: declared(one) for one in contract.signatures(SPEC)}
    opened: Any = SimpleNamespace(
        programs=programs, contract=contract, functions=SimpleNamespace(sizes=[ROWS], name=lambda rows: "points_2")
    )
    random = np.random.default_rng(0)
    image = {t.name: random.normal(0, 1, [int(d) for d in t.shape]).astype(np.float32) for t in SPEC.image_inputs}
    prompts = {
        "point_coords": random.uniform(0, 64, (1, ROWS, 2)).astype(np.float32),
        "point_labels": np.array([[1, -1, -2]], np.float32),
    }
    theirs, ours = Recorder(), Recorder()
    expected = contract.decode(theirs, "points_2", contract.image(image), prompts)
    mine = object.__new__(CoreML)
    mine.place = {"functions": {str(ROWS): "points_2"}, "steps": [places._step(opened, folder) for folder in programs]}
    mine.kit = SimpleNamespace(says={"tensors": {"outputs": {t.name: list(t.shape) for t in SPEC.outputs}}})  # type: ignore[assignment]  # what it reads
    mine.set_image(image)
    monkeypatch.setattr(CoreML, "_model", lambda self, folder, function: SimpleNamespace(
        predict=lambda feed: ours(folder.partition("/")[2], function, feed)
    ))  # fmt: skip
    found = mine.decode(prompts)
    assert [name for name, _ in ours.calls] == [name for name, _ in theirs.calls]
    for (_, given), (_, wanted) in zip(ours.calls, theirs.calls, strict=True):
        assert set(given) == set(wanted)
        assert all(np.array_equal(given[name], wanted[name]) for name in wanted)
    assert all(np.array_equal(found[t.name], expected[t.name].astype(np.float32)) for t in SPEC.outputs)


def test_everything_of_coremltools_that_is_used_is_there() -> None:
    source = (Path(places.__file__).parent / "runner" / "coreml.py").read_text()
    used = set(re.findall(r"self\.ct((?:\.\w+)+)", source)) - {".__version__"}
    assert {".models.MLModel", ".proto.Model_pb2.Model.FromString", ".models.compute_plan.MLComputePlan.load_from_path",
            ".models.utils.compile_model", ".ComputeUnit"} == used  # fmt: skip
    for name in used:
        found: Any = ct
        for part in name.strip(".").split("."):
            found = getattr(found, part)


def test_the_kit_knows_coremltools_words_for_processors(kit: Path) -> None:
    place = json.loads((kit / "kit.json").read_bytes())["devices"]["cpu+ane"]
    assert place["words"]["MLNeuralEngineComputeDevice"] == place["must"] == "ANE"
    assert place["macos"] == [15, 0]
