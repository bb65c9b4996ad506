"""Every attribute that samx uses of the library exists in the installed one; the list comes from the source."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

import pytest

import samx

PACKAGE = Path(samx.__file__).parent
SOURCES = [
    "exporters/tensorrt/build.py",
    *(f"formats/tensorrt/{name}.py" for name in ("engine", "library")),
    *(f"runtimes/tensorrt/{name}.py" for name in ("execution", "runtime")),
]
LIBRARY = importlib.import_module("tensorrt_rtx")
MODULE_NAMES = ("module", "opened.module")  # how the sources call the imported library


class Uses(ast.NodeVisitor):
    """Follow annotations `trt.X` through a source, and note what is asked of each library class and of the module."""

    def __init__(self, source: str) -> None:
        self.tree = ast.parse(source)
        self.fields: dict[str, str] = {}  # attribute or function name -> class
        self.found: set[tuple[str, str]] = set()
        self.untracked: list[str] = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ClassDef):
                self._note_fields(node)
            elif isinstance(node, ast.FunctionDef) and (name := library_class(node.returns)):
                self.fields[node.name] = name
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef):
                self._follow(node)

    def _note_fields(self, node: ast.ClassDef) -> None:
        for part in ast.walk(node):
            if isinstance(part, ast.AnnAssign) and (name := library_class(part.annotation)):
                target = part.target
                label = target.attr if isinstance(target, ast.Attribute) else ast.unparse(target)
                self.fields[label] = name

    def _follow(self, function: ast.FunctionDef) -> None:
        arguments = [*function.args.args, *function.args.kwonlyargs]
        annotated = [(argument.arg, library_class(argument.annotation)) for argument in arguments]
        nodes = list(ast.walk(function))
        annotated += [
            (ast.unparse(n.target), library_class(n.annotation)) for n in nodes if isinstance(n, ast.AnnAssign)
        ]
        known = {name: owner for name, owner in annotated if owner}
        for node in nodes:
            if isinstance(node, ast.Assign) and (owner := self._class_of(node.value, known)):
                known[ast.unparse(node.targets[0])] = owner
        for node in nodes:
            if isinstance(node, ast.Attribute):
                self._note(node, known)

    def _note(self, node: ast.Attribute, known: dict[str, str]) -> None:
        owner = self._class_of(node.value, known)
        if owner is not None:
            self.found.add((owner, node.attr))
            return
        call = node.value.func if isinstance(node.value, ast.Call) else None
        asked = self._class_of(call.value, known) if isinstance(call, ast.Attribute) else None
        if asked and node.attr != "name":  # only an enum's name is read without an annotation
            self.untracked.append(ast.unparse(node))

    def _class_of(self, node: ast.expr, known: dict[str, str]) -> str | None:
        """Name the library class that an expression is of; '' is the module itself."""
        text = ast.unparse(node)
        if text in MODULE_NAMES or text.endswith(".opened.module"):
            return ""
        if text in known:
            return known[text]
        if isinstance(node, ast.Attribute):
            owner = self._class_of(node.value, known)
            return node.attr if owner == "" else self.fields.get(node.attr)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return self.fields.get(node.func.id)
        return None


def library_class(annotation: ast.expr | None) -> str | None:
    """Read `trt.X`, `trt.X.Y` or `trt.X | None`; gives what follows the first dot."""
    text = ast.unparse(annotation).removesuffix(" | None") if annotation else ""
    return text.removeprefix("trt.") if re.fullmatch(r"trt(\.\w+)+", text) else None


def missing(found: set[tuple[str, str]]) -> Iterator[str]:
    """Name what the installed library does not have."""
    for owner, attribute in sorted(found):
        try:
            attrgetter(f"{owner}.{attribute}".strip("."))(LIBRARY)
        except AttributeError:
            yield f"{owner or 'module'}.{attribute}"


@pytest.mark.parametrize("source", SOURCES)
def test_everything_that_is_used_exists(source: str) -> None:
    uses = Uses((PACKAGE / source).read_text(encoding="utf-8"))
    assert list(missing(uses.found)) == []
    assert uses.untracked == []


def test_the_uses_are_really_found() -> None:
    found = set().union(*(Uses((PACKAGE / source).read_text(encoding="utf-8")).found for source in SOURCES))
    assert {
        ("", "Builder"), ("", "OnnxParser"), ("BuilderFlag", "TF32"), ("Builder", "build_serialized_network"),
        ("OnnxParser", "parse"), ("ParserError", "desc"), ("IBuilderConfig", "set_timing_cache"),
        ("IBuilderConfig", "num_compute_capabilities"), ("IOptimizationProfile", "get_shape"),
        ("INetworkDefinition", "get_input"), ("ITensor", "is_shape_tensor"), ("ITimingCache", "serialize"),
        ("Runtime", "deserialize_cuda_engine"), ("Runtime", "get_engine_validity"), ("TensorIOMode", "INPUT"),
        ("ICudaEngine", "get_tensor_profile_shape"), ("ICudaEngine", "create_execution_context"),
        ("ICudaEngine", "num_layers"), ("IExecutionContext", "execute_async_v3"),
        ("IExecutionContext", "set_input_shape"), ("IExecutionContext", "set_tensor_address"),
        ("IExecutionContext", "get_tensor_shape"), ("EngineInspector", "get_engine_information"),
        ("IRuntimeConfig", "cuda_graph_strategy"), ("IRuntimeCache", "deserialize"), ("IRuntimeCache", "serialize"),
        ("CudaGraphStrategy", "DISABLED"), ("LayerInformationFormat", "JSON"),
        ("DynamicShapesKernelSpecializationStrategy", "EAGER"),
    } <= found  # fmt: skip


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def f(engine: trt.ICudaEngine) -> None:\n    engine.get_tensor_nmae(0)", "ICudaEngine.get_tensor_nmae"),
        ("def f(module):\n    module.BuilderFlag.FP16", "BuilderFlag.FP16"),
        ("def f(opened):\n    way = opened.module.TensorIOMode\n    way.SIDEWAYS", "TensorIOMode.SIDEWAYS"),
        ("class A:\n    def __init__(self):\n        self.c: trt.IExecutionContext = 1\n    def f(self):\n"
         "        self.c.execute_async_v4()", "IExecutionContext.execute_async_v4"),
        ("def g() -> trt.Builder: ...\ndef f():\n    b = g()\n    b.has_fast_fp16", "Builder.has_fast_fp16"),
        ("def f(severity: trt.ILogger.Severity):\n    severity.title", "ILogger.Severity.title"),
    ],
)  # fmt: skip
def test_a_planted_use_of_what_is_not_there_is_found(source: str, words: str) -> None:
    assert list(missing(Uses(source).found)) == [words]


def test_a_planted_use_without_an_annotation_is_found() -> None:
    source = "def f(config: trt.IBuilderConfig):\n    config.get_timing_cache().serialize()"
    assert Uses(source).untracked == ["config.get_timing_cache().serialize"]


def test_nothing_sets_what_would_allow_host_code() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    assert [str(path) for path, text in texts.items() if "engine_host_code_allowed" in text] == []
