"""Imports run downwards, nothing heavy is imported before it is used, and what is missing is named with its extra."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import samx
from samx.artifacts.commit import seal, staging
from samx.artifacts.manifest import CheckpointEntry, Manifest
from samx.errors import UnavailableError
from samx.models.spec import DecoderSpec
from samx.registry import BACKENDS

PACKAGE = Path(samx.__file__).parent

# Top to bottom. A module may import from the lines below its own, and from its own unit; never from a neighbour on its
# line. The longest matching name decides, so that a module can stand apart from its package.
LAYERS: tuple[tuple[str, ...], ...] = (
    # Programs with command lines of their own.
    ("samx.__main__", "samx.benchmarks.gpu"),
    ("samx.cli_plain",),
    ("samx.cli",),
    ("samx.cli_dataset",),
    ("samx.cli_export", "samx.cli_measure", "samx.cli_segment", "samx.cli_web"),
    ("samx.console",),
    ("samx.last_resort",),
    ("samx.pages",),
    ("samx.api",),
    ("samx.commands",),
    ("samx.datasets",),
    ("samx.evaluation",),
    ("samx.opening", "samx.segmenting"),
    ("samx.kits", "samx.benchmarks.report", "samx.quantization", "samx.predictor", "samx.web"),
    ("samx.everything",),
    ("samx.benchmarks", "samx.predictor_inputs"),
    ("samx.picture_encoder",),
    ("samx.exporters", "samx.runtimes", "samx.validators"),
    ("samx.clients", "samx.contracts"),
    ("samx.artifacts.draft",),
    ("samx.demo",),
    ("samx.processing.overlay", "samx.processing.automatic", "samx.registry"),
    ("samx.processing.settings", "samx.processing.object_groups"),
    ("samx.processing.regions", "samx.processing.results"),
    ("samx.processing.rle",),
    ("samx.processing.prompts", "samx.processing.postprocess", "samx.processing.images", "samx.processing.embeddings"),
    ("samx.formats",),
    ("samx.devices",),
    ("samx.processing.frames", "samx.processing.rasters", "samx.processing.boxes", "samx.artifacts", "samx.models"),
    ("samx.models.session",),
    (
        "samx.children",
        "samx.models.spec",
        "samx.extras",
        "samx.progress",
        "samx.models.shape_range",
        "samx.demo.__init__",
    ),
    ("samx.artifacts.strict_json", "samx.files"),
    ("samx.models.families",),
    ("samx.errors",),
    ("samx.processing",),
    ("samx",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

HEAVY = (
    "onnx", "onnxscript", "onnxsim", "safetensors", "transformers", "cuda", "pynvml", "matplotlib", "jinja2",
    *sorted({entry.library for entry in BACKENDS}),
)  # fmt: skip
# What torch code may import at the top of the file; everything else must do without.
HEAVY_MODULES = (
    "samx.benchmarks.contenders.encoders",
    "samx.benchmarks.contenders.huggingface",
    "samx.benchmarks.contenders.meta",
    "samx.benchmarks.contenders.onnx_bound",
    "samx.benchmarks.contenders.optimum",
    "samx.benchmarks.contenders.pytorch",
    "samx.benchmarks.contenders.samexporter",
    "samx.runtimes.mil.evaluate",
    "samx.runtimes.mil.operations",
    "samx.exporters.encoder",
    "samx.models.checkpoint",
    "samx.models.efficientsam",
    "samx.models.encoders",
    "samx.models.fast",
    "samx.models.fixed",
    "samx.models.lora",
    "samx.models.memory_encoder",
    "samx.models.object_pointer",
    "samx.models.high_quality",
    "samx.models.keras_files",
    "samx.models.reference",
    "samx.models.selection",
    "samx.models.stated",
    "samx.models.torch_files",
    "samx.models.torch_tensors",
    "samx.models.weight_files",
    "samx.models.weights",
    "samx.demo.model",
    "samx.demo.model",
    "samx.demo.sampling",
    "samx.exporters.coreml.convert",
    "samx.exporters.coreml.encoder",
    "samx.models.graph",
    "samx.quantization.coreml_rewrite",
    "samx.quantization.coreml_rewrite",
    "samx.quantization.groups",
    "samx.quantization.onnx_qdq",
    "samx.quantization.encoder",
    "samx.quantization.encoder_graph",
    "samx.quantization.rollout",
    "samx.quantization.sources",
    "samx.quantization.user",
    "samx.runtimes.torch",
    *(entry.quantiser.partition(":")[0] for entry in BACKENDS if entry.quantiser),
)

# Runs before samx in a child process: these libraries look as if they had never been installed.
BLOCKER = """
import sys
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in BLOCKED else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


