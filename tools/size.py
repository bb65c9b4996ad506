"""Count what there is to read: code lines, files, classes of fields, import circles, lengths of functions and files.

Code lines are lines that hold a token of code: no blank lines, no comments, no docstrings.
"""

from __future__ import annotations

import ast
import io
import statistics
import sys
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("samx", "tools")
FIELD_BASES = {"NamedTuple", "TypedDict", "BaseModel", "Struct"}
FIELD_DECORATORS = {"dataclass", "define", "frozen", "attrs"}
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
SHORT, LONG = 60, 350  # lines of a file
FUNCTION_MEDIAN, FUNCTION_P90, FUNCTION_MOST = 8, 20, 60  # code lines


@dataclass(frozen=True)
class Source:
    """Hold one parsed file: its path from the root, its text and its tree."""

    name: str
    text: str
    tree: ast.Module

    @property
    def module(self) -> str:
        """Return the dotted name that other files import."""
        return self.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def sources(root: Path = ROOT) -> list[Source]:
    """Read every Python file of the package and of tools/."""
    paths = [path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))]
    texts = {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    return [Source(name, text, ast.parse(text)) for name, text in texts.items()]


def code_lines(source: Source) -> set[int]:
    """Return the numbers of the lines that hold code."""
    tokens = tokenize.generate_tokens(io.StringIO(source.text).readline)
    lines = {n for token in tokens if token.type not in NO_CODE for n in range(token.start[0], token.end[0] + 1)}
    return lines - {n for span in docstrings(source.tree) for n in span}


def docstrings(tree: ast.Module) -> Iterator[range]:
    """Yield the lines of each docstring."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            yield range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)


def function_lengths(source: Source) -> dict[str, int]:
    """Count each function's code lines, its signature with it."""
    lines = code_lines(source)
    return {
        f"{source.name}:{node.name}:{node.lineno}": len(lines & set(range(node.lineno, (node.end_lineno or 0) + 1)))
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def field_classes(source: Source) -> list[str]:
    """Name the classes that are made of fields: dataclasses, named tuples, typed dictionaries."""
    return [
        f"{source.name}:{node.name}"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ClassDef)
        and (FIELD_BASES & {_name(base) for base in node.bases}
             or FIELD_DECORATORS & {_name(item) for item in node.decorator_list})
    ]  # fmt: skip


def _name(node: ast.expr) -> str:
    """Return the last part of a name, a call's function or an attribute."""
    if isinstance(node, ast.Call):
        return _name(node.func)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def imports(source: Source, modules: frozenset[str]) -> set[str]:
    """Return which of these modules a file imports: at its top, in functions, for types."""
    found: set[str] = set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {member if member in modules else node.module for member in members}
    return (found & modules) - {source.module}


def circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that reach each other."""
    reach = {module: _reachable(module, arrows) for module in arrows}
    groups = {tuple(sorted({a} | {b for b in reach[a] if a in reach[b]})) for a in arrows}
    return sorted(list(group) for group in groups if len(group) > 1)


def _reachable(start: str, arrows: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        fresh = arrows.get(waiting.pop(), set()) - found
        found |= fresh
        waiting.extend(fresh)
    return found


def arrows_between(files: list[Source]) -> dict[str, set[str]]:
    """Return what each module imports of the others."""
    modules = frozenset(source.module for source in files)
    return {source.module: imports(source, modules) for source in files}


def main() -> None:
    """Print the figures."""
    files = sources()
    lengths = {name: count for source in files for name, count in function_lengths(source).items()}
    of_package = [source for source in files if source.name.startswith("samx/")]
    sizes = {source.name: source.text.count("\n") for source in files if not source.name.endswith("__init__.py")}
    rows = {
        "code lines, samx/ and tools/": sum(len(code_lines(source)) for source in files),
        "files, samx/": len(of_package),
        "classes of fields": sum(len(field_classes(source)) for source in files),
        "import circles": len(circles(arrows_between(files))),
        "function lines, median": round(statistics.median(lengths.values())),
        "function lines, 90th percentile": round(statistics.quantiles(lengths.values(), n=10)[-1]),
        "function lines, most": max(lengths.values()),
        f"files under {SHORT} lines": sum(count < SHORT for count in sizes.values()),
        f"files over {LONG} lines": sum(count > LONG for count in sizes.values()),
    }
    for name, value in rows.items():
        sys.stdout.write(f"{value:7,}  {name}\n")
    if "--names" in sys.argv:
        _print_names(lengths, sizes, files)


def _print_names(lengths: Mapping[str, int], sizes: Mapping[str, int], files: list[Source]) -> None:
    worst = sorted(lengths.items(), key=lambda item: -item[1])[:15]
    edges = sorted((count, name) for name, count in sizes.items() if not SHORT <= count <= LONG)
    for title, rows in (("longest functions", worst), ("files too short or too long", [(b, a) for a, b in edges])):
        sys.stdout.write(f"\n{title}\n" + "".join(f"{value:7}  {name}\n" for name, value in rows))
    for group in circles(arrows_between(files)):
        sys.stdout.write(f"\ncircle: {', '.join(group)}\n")


if __name__ == "__main__":
    main()
