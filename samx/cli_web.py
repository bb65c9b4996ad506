"""The commands that show a model on a page: web, serve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Optional

import typer

from samx import console

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]


def web(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="Artifact of target onnx, best exported with --split.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("site"),
    runtime: Annotated[
        Optional[str],
        typer.Option(help="Folder with the files of onnxruntime-web, or npm to have npm download them."),
    ] = None,
    example: Annotated[Optional[Path], typer.Option(help="Picture that the page offers (default: the demo's).")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a site that is there.")] = False,
    json: Json = False,
) -> None:
    """Write a static site that segments pictures in the browser: drop one, click, download the mask."""
    from samx.commands.web import web as run

    with console.steps() as progress:
        facts = run(path, output, runtime=runtime, example=example, overwrite=force, progress=progress)
    console.show(facts, console.told, as_json=json)


def serve(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="Artifact of any target that runs here.")],
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0: any that is free.", min=0, max=65535)] = 8765,
    device: Annotated[str, typer.Option(help="Device to run on: cpu, cuda. Never changed silently.")] = "cpu",
    threads: Annotated[Optional[int], typer.Option(help="CPU threads (default: all).", min=1)] = None,
    json: Json = False,
) -> None:
    """Serve the same page to this machine alone, with the model run by Python; Ctrl and C stops it."""
    from samx.commands.serve import open_server

    with console.steps() as progress:
        server = open_server(path, port, device=device, threads=threads, progress=progress)
    with server:
        facts = {"address": server.address, "summary": f"{path} is at {server.address}; Ctrl and C stops it"}
        console.show(facts, console.told, as_json=json)
        server.serve_forever()


COMMANDS: dict[Callable[..., None], str] = {
    web: "samx web sam1-demo-onnx -o site --runtime npm  ·  "
    "samx web DIR -o site --runtime package/dist --example photo.jpg",
    serve: "samx serve sam1-demo-onnx  ·  samx serve DIR --port 0 --threads 2",
}


def add_to(app: typer.Typer) -> None:
    """Add these commands to an application."""
    for command, examples in COMMANDS.items():
        app.command(command.__name__, epilog=examples)(command)