def modules() -> Iterator[tuple[str, Path]]:
    """Name every module of the package with its file."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


NAMES = frozenset(name for name, _ in modules())


def within(name: str, unit: str) -> bool:
    return name == unit or name.startswith(f"{unit}.")


def unit_of(name: str) -> str:
    """Find the entry of LAYERS that a module belongs to."""
    if name == "samx.demo":  # says where the weights lie, and imports none of its package
        return "samx.demo.__init__"
    return max((unit for unit in RANK if within(name, unit)), key=len)


def imported(source: str) -> set[str]:
    """List the samx modules that a source imports anywhere, in functions and for types too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {member if member in NAMES else node.module for member in members}
    return {name for name in found if within(name, "samx")}


def upward_imports(name: str, source: str) -> list[str]:
    """Say which imports of a module do not run downwards."""
    unit = unit_of(name)
    targets = {target: unit_of(target) for target in sorted(imported(source))}
    return [f"{name} imports {target}" for target, of in targets.items() if of != unit and RANK[of] <= RANK[unit]]


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=[name for name, _ in modules()])
def test_imports_run_downwards(name: str, path: Path) -> None:
    assert upward_imports(name, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("samx.exporters.planted", "from samx.runtimes import base"),
        ("samx.exporters.planted", "def late():\n    import samx.runtimes.base"),
        ("samx.exporters.tensorrt.planted", "from samx.runtimes.tensorrt.runtime import open_artifact"),
        ("samx.runtimes.tensorrt.planted", "from samx.exporters.tensorrt.build import build_engine"),
        ("samx.runtimes.coreml.planted", "if TYPE_CHECKING:\n    from samx.exporters.coreml.convert import convert"),
        ("samx.validators.planted", "from samx.runtimes.onnxruntime import open_artifact"),
        ("samx.models.planted", "from samx.processing.prompts import Prompt"),
        ("samx.models.spec", "from samx.models.checkpoint import load_checkpoint"),
        ("samx.artifacts.planted", "from samx import cli"),
        ("samx.errors", "from samx.extras import require"),
        ("samx.planted", "from samx import errors"),  # a module that LAYERS does not place
    ],
)
def test_a_planted_upward_import_is_found(name: str, source: str) -> None:
    assert len(upward_imports(name, source)) == 1


def beyond_data(source: str) -> set[str]:
    """List what a family's file imports anywhere, but for the standard library and what families are made of."""
    roots: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            roots |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add(node.module or "")
    own = ("samx.models.families", "samx.errors")
    return {name for name in roots if name.split(".")[0] not in sys.stdlib_module_names and not name.startswith(own)}


