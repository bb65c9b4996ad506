"""The command line of samx.pyz: the same commands, parsed by argparse from their declarations.

The releases of typer since 0.29 parse with a compiled package, which no archive holds; declaring needs none of it.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_origin, get_type_hints

import typer

from samx import __version__, console
from samx.cli import app

NAME = "samx.pyz"


def main(arguments: Sequence[str] | None = None) -> None:
    """Start samx.pyz from the shell."""
    given = sys.argv[1:] if arguments is None else arguments
    values = vars(parser().parse_args(given or ["--help"]))
    command: Callable[..., None] = values.pop("command")
    try:
        code = console.run(lambda: command(**values), as_json=values["json"])
    except typer.Exit as ended:
        code = ended.exit_code
    sys.exit(code)


def parser() -> argparse.ArgumentParser:
    """Return what parses the commands of samx, without the export: it needs PyTorch, and with it an installed samx."""
    parser = argparse.ArgumentParser(NAME, description=app.info.help)
    parser.add_argument("--version", action="version", version=f"samx {__version__}")
    verbs = parser.add_subparsers(metavar="COMMAND", required=True)
    for declared in app.registered_commands:
        function = declared.callback
        if function is not None and declared.cls is typer.main.TyperCommand:
            about = {"help": function.__doc__, "description": function.__doc__, "epilog": declared.epilog}
            _fill(verbs.add_parser(function.__name__, **about), function)
    return parser


def _fill(verb: argparse.ArgumentParser, function: Callable[..., None]) -> None:
    verb.set_defaults(command=function)
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        annotation, declared = get_args(hints[name])
        default = None if parameter.default is parameter.empty else parameter.default
        options = _type(annotation, declared, f"'{name}'")
        about = (declared.help or "").replace("%", "%%")
        if isinstance(declared, typer.models.ArgumentInfo):
            few = {"nargs": "+" if "action" in options else None if parameter.default is parameter.empty else "?"}
            kind = {key: value for key, value in options.items() if key != "action"}
            verb.add_argument(
                name, metavar=declared.metavar or name.upper(), default=default, help=about, **few, **kind
            )
        else:
            flags = declared.param_decls or (f"--{name.replace('_', '-')}",)
            required = parameter.default is parameter.empty
            verb.add_argument(*flags, dest=name, default=default, required=required, help=about, **options)


def _type(annotation: Any, declared: Any, name: str) -> dict[str, Any]:
    """Return how argparse takes a type: a flag, values of one kind, or many of them."""
    several = [part for part in (annotation, *get_args(annotation)) if get_origin(part) is list]
    kind = next(part for part in (*map(_item, several), annotation, *get_args(annotation)) if isinstance(part, type))
    if kind is bool:
        return {"action": "store_true"}

    def value(text: str) -> Any:
        found = kind(text)
        if declared.min is not None and found < declared.min:
            raise argparse.ArgumentTypeError(f"{found} is not at least {declared.min}")
        return found

    value.__name__ = kind.__name__  # in argparse's words about a value that is none
    return {"type": value, **({"action": "append"} if several else {})}


def _item(several: Any) -> Any:
    return get_args(several)[0]
