"""The command 'samx dataset': masks of all pictures in a folder, an object store or Parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from samx import cli_segment, console

EPILOG = (
    "samx dataset photos -o masks --model DIR  ·  samx dataset s3://bucket/photos -o s3://bucket/masks --model DIR "
    "--engine ray  ·  samx dataset photos.parquet -o masks --model DIR --column image --prompts boxes"
)


def dataset(
    source: Annotated[
        str, typer.Argument(help="Folder or URL of pictures, or Parquet: a file, a folder or a pattern '*.parquet'.")
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder or URL to write to, or to go on with.")],
    model: Annotated[Path, typer.Option(help="Artifact directory.")],
    everything: Annotated[
        bool, typer.Option("--everything", help="All that is in each picture: the default without --prompts.")
    ] = False,
    prompts: Annotated[
        Optional[str],
        typer.Option(
            help="What to look for: a column of the Parquet; beside a folder, a JSON file by picture names. A list of "
            "boxes (four numbers), of points (two), or of texts as 'samx segment --object' takes them."
        ),
    ] = None,
    mask: Annotated[str, typer.Option(help="Which of a prompt's masks: best, all, or its number.")] = "best",
    max_hole_area: Annotated[int, typer.Option(help="With --prompts, fill holes of up to so many px.")] = 0,
    min_region_area: Annotated[int, typer.Option(help="With --prompts, remove islands of fewer px.")] = 0,
    column: Annotated[
        Optional[str], typer.Option(help="Column of a Parquet with paths or with picture files (image).")
    ] = None,
    names: Annotated[
        Optional[str], typer.Option(help="Column of a Parquet with the pictures' names (the paths, else FILE#ROW).")
    ] = None,
    encoder: Annotated[Optional[Path], typer.Option(help="Image encoder as ONNX, (1, 3, S, S) in.")] = None,
    pixels: Annotated[Optional[str], typer.Option(help=cli_segment.PIXELS_HELP)] = None,
    levels: Annotated[
        Optional[str], typer.Option("--range", help="LOW:HIGH, what becomes black and white of more than 8 bits.")
    ] = None,
    device: Annotated[str, typer.Option(help="Device to run on: cpu, cuda. Never changed silently.")] = "cpu",
    engine: Annotated[
        str, typer.Option(help="Who runs the workers: processes of this machine, or ray (a cluster: RAY_ADDRESS).")
    ] = "processes",
    workers: Annotated[
        Optional[int], typer.Option(help="Workers (default: one a core; cuda: one, with ray one a GPU).", min=1)
    ] = None,
    threads: Annotated[
        Optional[int], typer.Option(help="CPU threads of a worker (default: the cores that fall to it).", min=1)
    ] = None,
    per_file: Annotated[int, typer.Option(help="Pictures in a file that is written.", min=1)] = 64,
    retry: Annotated[bool, typer.Option("--retry", help="Do pictures again that have an error.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")] = False,
    **settings: Any,
) -> None:
    """Find the masks of many pictures, of a folder, object store or Parquet; asked again, go on with the rest."""
    from samx.commands.dataset import DatasetRequest, check_outlives, segment_dataset
    from samx.processing.images import parse_levels

    check_outlives(output)
    asked = DatasetRequest(
        source, output, model, cli_segment.settings_of(everything or prompts is None, settings), prompts, mask,
        max_hole_area, min_region_area, column, names, encoder, pixels, parse_levels(levels) if levels else None,
        device, engine, workers, threads, per_file, retry,
    )  # fmt: skip
    try:
        with console.steps() as progress:
            facts = segment_dataset(asked, progress)
    except KeyboardInterrupt:
        console.err.print("stopped; what is written stays, and the same command goes on with the rest")
        raise typer.Exit(console.STOPPED) from None
    console.show(facts, console.told, as_json=json)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    cli_segment.register(app, dataset, EPILOG)
