"""Writes docs/cli.md from the commands themselves: `make docs`. tests/test_docs.py fails while the page is stale."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from typer.models import ArgumentInfo, CommandInfo

from samx import errors
from samx.cli import app
from samx.cli_export import CALIBRATED, PRECISIONS, TargetCommand
from samx.exporters.base import ExportOptions
from samx.registry import BACKENDS, Backend, flag_of, option_fields

PAGE = Path(__file__).with_name("cli.md")
INTRODUCTION = """# Command reference

Every command is one library call; `-h` or `--help` shows the same as this page. `samx --version` shows the version.
Progress goes to standard error, results go to standard output, and `--json` makes the result one JSON document
(on failure too: what failed, what was found and expected, what to do, and the exit code).

This page is made by `make docs`.
"""
EXPORT_TARGETS = """Each target has its own precisions and options. `samx export --target T --help` shows them, and
one of another target is refused by name.
"""
TABLE = ("| option | default | meaning |", "|---|---|---|")
# What the exit codes mean to a script; errors.py gives every error its code.
EXIT_CODES = {
    0: "done",
    1: "a bug in samx; please report it",
    2: "usage: invalid request",
    3: "parity: the export does not compute what the reference computes, or that could not be shown",
    4: "benchmark: the measurement is unstable or regressed",
    5: "unavailable: a backend, a device or an optional library is not on this machine",
    6: "input rejected: checkpoint, picture, embedding, prompt or artifact",
    7: "could not write; nothing was left behind",
    8: "not enough memory",
    130: "stopped by the user; no output was left behind (but a search keeps its notes, to go on from)",
    141: "whoever read the output is gone, as after `| head`",
    143: "stopped by SIGTERM; no output was left behind",
}


def page() -> str:
    """Compose the page."""
    commands = [section(command) for command in app.registered_commands]
    return "\n".join([INTRODUCTION, *commands, exit_code_section()])


def section(command: CommandInfo) -> str:
    """Describe one command."""
    callback = command.callback
    assert callback is not None
    name = command.name or callback.__name__
    rows = list(parameters(callback, without=options_of_targets() if command.cls is TargetCommand else set()))
    arguments = " ".join(words for words, *_, is_argument in rows if is_argument)
    lines = [f"## samx {name}", "", str(inspect.getdoc(callback)), "", "```text", f"samx {name} {arguments} [OPTIONS]"]
    lines += ["```", "", *TABLE]
    lines += [row(words, default, meaning) for words, default, meaning, _ in rows]
    if command.cls is TargetCommand:
        lines += ["", EXPORT_TARGETS, *(line for entry in BACKENDS for line in target_section(entry, callback))]
    lines += ["", "Examples:", "", "```bash", "# needs: files", *(command.epilog or "").split("  ·  "), "```", ""]
    return "\n".join(lines).replace(f"samx {name}  [OPTIONS]", f"samx {name} [OPTIONS]").replace("\n\n\n", "\n\n")


def options_of_targets() -> set[str]:
    """Return the parameters that not every target has; those of the base class every target has."""
    precisions = {name for entry in BACKENDS for name in entry.precisions}
    return {*precisions, *option_fields(), *CALIBRATED} - {declared.name for declared in fields(ExportOptions)}


def target_section(entry: Backend, callback: Callable[..., Any]) -> Iterator[str]:
    """Yield the lines about a target's own options."""
    yield from ("", f"### Options of target `{entry.target}` ({entry.title})", "", *TABLE)
    for name in entry.precisions:
        default = "on" if name == entry.default_precision else ""
        yield row(f"--{name}", default, PRECISIONS.get(name, f"Precision {name}."))
    for name, declared in entry.option_fields().items():
        if name in options_of_targets():
            yield row(flag_of(name, declared).replace("/", ", "), field_default(declared), declared.metadata["help"])
    calibrated = CALIBRATED if entry.quantiser else ()
    others = set(inspect.signature(callback).parameters) - set(calibrated)
    yield from (row(words, default, meaning) for words, default, meaning, _ in parameters(callback, without=others))


def field_default(declared: Field[Any]) -> str:
    """Show the default of a target's option; flags and what is not given show nothing."""
    return "" if isinstance(declared.default, bool) or declared.default in (None, ()) else f"`{declared.default}`"


def row(words: str, default: str, meaning: str) -> str:
    return f"| {words_of(words)} | {default} | {meaning} |"


def words_of(words: str) -> str:
    return ", ".join(f"`{word}`" for word in words.split(", "))


def parameters(callback: Callable[..., Any], without: set[str]) -> Iterator[tuple[str, str, str, bool]]:
    """Yield a command's parameters: words, default, meaning, whether it is an argument."""
    hints = typing.get_type_hints(callback, include_extras=True)
    for name, parameter in inspect.signature(callback).parameters.items():
        if name in without:
            continue
        kind, info = hints[name].__origin__, hints[name].__metadata__[0]
        is_argument = isinstance(info, ArgumentInfo)
        words = info.metavar or name.upper() if is_argument else ", ".join(option_words(name, kind, info))
        if is_argument and parameter.default is not parameter.empty:
            words = f"[{words}]"
        yield words, default_text(parameter.default, kind), str(info.help), is_argument


def option_words(name: str, kind: object, info: Any) -> list[str]:
    """Name an option the way typer does."""
    given = [word for word in (info.default, *info.param_decls) if isinstance(word, str)]
    long = f"--{name.replace('_', '-')}"
    return given or ([long, long.replace("--", "--no-", 1)] if kind is bool else [long])


def default_text(value: object, kind: object) -> str:
    """Show a default; a flag that is off and an option that is not given show nothing."""
    if value is inspect.Parameter.empty:
        return "required"
    if kind is bool:
        return "on" if value else ""
    return "" if value is None else f"`{value}`"


def exit_code_section() -> str:
    """List the exit codes with the errors that lead to them."""
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    lines = ["## Exit codes", "", "| code | meaning | errors |", "|---|---|---|"]
    for code, meaning in EXIT_CODES.items():
        names = [f"`{found.__name__}`" for found in classes if getattr(found, "exit_code", None) == code]
        lines.append(f"| {code} | {meaning} | {', '.join(names)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
