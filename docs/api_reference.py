"""Writes docs/api.md from the docstrings of the front door: `make docs`. A test fails while the page is stale."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import samx

PAGE = Path(__file__).with_name("api.md")
INTRODUCTION = """# The library

What `import samx` offers, from the docstrings. Nothing heavy is imported before it is used: `import samx` loads no
PyTorch, and a device needs none. Names that are not here may change in any version.

This page is made by `make docs`.
"""
FUNCTIONS = ("export", "open", "validate", "load")
CLASSES = ("Predictor", "Prompt", "Artifact")
WIDTH, NO_BREAK = 100, "\u00a0"
FIELD = re.compile(r"(?m)^([A-Z][a-z]+|[a-z_]+):(?= )")  # what a line of a docstring is about


def page() -> str:
    """Compose the page."""
    functions = [function(f"samx.{name}", getattr(samx, name)) for name in FUNCTIONS]
    classes = [described(name, getattr(samx, name)) for name in CLASSES]
    return "\n".join([INTRODUCTION, *functions, *classes, errors()])


def function(name: str, called: Any, level: str = "##") -> str:
    """Describe a function: how it is called, and its docstring."""
    return "\n".join([f"{level} `{name}`", "", "```text", signature(name, called), "```", "", text(called), ""])


def signature(name: str, called: Any) -> str:
    """Write a signature, on several lines where it is long."""
    found = inspect.signature(called)
    arguments = [argument(one) for one in found.parameters.values() if one.name != "self"]
    first = [one.kind for one in found.parameters.values() if one.name != "self"]
    if inspect.Parameter.KEYWORD_ONLY in first:
        arguments.insert(first.index(inspect.Parameter.KEYWORD_ONLY), "*")
    result = f" -> {found.return_annotation}" if isinstance(found.return_annotation, str) else ""
    if len(whole := f"{name}({', '.join(arguments)}){result}") <= WIDTH:
        return whole
    unbroken = ", ".join(one.replace(" ", NO_BREAK) for one in arguments)
    lines = [f"    {line}" for line in textwrap.wrap(unbroken, WIDTH - 4, break_long_words=False)]
    return "\n".join([f"{name}(", *lines, f"){result}"]).replace(NO_BREAK, " ")


def argument(one: inspect.Parameter) -> str:
    """Write an argument with its type and default."""
    stars = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
    kind = f": {one.annotation}" if isinstance(one.annotation, str) else ""
    return f"{stars}{one.name}{kind}" + ("" if one.default is one.empty else f" = {one.default!r}")


def text(documented: Any) -> str:
    """Bring a docstring into Markdown: what a line is about in italics, examples as code that is not run."""
    prose, _, example = (inspect.getdoc(documented) or "").partition("Example:\n")
    shown = FIELD.sub(r"\n*\1*:", prose).strip()
    shown = re.sub(r"\n{3,}", "\n\n", shown)
    return f"{shown}\n\n```pycon\n{textwrap.dedent(example).rstrip()}\n```" if example else shown


def described(name: str, documented: type) -> str:
    """Describe a class: its docstring, and its public methods and properties."""
    lines = [f"## `samx.{name}`", "", text(documented), ""]
    for method, kind, called in members(documented):
        if kind == "property":
            lines += [f"### `{name}.{method}`", "", text(called), ""]
        else:
            lines += [function(f"{name}.{method}", called, "###")]
    return "\n".join(lines)


def members(documented: type) -> Iterator[tuple[str, str, Any]]:
    """Yield what a class offers and documents: name, kind, and what holds the docstring."""
    for name, value in vars(documented).items():
        called = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        if name.startswith("_") or not inspect.getdoc(called):
            continue
        if isinstance(value, property):
            yield name, "property", value.fget
        elif inspect.isfunction(called):
            yield name, "method", called


def errors() -> str:
    """List the errors with their exit codes."""
    lines = ["## Errors", "", "All are `samx.SamxError`. As text each is one line: what failed, what was found, what"]
    lines += ["was expected, what to do.", "", "| error | exit code | when |", "|---|---|---|"]
    for name in samx.ERRORS:
        error = getattr(samx, name)
        lines.append(f"| `samx.{name}` | {error.exit_code} | {' '.join(str(inspect.getdoc(error)).split())} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
