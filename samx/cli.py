"""The command line: each command parses, makes one library call, prints, and ends with the error's exit code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from samx import cli_dataset, cli_export, cli_measure, cli_segment, cli_web, console, last_resort

app = typer.Typer(
    name="samx", no_args_is_help=True, add_completion=False, rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Put the Segment Anything mask decoder on devices, with proof that it still computes the same masks.",
    epilog="First steps:  samx export  ·  samx segment PICTURE.png --point 300,200 --model sam1-demo-onnx",
)  # fmt: skip

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]
Device = Annotated[str, typer.Option(help="Device to run on: cpu, cuda. Never changed silently.")]
Threads = Annotated[Optional[int], typer.Option(help="CPU threads (default: all).", min=1)]


cli_export.add_to(app)


@app.command(
    epilog="samx calibrate -o demo.npz  ·  samx calibrate sam_vit_b.pth --embeddings DIR -o vit-b.npz  ·  "
    "samx calibrate sam_vit_b.pth --pictures DIR -o vit-b.npz"
)
def calibrate(
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .npz.")],
    checkpoint: Annotated[Optional[Path], typer.Argument(help="SAM or SAM 2 weights; none: the demo model.")] = None,
    family: Annotated[str, typer.Option(help="Which demo model: sam1 or sam2.")] = "sam1",
    image_size: Annotated[Optional[int], typer.Option(help="Frame in px, as for 'export'.")] = None,
    frame: Annotated[Optional[str], typer.Option(help="How a picture fills it: pad or stretch.")] = None,
    decoder: cli_export.WhichDecoder = None,
    embeddings: Annotated[Optional[Path], typer.Option(help="Folder of embeddings, as 'segment' takes them.")] = None,
    pictures: Annotated[
        Optional[Path], typer.Option(help="Folder of pictures, for the checkpoint's own encoder.")
    ] = None,
    encoder: Annotated[Optional[Path], typer.Option(help="Another encoder, as ONNX: (1, 3, S, S) in.")] = None,
    pixels: Annotated[Optional[str], typer.Option(help=cli_segment.PIXELS_HELP)] = None,
    images: Annotated[Optional[int], typer.Option(help="Images to use, at most 64 (default 16).")] = None,
    samples: Annotated[Optional[int], typer.Option(help="Prompts to roll out over them (default 96).")] = None,
    seed: Annotated[int, typer.Option(help="The same seed makes the same set, byte by byte.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a set that is there.")] = False,
    json: Json = False,
) -> None:
    """Roll realistic prompts out over images: what INT8 takes its ranges from."""
    from samx.commands.calibrate import calibrate as run

    with console.steps() as progress:
        result = run(
            output, checkpoint, family=family, image_size=image_size, frame=frame, decoder=decoder,
            embeddings=embeddings, pictures=pictures, encoder=encoder, pixels=pixels, images=images, samples=samples,
            seed=seed, overwrite=force, progress=progress,
        )  # fmt: skip
    console.show(result, console.told, as_json=json)


@app.command(epilog="samx bisect  ·  samx bisect sam_vit_b.pth --json")
def bisect(
    checkpoint: Annotated[Optional[Path], typer.Argument(help="SAM or SAM 2 weights; none: the demo model.")] = None,
    family: Annotated[str, typer.Option(help="Which demo model: sam1 or sam2.")] = "sam1",
    decoder: cli_export.WhichDecoder = None,
    json: Json = False,
) -> None:
    """Measure what float16 costs, group of operations by group, to choose what an export keeps in float32."""
    from samx.commands.bisect import bisect as run

    with console.steps() as progress:
        result = run(checkpoint, family, progress, decoder=decoder)
    console.show(result, console.bisected, as_json=json)


@app.command(epilog="samx build sam1-demo-trt  ·  samx build sam1-demo-trt --force")
def build(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="Exported trt or trt-rtx artifact.")],
    force: Annotated[bool, typer.Option("--force", help="Build even if the engine belongs to this machine.")] = False,
    memory: Annotated[
        Optional[str], typer.Option(help="Cap what the builder uses beside the weights, such as 6GiB.")
    ] = None,
    json: Json = False,
) -> None:
    """Finish a TensorRT export on the device: build its engines. Needs NumPy and TensorRT, no PyTorch."""
    from samx.commands.build import build as run

    with console.steps() as progress:
        result = run(path, force=force, memory=memory, progress=progress)
    console.show(result, console.told, as_json=json)


@app.command(epilog="samx trust sam1-demo-trt-rtx")
def trust(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="Artifact with an engine from elsewhere.")],
    json: Json = False,
) -> None:
    """Name an engine that somebody else built as one to run: engines are executable code."""
    from samx.commands.build import trust as run

    console.show(run(path), console.told, as_json=json)


@app.command(epilog="samx validate sam1-demo-onnx  ·  samx validate DIR --checkpoint sam_vit_b.pth --junit parity.xml")
def validate(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="Artifact to judge.")],
    checkpoint: Annotated[
        Optional[Path], typer.Option(help="Compute the expectations anew from these weights.")
    ] = None,
    device: Device = "cpu",
    threads: Threads = None,
    seed: Annotated[
        Optional[int], typer.Option(help="Repeat what an earlier run drew; its report names the seed.", min=0)
    ] = None,
    junit: Annotated[Optional[Path], typer.Option(help="Write JUnit XML for CI here.")] = None,
    markdown: Annotated[Optional[Path], typer.Option(help="Write Markdown here, for a pull request.")] = None,
    report: Annotated[Optional[Path], typer.Option(help="Write the JSON report here.")] = None,
    json: Json = False,
) -> None:
    """Compare an artifact with PyTorch on this machine; exit code 3 if it differs."""
    from samx.commands.validate import validate as run

    with console.steps() as progress:
        progress(f"Judging {path}")
        result = run(path, device=device, threads=threads, checkpoint=checkpoint, seed=seed)
    console.save_reports(result, report, junit, markdown)
    console.show(result, console.judged, as_json=json)
    raise typer.Exit(0 if result.passed else 3)


cli_segment.add_to(app)
cli_dataset.add_to(app)


@app.command(
    epilog="samx encode photo.jpg --model sam1-demo-onnx -o photo.npz  ·  "
    "samx segment photo.jpg --point 300,200 --model sam1-demo-onnx --embedding photo.npz"
)
def encode(
    image: Annotated[Path, typer.Argument(help="Picture file.")],
    model: Annotated[Path, typer.Option(help="Artifact directory, with an image encoder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .npz.")],
    levels: Annotated[
        Optional[str], typer.Option("--range", help="LOW:HIGH, what becomes black and white of more than 8 bits.")
    ] = None,
    device: Device = "cpu",
    threads: Threads = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an embedding that is there.")] = False,
    json: Json = False,
) -> None:
    """Keep what the image encoder makes of a picture, to ask about it later."""
    from samx.commands.encode import encode as run
    from samx.processing.images import parse_levels

    with console.steps() as progress:
        result = run(
            image, model, output, levels=parse_levels(levels) if levels else None, device=device, threads=threads,
            overwrite=force, progress=progress,
        )  # fmt: skip
    console.show(result, console.told, as_json=json)


@app.command(epilog="samx inspect sam1-demo-onnx  ·  samx inspect sam1-demo-onnx/decoder.onnx --json")
def inspect(path: Annotated[Path, typer.Argument(help="Artifact directory or ONNX file.")], json: Json = False) -> None:
    """Say what an artifact is, without loading the model."""
    from samx.commands.inspect import inspect as run

    console.show(run(path), console.inspected, as_json=json)


@app.command(epilog="samx doctor  ·  samx doctor --json")
def doctor(json: Json = False) -> None:
    """Say which backends work here, and what to install for the others."""
    from samx.commands.doctor import doctor as run

    console.show(run(), console.examined, as_json=json)


cli_measure.add_to(app)
cli_web.add_to(app)


def _version(asked: bool) -> None:
    if asked:
        from samx import __version__

        console.out.print(f"samx {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Take the options that belong to no command."""


def main() -> None:
    """Start samx from the shell."""
    last_resort.prepare()
    sys.exit(console.run(app, as_json="--json" in sys.argv))


if __name__ == "__main__":
    main()
