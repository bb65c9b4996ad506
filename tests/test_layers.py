"""Imports run downwards, nothing heavy is imported before it is used, and what is missing is named with its extra."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import samx
from samx.artifacts.commit import seal, staging
from samx.artifacts.manifest import CheckpointEntry, Manifest
from samx.decoders.spec import DecoderSpec
from samx.errors import UnavailableError

PACKAGE = Path(samx.__file__).parent

# Top to bottom. A module may import from the lines below its own, and from its own unit; never from a neighbour on its
# line. The longest matching name decides, so that a module can stand apart from its package.
LAYERS: tuple[tuple[str, ...], ...] = (
    # Programs with command lines of their own.
    ("samx.benchmarks.meta_onnx", "samx.benchmarks.compare", "samx.benchmarks.gpu"),
    ("samx.benchmarks.compare_decoders",),
    ("samx.cli",),
    ("samx.cli_measure",),
    ("samx.console",),
    (
        "samx.export",
        "samx.bisect",
        "samx.build",
        "samx.validate",
        "samx.segment",
        "samx.inspect",
        "samx.doctor",
        "samx.bench",
        "samx.report",
        "samx.bundle",
    ),
    ("samx.calibrate", "samx.int8"),
    ("samx.reports", "samx.bundles"),
    ("samx.benchmarks",),
    ("samx.quantization", "samx.pytorch"),
    ("samx.exporters", "samx.runtimes", "samx.validators"),
    ("samx.demo",),
    ("samx.overlay", "samx.registry"),
    ("samx.prompts", "samx.postprocess", "samx.images"),
    ("samx.coreml", "samx.engines", "samx.openvino"),
    ("samx.devices",),
    ("samx.frames", "samx.artifacts", "samx.decoders"),
    ("samx.decoders.session",),
    ("samx.decoders.spec", "samx.extras", "samx.progress", "samx.spans", "samx.demo.__init__"),
    ("samx.errors",),
    ("samx",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

HEAVY = (
    "torch", "onnx", "onnxruntime", "onnxscript", "onnxsim", "safetensors", "transformers", "tensorrt", "tensorrt_rtx",
    "cuda", "coremltools", "openvino", "pynvml", "matplotlib", "jinja2",
)  # fmt: skip
# What torch code may import at the top of the file; everything else must do without.
HEAVY_MODULES = (
    "samx.benchmarks.compare",
    "samx.benchmarks.compare_decoders",
    "samx.benchmarks.meta_candidates",
    "samx.benchmarks.meta_onnx",
    "samx.benchmarks.peers",
    "samx.benchmarks.torch_agreement",
    "samx.benchmarks.torch_measure",
    "samx.benchmarks.torch_onnx",
    "samx.benchmarks.torch_peaks",
    "samx.benchmarks.torch_ways",
    "samx.coreml.checks",
    "samx.coreml.compiled",
    "samx.coreml.evaluate",
    "samx.coreml.operations",
    "samx.coreml.storage",
    "samx.decoders.checkpoint",
    "samx.decoders.deploy",
    "samx.decoders.neural_engine",
    "samx.decoders.reference",
    "samx.decoders.weight_files",
    "samx.demo.batches",
    "samx.demo.encoder",
    "samx.demo.evaluate",
    "samx.demo.fast_decode",
    "samx.demo.losses",
    "samx.demo.model",
    "samx.demo.sampling",
    "samx.demo.train",
    "samx.exporters",
    "samx.quantization.coreml",
    "samx.quantization.coreml_groups",
    "samx.quantization.coreml_packages",
    "samx.quantization.coreml_rewrite",
    "samx.quantization.groups",
    "samx.quantization.held_out",
    "samx.quantization.onnx",
    "samx.quantization.onnx_qdq",
    "samx.quantization.openvino",
    "samx.quantization.ranges",
    "samx.quantization.rollout",
    "samx.quantization.sources",
    "samx.quantization.speed",
    "samx.quantization.user",
    "samx.runtimes.torch",
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
        ("samx.validators.planted", "from samx.runtimes.onnxruntime import open_artifact"),
        ("samx.decoders.planted", "from samx.prompts import Prompt"),
        ("samx.decoders.spec", "from samx.decoders.checkpoint import load_checkpoint"),
        ("samx.artifacts.planted", "from samx import cli"),
        ("samx.errors", "from samx.extras import require"),
        ("samx.planted", "from samx import errors"),  # a module that LAYERS does not place
    ],
)
def test_a_planted_upward_import_is_found(name: str, source: str) -> None:
    assert len(upward_imports(name, source)) == 1


def test_every_module_has_a_layer() -> None:
    assert [name for name in NAMES if unit_of(name) == "samx" and name != "samx"] == []


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
        "samx.cli", "samx.console", "samx.doctor", "samx.inspect", "samx.segment", "samx.validate", "samx.registry",
        "samx.errors", "samx.prompts", "samx.frames", "samx.postprocess", "samx.images", "samx.overlay",
        "samx.artifacts.store", "samx.artifacts.commit", "samx.validators.gate", "samx.validators.child",
        "samx.validators.suite", "samx.decoders.spec", "samx.decoders.session", "samx.runtimes.onnxruntime",
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
    done = child(IMPORT_ALL, "samx.decoders.reference", blocked=HEAVY)
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
