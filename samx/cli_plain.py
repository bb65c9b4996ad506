"""The command line of samx.pyz: the same commands, parsed by argparse from their declarations.

The releases of typer since 0.29 parse with a compiled package, which no archive holds; declaring needs none of it.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_origin, get_type_hints

from typer.core import TyperCommand
from typer.models import ArgumentInfo

from samx import __version__, console, last_resort
from samx.cli import app

NAME = "samx.pyz"


def main(arguments: Sequence[str] | None = None) -> None:
    """Start samx.pyz from the shell."""
    last_resort.prepare()
    given = sys.argv[1:] if arguments is None else arguments
    values = vars(parser().parse_args(given or ["--help"]))
    command: Callable[..., None] = values.pop("command")
    sys.exit(console.run(lambda: command(**values), as_json=values["json"]))


def parser() -> argparse.ArgumentParser:
    """Return what parses the commands of samx, without the export: it needs PyTorch, and with it an installed samx."""
    parser = argparse.ArgumentParser(NAME, description=app.info.help)
    parser.add_argument("--version", action="version", version=f"samx {__version__}")
    verbs = parser.add_subparsers(metavar="COMMAND", required=True)
    for declared in app.registered_commands:
        function = declared.callback
        if function is not None and declared.cls is TyperCommand:
            name, about = declared.name or function.__name__, function.__doc__
            _fill(verbs.add_parser(name, help=about, description=about, epilog=declared.epilog), function)
    return parser


def _fill(verb: argparse.ArgumentParser, function: Callable[..., None]) -> None:
    """Add what a command declares."""
    verb.set_defaults(command=function)
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        annotation, declared = get_args(hints[name])
        needed, (kind, several) = parameter.default is parameter.empty, _kind(annotation)
        options: dict[str, Any] = {"default": None if needed else parameter.default}
        options |= {"help": (declared.help or "").replace("%", "%%")}
        options |= {} if kind is bool else {"type": _at_least(kind, declared.min)}
        if isinstance(declared, ArgumentInfo):
            nargs = "+" if several else None if needed else "?"
            verb.add_argument(name, nargs=nargs, metavar=declared.metavar or name.upper(), **options)
        else:
            action = "store_true" if kind is bool else "append" if several else "store"
            verb.add_argument(*_flags(name, declared), dest=name, action=action, required=needed, **options)


def _kind(annotation: Any) -> tuple[type[Any], bool]:
    """Return the type of a value, and whether there may be several: str and True for Optional[list[str]]."""
    several = False
    while inside := get_args(annotation):
        several |= get_origin(annotation) is list
        annotation = inside[0]
    return annotation, several


def _flags(name: str, declared: Any) -> list[str]:
    """Return how an option is written; typer keeps the first flag that is given as the default."""
    first = [declared.default] if isinstance(declared.default, str) else []
    return [*first, *(declared.param_decls or ())] or [f"--{name.replace('_', '-')}"]


def _at_least(kind: type[Any], least: float | None) -> Callable[[str], Any]:
    def value(text: str) -> Any:
        found = kind(text)
        if least is not None and found < least:
            raise argparse.ArgumentTypeError(f"{found} is not at least {least}")
        return found

    value.__name__ = kind.__name__  # in argparse's words about what is none
    return value
