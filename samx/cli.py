"""The command line: each command parses, makes one library call, prints, and ends with the error's exit code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from samx import cli_measure, console
from samx.errors import UsageError

app = typer.Typer(
    name="samx", no_args_is_help=True, add_completion=False, rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Put the Segment Anything mask decoder on devices, with proof that it still computes the same masks.",
    epilog="First steps:  samx export  ·  samx segment PICTURE.png --point 300,200 --model sam1-demo-onnx",
)  # fmt: skip

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]
Device = Annotated[str, typer.Option(help="Device to run on: cpu, cuda. Never changed silently.")]
Threads = Annotated[Optional[int], typer.Option(help="CPU threads (default: all).", min=1)]


@app.command(
    epilog="samx export  ·  samx export sam_vit_b.pth --single -o vit-b  ·  samx export sam2.1_hiera_tiny.pt --opset 23"
)
def export(
    checkpoint: Annotated[Optional[Path], typer.Argument(help="SAM or SAM 2 weights; none: the demo model.")] = None,
    target: Annotated[str, typer.Option(help="Backend to export for; 'samx doctor' lists them.")] = "onnx",
    output: Annotated[
        Optional[Path], typer.Option("--output", "-o", help="Directory to make; default NAME-TARGET.")
    ] = None,
    family: Annotated[str, typer.Option(help="Which demo model: sam1 or sam2.")] = "sam1",
    fp16: Annotated[bool, typer.Option("--fp16", help="Half precision.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="openvino: bfloat16, where the processor has it.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="8-bit integers.")] = False,
    multimask: Annotated[bool, typer.Option("--multimask", help="Three masks a prompt (default).")] = False,
    single: Annotated[bool, typer.Option("--single", help="One mask a prompt.")] = False,
    all_masks: Annotated[bool, typer.Option("--all-masks", help="All four mask tokens.")] = False,
    mask_input: Annotated[bool, typer.Option("--mask-input", help="Take previous masks as prompts too.")] = False,
    image_size: Annotated[Optional[int], typer.Option(help="Frame in px, if not 1024.")] = None,
    points: Annotated[
        Optional[str],
        typer.Option(help="Points a prompt, padding counted: MIN:OPT:MAX, or one number. OPT chooses the form."),
    ] = None,
    prompts: Annotated[
        Optional[str],
        typer.Option(help="Prompts a call: MIN:OPT:MAX, or one number. From OPT 4 the image is worked on once."),
    ] = None,
    keep_float32: Annotated[
        Optional[list[str]], typer.Option(help="--fp16: a group of operations to leave alone; see 'samx bisect'.")
    ] = None,
    turing: Annotated[
        bool, typer.Option("--turing", help="trt-rtx: build for Turing GPUs (SM 7.5) instead of Ampere and later.")
    ] = False,
    ios: Annotated[
        int, typer.Option(help="coreml: oldest system, 16 to 18. Before 18 a package has one function.")
    ] = 18,
    contract: Annotated[
        str, typer.Option(help="coreml: whose names, samx or apple (two packages, as SAM 2.1 apps load them).")
    ] = "samx",
    weights: Annotated[Optional[str], typer.Option(help="coreml: smaller weights: linear8 or palette8.")] = None,
    calibration: Annotated[
        Optional[Path],
        typer.Option(help="--int8, --bf16: set made by 'samx calibrate'; demo models need none."),
    ] = None,
    min_iou: Annotated[
        Optional[float], typer.Option(help="--int8: mean mask IoU to keep (default 0.98). Groups give way until it is.")
    ] = None,
    exclude: Annotated[
        Optional[list[str]], typer.Option(help="--int8: a group of products to leave in floating point.")
    ] = None,
    opset: Annotated[int, typer.Option(help="ONNX opset: 18 (every backend) or 23 (Attention).")] = 18,
    split: Annotated[bool, typer.Option("--split", help="An image graph and a prompt graph.")] = False,
    simplify: Annotated[bool, typer.Option(help="Run onnxsim.")] = True,
    embedding: Annotated[Optional[list[Path]], typer.Option(help="Judge on your own embedding files.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an artifact that is there.")] = False,
    json: Json = False,
) -> None:
    """Export a decoder and prove it against PyTorch; leaves a directory, or nothing."""
    from samx.commands.export import ExportRequest
    from samx.commands.export import export as run
    from samx.models.shape_range import ShapeRange

    precision = _one_of("precision", {"fp16": fp16, "bf16": bf16, "int8": int8}, "fp32")
    masks = _one_of("masks", {"multimask": multimask, "single": single, "all": all_masks}, "multimask")
    name = checkpoint.name.partition(".")[0] if checkpoint else f"{family}-demo"
    request = ExportRequest(
        out=output or Path(f"{name}-{target}{'' if precision == 'fp32' else '-' + precision}"),
        checkpoint=checkpoint, family=family, target=target, precision=precision, masks=masks,  # type: ignore[arg-type]
        mask_input=mask_input, image_size=image_size, embeddings=embedding or (), calibration=calibration,
        overwrite=force,
        options={
            "opset": opset, "split": split, "simplify": simplify, "turing": turing, "ios": ios,
            "contract": contract, "weights": weights, "exclude": tuple(exclude or ()), "min_iou": min_iou,
            "islands": tuple(keep_float32 or ()),
            "points": ShapeRange.parse(points, "--points") if points else None,
            "prompts": ShapeRange.parse(prompts, "--prompts") if prompts else None,
        },
    )  # fmt: skip
    with console.steps() as progress:
        result = run(request, progress)
    console.show(result, console.exported, as_json=json)


@app.command(
    epilog="samx calibrate -o demo.npz  ·  samx calibrate sam_vit_b.pth --embeddings DIR -o vit-b.npz  ·  "
    "samx calibrate sam_vit_b.pth --pictures DIR --encoder vit-b-encoder.onnx --pixels imagenet -o vit-b.npz"
)
def calibrate(
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .npz.")],
    checkpoint: Annotated[Optional[Path], typer.Argument(help="SAM or SAM 2 weights; none: the demo model.")] = None,
    family: Annotated[str, typer.Option(help="Which demo model: sam1 or sam2.")] = "sam1",
    image_size: Annotated[Optional[int], typer.Option(help="Frame in px, if not 1024.")] = None,
    embeddings: Annotated[Optional[Path], typer.Option(help="Folder of embeddings, .npz or .npy.")] = None,
    pictures: Annotated[Optional[Path], typer.Option(help="Folder of pictures, with --encoder.")] = None,
    encoder: Annotated[Optional[Path], typer.Option(help="Image encoder as ONNX, (1, 3, S, S) in.")] = None,
    pixels: Annotated[str, typer.Option(help="What that encoder takes: unit (0 to 1) or imagenet.")] = "unit",
    images: Annotated[Optional[int], typer.Option(help="Images to use, at most 64 (default 16).")] = None,
    samples: Annotated[Optional[int], typer.Option(help="Prompts to roll out over them (default 96).")] = None,
    seed: Annotated[int, typer.Option(help="The same seed makes the same set, byte by byte.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a set that is there.")] = False,
    json: Json = False,
) -> None:
    """Roll realistic prompts out over images: what INT8 takes its ranges from."""
    from samx.commands.calibrate import CalibrateRequest
    from samx.commands.calibrate import calibrate as run

    request = CalibrateRequest(
        out=output, checkpoint=checkpoint, family=family, image_size=image_size,
        embeddings=embeddings, pictures=pictures, encoder=encoder, pixels=pixels, images=images, samples=samples,
        seed=seed, overwrite=force,
    )  # fmt: skip
    with console.steps() as progress:
        result = run(request, progress)
    console.show(result, console.calibrated, as_json=json)


@app.command(epilog="samx bisect  ·  samx bisect sam_vit_b.pth --json")
def bisect(
    checkpoint: Annotated[Optional[Path], typer.Argument(help="SAM or SAM 2 weights; none: the demo model.")] = None,
    family: Annotated[str, typer.Option(help="Which demo model: sam1 or sam2.")] = "sam1",
    json: Json = False,
) -> None:
    """Measure what float16 costs, group of operations by group, to choose what an export keeps in float32."""
    from samx.commands.bisect import bisect as run

    with console.steps() as progress:
        result = run(checkpoint, family, progress)
    console.show(result, console.bisected, as_json=json)


@app.command(epilog="samx build sam1-demo-trt  ·  samx build sam1-demo-trt --force")
def build(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="Exported trt or trt-rtx artifact.")],
    force: Annotated[bool, typer.Option("--force", help="Build even if the engine belongs to this machine.")] = False,
    json: Json = False,
) -> None:
    """Finish a TensorRT export on the device: build its engine. Needs NumPy and TensorRT, no PyTorch."""
    from samx.commands.build import build as run

    with console.steps() as progress:
        result = run(path, force=force, progress=progress)
    console.show(result, console.built, as_json=json)


@app.command(epilog="samx trust sam1-demo-trt-rtx")
def trust(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="Artifact with an engine from elsewhere.")],
    json: Json = False,
) -> None:
    """Name an engine that somebody else built as one to run: engines are executable code."""
    from samx.commands.build import trust as run

    console.show(run(path), console.trusted, as_json=json)


@app.command(epilog="samx validate sam1-demo-onnx  ·  samx validate DIR --checkpoint sam_vit_b.pth --junit parity.xml")
def validate(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="Artifact to judge.")],
    checkpoint: Annotated[
        Optional[Path], typer.Option(help="Compute the expectations anew from these weights.")
    ] = None,
    device: Device = "cpu",
    threads: Threads = None,
    junit: Annotated[Optional[Path], typer.Option(help="Write JUnit XML for CI here.")] = None,
    report: Annotated[Optional[Path], typer.Option(help="Write the JSON report here.")] = None,
    json: Json = False,
) -> None:
    """Compare an artifact with PyTorch on this machine; exit code 3 if it differs."""
    from samx.commands.validate import validate as run

    with console.steps() as progress:
        progress(f"Judging {path}")
        result = run(path, device=device, threads=threads, checkpoint=checkpoint)
    console.save_reports(result, report, junit)
    console.show(result, console.judged, as_json=json)
    raise typer.Exit(0 if result.passed else 3)


@app.command(
    epilog="samx segment photo.jpg --point 300,200 --model sam1-demo-onnx -o overlay.png  ·  "
    "samx segment photo.jpg --box 40,60,300,380 --model DIR --embedding photo.npz"
)
def segment(
    image: Annotated[Path, typer.Argument(help="Picture file.")],
    model: Annotated[Path, typer.Option(help="Artifact directory.")],
    point: Annotated[Optional[list[str]], typer.Option(help="x,y on the object; repeat for more.")] = None,
    background: Annotated[Optional[list[str]], typer.Option(help="x,y off the object; repeat for more.")] = None,
    box: Annotated[Optional[str], typer.Option(help="x0,y0,x1,y1 around the object.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Overlay picture to write.")] = Path("overlay.png"),
    embedding: Annotated[Optional[Path], typer.Option(help="The picture's embedding: .npz or .npy.")] = None,
    encoder: Annotated[Optional[Path], typer.Option(help="Image encoder as ONNX, (1, 3, S, S) in.")] = None,
    pixels: Annotated[str, typer.Option(help="What that encoder takes: unit (0 to 1) or imagenet.")] = "unit",
    device: Device = "cpu",
    threads: Threads = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a picture that is there.")] = False,
    json: Json = False,
) -> None:
    """Draw the best mask for a prompt over a picture."""
    from samx.commands.segment import segment_picture
    from samx.processing.images import check_free, write_png
    from samx.processing.prompts import Prompt, parse_box, parse_point

    check_free(output, force)
    prompt = Prompt.of_clicks(
        [parse_point(text) for text in point or ()], [parse_point(text) for text in background or ()],
        parse_box(box) if box else None,
    )  # fmt: skip
    with console.steps() as progress:
        progress(f"Segmenting {image.name}")
        result = segment_picture(
            image, model, [prompt], embedding=embedding, encoder=encoder, pixels=pixels, device=device, threads=threads
        )
        write_png(output, result.draw(), overwrite=force)
    console.show((output, result), console.segmented, as_json=json)


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


def _one_of(what: str, flags: dict[str, bool], default: str) -> str:
    chosen = [name for name, is_set in flags.items() if is_set]
    if len(chosen) > 1:
        raise UsageError(f"more than one choice of {what}", found=" and ".join(chosen), expected="one")
    return chosen[0] if chosen else default


def main() -> None:
    """Start samx from the shell."""
    sys.exit(console.run(app, as_json="--json" in sys.argv))


if __name__ == "__main__":
    main()
