"""The command 'samx segment': prompts or everything, and where the masks go."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Optional, get_type_hints

import typer

from samx import console

EPILOG = (
    "samx segment photo.jpg --point 300,200 --model DIR -o overlay.png  ·  "
    "samx segment photo.jpg --box 40,60,300,380 --box 500,200,900,700 --model DIR -o masks.json  ·  "
    "samx segment photo.jpg --everything --model DIR -o masks.json -o all.labels.png"
)
PIXELS_HELP = "What that encoder takes, needed with it: imagenet, half (-1 to 1), minmax or unit (0 to 1)."
EVERYTHING = "With --everything, under Meta's names; defaults are the family's"
Outputs = Annotated[
    Optional[list[Path]],
    typer.Option(
        "--output", "-o",
        help="File to write; repeat for more. By its ending: .png (picture with masks, default overlay.png), .json "
        "(COCO), .geojson (polygons), .labels.png (label map), .npz (arrays); without ending a folder, one PNG a mask.",
    ),
]  # fmt: skip
# The automatic mode's settings: their type and what they are.
SETTINGS: Mapping[str, tuple[Any, str]] = {
    "points_per_side": (int, "Clicks along a side of the picture (32)."),
    "points_per_batch": (int, "Clicks decoded together (64); fewer take less memory."),
    "pred_iou_thresh": (float, "Least predicted IoU of a mask, 0 to 1 (SAM 0.88, SAM 2 0.8)."),
    "stability_score_thresh": (float, "Least stability of a mask, 0 to 1 (0.95)."),
    "stability_score_offset": (float, "Logits up and down that stability is measured with (1)."),
    "mask_threshold": (float, "SAM 2: logit above which a pixel belongs to a mask (0)."),
    "box_nms_thresh": (float, "Masks whose boxes overlap more are the same, 0 to 1 (0.7)."),
    "crop_n_layers": (int, "Look again at crops of the picture, 2 x 2, then 4 x 4 ... (0: none)."),
    "crop_nms_thresh": (float, "The same of masks from different crops (0.7)."),
    "crop_overlap_ratio": (float, "How much crops overlap, as a share of the shorter side (0.34)."),
    "crop_n_points_downscale_factor": (int, "Divides the clicks along a side with each layer (1)."),
    "min_mask_region_area": (int, "Smaller holes and islands go: SAM px of the picture, SAM 2 of its small mask (0)."),
    "tile_px": (int, "Look tile by tile of so many px a side: for large pictures, up to 1000 megapixels."),
    "tile_overlap_px": (int, "What tiles share, px (a quarter of a tile): at least the width of what is looked for."),
    "use_m2m": (bool, "SAM 2: feed each mask back once. Needs an export with --all-masks --mask-input."),
    "single_mask": (bool, "SAM 2: one mask a click, Meta's multimask_output=False."),
    "point_grids": (
        Path,
        "JSON file: for each layer of crops a list of points [x, y], 0 to 1, and no grid.",
    ),
}


def segment(
    image: Annotated[Path, typer.Argument(help="Picture file.")],
    model: Annotated[Path, typer.Option(help="Artifact directory.")],
    point: Annotated[Optional[list[str]], typer.Option(help="x,y on the object; repeat for more.")] = None,
    background: Annotated[Optional[list[str]], typer.Option(help="x,y off the object; repeat for more.")] = None,
    box: Annotated[
        Optional[list[str]], typer.Option(help="x0,y0,x1,y1 around the object; repeat for more objects.")
    ] = None,
    object_: Annotated[
        Optional[list[str]],
        typer.Option("--object", help="One object of several: 'box=40,60,300,380 point=90,80 background=50,70'."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--everything", help="All that is in the picture, without prompts.")
    ] = False,
    mask: Annotated[str, typer.Option(help="Which of a prompt's masks: best, all, or its number.")] = "best",
    refine_from: Annotated[
        Optional[Path], typer.Option(help="Picture of an earlier mask, white on black: go on from it.")
    ] = None,
    max_hole_area: Annotated[Optional[int], typer.Option(help="Fill holes of up to so many px.")] = None,
    min_region_area: Annotated[Optional[int], typer.Option(help="Remove islands of fewer px.")] = None,
    output: Outputs = None,
    embedding: Annotated[
        Optional[Path],
        typer.Option(help="The picture's embedding: of 'samx encode', or .npz or .npy as the decoder takes it."),
    ] = None,
    encoder: Annotated[Optional[Path], typer.Option(help="Image encoder as ONNX, (1, 3, S, S) in.")] = None,
    pixels: Annotated[Optional[str], typer.Option(help=PIXELS_HELP)] = None,
    levels: Annotated[
        Optional[str], typer.Option("--range", help="LOW:HIGH, what becomes black and white of more than 8 bits.")
    ] = None,
    device: Annotated[str, typer.Option(help="Device to run on: cpu, cuda. Never changed silently.")] = "cpu",
    threads: Annotated[Optional[int], typer.Option(help="CPU threads (default: all).", min=1)] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")] = False,
    **settings: Any,
) -> None:
    """Find the masks of prompts, or of everything in a picture, and write them: drawn, as COCO, polygons or arrays."""
    from samx.commands.segment import segment_picture
    from samx.processing.images import parse_levels
    from samx.processing.object_groups import parse_prompts
    from samx.segmenting import Asked

    outputs = output or [Path("overlay.png")]
    prompts = parse_prompts(point or (), background or (), box or (), object_ or ())
    asked = Asked(
        tuple(prompts), settings_of(everything, settings), mask, refine_from, max_hole_area or 0, min_region_area or 0
    )
    with console.steps() as progress:
        progress(f"Segmenting {image.name}")
        found = segment_picture(
            image, model, asked, outputs, embedding=embedding, encoder=encoder, pixels=pixels,
            levels=parse_levels(levels) if levels else None, device=device, threads=threads, overwrite=force,
            progress=progress,
        )  # fmt: skip
    console.show((outputs, found), console.segmented, as_json=json)


def settings_of(everything: bool, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the automatic mode's settings that were given, or None without it.

    Raises: UsageError for settings without it.
    """
    from samx.errors import UsageError

    given = {name: value for name, value in settings.items() if value is not None and value is not False}  # 0 is given
    if not everything:
        for name in given:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} is a setting of --everything", fix="Add that, or leave this out.")
        return None
    if "point_grids" in given:
        from samx.processing.settings import read_grids

        given["point_grids"] = read_grids(given["point_grids"])
    return {**given, "multimask_output": False} if given.pop("single_mask", False) else given


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    register(app, segment, EPILOG)


def register(app: typer.Typer, function: Callable[..., None], epilog: str) -> None:
    """Register a command that takes the automatic mode's settings beside its own options."""

    def command(**given: Any) -> None:
        function(**given)

    hints = get_type_hints(function, include_extras=True)
    declared = inspect.signature(function).parameters.values()
    own = [one.replace(annotation=hints[one.name]) for one in declared if one.kind is not one.VAR_KEYWORD]
    parameters = [*own, *(_parameter(name, *about) for name, about in SETTINGS.items())]
    command.__doc__, command.__name__ = function.__doc__, function.__name__
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app.command(epilog=epilog)(command)


def _parameter(name: str, kind: Any, about: str) -> inspect.Parameter:
    flags = (f"--{name.replace('_', '-')}",) if kind is bool else ()
    option = typer.Option(*flags, help=about, rich_help_panel=EVERYTHING)
    annotation: Any = Annotated[bool if kind is bool else Optional[kind], option]
    default = False if kind is bool else None
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)