@pytest.mark.parametrize("path", sorted((PACKAGE / "models" / "families").glob("*.py")), ids=lambda path: path.stem)
def test_a_family_is_data_without_torch(path: Path) -> None:
    assert beyond_data(path.read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize(
    "source",
    ["import torch", "def late():\n    from torch import nn", "from samx.models.reference import ReferenceDecoder"],
)
def test_a_planted_import_in_a_family_is_found(source: str) -> None:
    assert len(beyond_data(source)) == 1


def test_every_module_has_a_layer() -> None:
    assert [name for name in NAMES if unit_of(name) == "samx" and name != "samx"] == []


# A target's name stands in its own files and in the registry. Who else names one, and why; the list is to get shorter.
FOLDERS_OF_TARGETS = ("exporters", "formats", "quantization", "runtimes")
OWN_NAMES = {"trt": "tensorrt", "trt-rtx": "tensorrt"}  # where files are not named after the target itself
EXCEPTIONS: Mapping[tuple[str, str], str] = {
    ("samx/extras.py", "onnx"): "a library that every export needs",
    ("samx/commands/bench.py", "onnx"): "a library whose version is told",
    ("samx/quantization/encoder.py", "onnx"): "a library whose version a search depends on",
}


def is_own_file(path: str, target: str) -> bool:
    """Return whether a file belongs to a target: by a folder of its name, or by its own name."""
    _, room, *parts = Path(path).with_suffix("").parts
    words = {*parts, *parts[-1].split("_")} if parts else set()
    return room in FOLDERS_OF_TARGETS and OWN_NAMES.get(target, target) in words


def named_targets(path: str, source: str) -> set[tuple[str, str]]:
    """List the targets that a file names though it is none of theirs. A library that is required is no target."""
    nodes = list(ast.walk(ast.parse(source)))
    calls = [node for node in nodes if isinstance(node, ast.Call) and node.args]
    libraries = {id(call.args[0]) for call in calls if ast.unparse(call.func) == "require"}
    texts = {str(node.value) for node in nodes if isinstance(node, ast.Constant) and id(node) not in libraries}
    return {(path, entry.target) for entry in BACKENDS if entry.target in texts and not is_own_file(path, entry.target)}


def test_no_target_is_named_outside_its_own_files_and_the_registry() -> None:
    sources = {path.relative_to(PACKAGE.parent).as_posix(): path for _, path in modules() if path.name != "registry.py"}
    found = [named_targets(name, path.read_text(encoding="utf-8")) for name, path in sources.items()]
    assert set().union(*found) == set(EXCEPTIONS), "a new one, or an exception that is not needed any more"


@pytest.mark.parametrize(
    ("path", "source", "found"),
    [
        ("samx/commands/planted.py", "if manifest.target == 'trt-rtx': ...", {"trt-rtx"}),
        ("samx/runtimes/base.py", "KINDS = {'coreml': 1, 'aoti': 2}", {"coreml", "aoti"}),
        ("samx/exporters/tensorrt/planted.py", "FALLBACK = 'onnx', 'trt'", {"onnx"}),
        ("samx/quantization/coreml_planted.py", "TARGET = 'coreml'", set()),
        ("samx/commands/coreml.py", "TARGET = 'coreml'", {"coreml"}),  # no folder of targets
        ("samx/commands/planted.py", "onnx = require('onnx', 'export', 'reading')", set()),
        ("samx/commands/planted.py", "words = 'an onnx file'", set()),
    ],
)
def test_a_planted_target_is_found(path: str, source: str, found: set[str]) -> None:
    assert named_targets(path, source) == {(path, target) for target in found}


def light_modules() -> list[str]:
    return sorted(name for name in NAMES if not any(within(name, heavy) for heavy in HEAVY_MODULES))


def child(code: str, *arguments: str, blocked: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, some libraries hidden from it."""
    program = f"BLOCKED = {blocked!r}\n{BLOCKER}\n{code}"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False, timeout=120,
        cwd=PACKAGE.parent, stdin=subprocess.DEVNULL,
    )  # fmt: skip


IMPORT_ALL = """
import importlib
for name in sys.argv[1:]:
    importlib.import_module(name)
"""
CLI = "from samx.cli import main\nmain()"
TELL_HEAVY = f"\nprint('heavy:', *sorted(set({HEAVY!r}) & set(sys.modules)))"


def test_the_light_modules_are_those_that_a_device_needs() -> None:
    needed = {
        "samx.cli", "samx.console", "samx.api", "samx.predictor", "samx.commands.doctor", "samx.commands.inspect",
        "samx.commands.segment", "samx.commands.validate", "samx.registry", "samx.errors", "samx.processing.prompts",
        "samx.processing.frames", "samx.processing.postprocess", "samx.processing.images", "samx.processing.overlay",
        "samx.artifacts.store", "samx.artifacts.commit", "samx.validators.gate", "samx.validators.child",
        "samx.validators.suite", "samx.models.spec", "samx.models.session", "samx.runtimes.onnxruntime",
        "samx.demo.scenes", "samx.demo.picture",
    }  # fmt: skip
    assert needed <= set(light_modules())


def test_light_modules_import_nothing_heavy() -> None:
    done = child(IMPORT_ALL + TELL_HEAVY, *light_modules())
    assert (done.returncode, done.stdout.strip()) == (0, "heavy:"), done.stderr


def test_light_modules_import_with_the_base_dependencies_alone() -> None:
    done = child(IMPORT_ALL, *light_modules(), blocked=HEAVY)
    assert done.returncode == 0, done.stderr


def test_a_hidden_library_is_really_hidden() -> None:
    done = child(IMPORT_ALL, "samx.models.reference", blocked=HEAVY)
    assert "ModuleNotFoundError: No module named 'torch'" in done.stderr


def test_help_imports_nothing_heavy() -> None:
    done = child(f"import atexit\natexit.register(lambda: exec({TELL_HEAVY.strip()!r}))\n{CLI}", "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    assert done.stdout.strip().endswith("heavy:")


def test_doctor_works_without_extras_and_names_them() -> None:
    done = child(CLI, "doctor", "--json", blocked=HEAVY)
    assert done.returncode == 0, done.stderr
    assert "samx[export]" in done.stdout
    assert "samx[onnxruntime]" in done.stdout


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact that is whole, of a model that is none."""
    target = tmp_path_factory.mktemp("layers") / "toy"
    with staging(target, overwrite=False) as directory:
        (directory / "decoder.onnx").write_bytes(b"no model")
        manifest = Manifest("onnx", "fp32", DecoderSpec(), CheckpointEntry("toy", "toy", "0" * 64, 1))
        seal(directory, manifest, {"decoder.onnx": "decoder"})
    return target


@pytest.mark.parametrize(
    ("command", "blocked", "extra"),
    [
        (("export", "-o", "{tmp}/out"), HEAVY, "export"),
        (("validate", "{artifact}"), HEAVY, "onnxruntime"),
        (("inspect", "{artifact}/decoder.onnx"), HEAVY, "export"),
        (("export", "--target", "coreml", "-o", "{tmp}/out"), ("coremltools",), "coreml"),
    ],
    ids=["export", "validate", "inspect", "coreml"],
)
def test_a_missing_extra_is_named(
    command: tuple[str, ...], blocked: tuple[str, ...], extra: str, artifact: Path, tmp_path: Path
) -> None:
    arguments = [part.format(artifact=artifact, tmp=tmp_path) for part in command]
    done = child(CLI, *arguments, blocked=blocked)
    assert done.returncode == UnavailableError.exit_code, done.stderr
    assert f"pip install 'samx[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
