"""run.py: the parts that a kit needs, joined into one file that imports nothing of samx."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from importlib.resources import files

PARTS = "samx.kits.runner"
# In the order of the file. The first are in every kit; what runs a decoder is where a device of the kit needs it.
BEFORE, AFTER = ("kit",), ("decoder", "machine", "parity", "latency", "main")
RUNTIME_PARTS: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime",),
    "tensorrt": ("gpu", "tensorrt"),
    "coreml": ("coreml",),
}
HEAD = '''\
#!/usr/bin/env python3
"""Check and time this kit's decoder on this machine: run "python3 run.py", then look at report.json.

It needs Python 3.10, NumPy and the one library that kit.json names for the device; nothing of samx. In order: the hash
of every file; this machine's answers against PyTorch's, and nothing is timed unless they agree; the time of calls; the
report, in the format of "samx bench". Every bound, limit and name that it goes by stands in kit.json.
"""

from __future__ import annotations

'''
# Missing on a bare device, and needed before anything can be said about other libraries.
NUMPY = "import numpy as np"
NUMPY_GUARDED = f"""
try:
    {NUMPY}
except ModuleNotFoundError:
    print("error: this kit needs NumPy. Install it: python3 -m pip install numpy", file=sys.stderr)
    sys.exit(5)
"""


def program(runtimes: Collection[str]) -> str:
    """Join the parts that these ways to run a decoder need."""
    inside = [part for runtime in RUNTIME_PARTS if runtime in runtimes for part in RUNTIME_PARTS[runtime]]
    sources = [_source(part) for part in (*BEFORE, *inside, *AFTER)]
    typing = [block for source in sources for block in _typing_only(source)]
    return HEAD + "\n".join([*_merged(sources), NUMPY_GUARDED, *typing]) + "".join(map(_section, sources))


def _source(part: str) -> str:
    return files(PARTS).joinpath(f"{part}.py").read_text(encoding="utf-8")


def _head(source: str) -> Iterator[ast.stmt]:
    """Give the statements that open a part: its docstring, imports, and imports for types."""
    for number, node in enumerate(ast.parse(source).body):
        if number and not isinstance(node, (ast.Import, ast.ImportFrom)) and not _is_typing_only(node):
            return
        yield node


def _is_typing_only(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _merged(sources: Collection[str]) -> list[str]:
    """Write each import once: modules, then names out of modules. The parts import each other no more."""
    nodes = [node for source in sources for node in _head(source)]
    modules = {ast.unparse(node) for node in nodes if isinstance(node, ast.Import)} - {NUMPY}
    names: dict[str, set[str]] = {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and not str(node.module).startswith(("__future__", PARTS)):
            names.setdefault(str(node.module), set()).update(alias.name for alias in node.names)
    return [*sorted(modules), *(f"from {module} import {', '.join(sorted(names[module]))}" for module in sorted(names))]


def _typing_only(source: str) -> Iterator[str]:
    return (ast.unparse(node) for node in _head(source) if _is_typing_only(node))


def _section(source: str) -> str:
    *_, last = _head(source)
    title = str(ast.get_docstring(ast.parse(source)))
    body = "\n".join(source.splitlines()[last.end_lineno :]).strip("\n")
    return f"\n\n# ---- {title}\n\n\n{body}\n"
