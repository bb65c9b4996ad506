"""The command 'samx export': its options are the ones that every target has, and those that the exporters declare."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import Field
from pathlib import Path
from typing import Annotated, Any, Optional, get_type_hints

import typer
from typer.core import TyperCommand

from samx import console, registry
from samx.errors import UsageError
from samx.registry import DEFAULT_TARGET, flag_of, load, option_fields

EPILOG = (
    "samx export  ·  samx export sam_vit_b.pth --single -o vit-b  ·  samx export sam2.1_hiera_tiny.pt --opset 23  ·  "
    "samx export --target coreml --help"
)
CALIBRATED = ("calibration", "min_iou", "exclude")  # options of targets that have INT8
# What precisions are called; one of another name is called by it.
PRECISIONS = {"fp32": "Single precision.", "fp16": "Half precision.", "bf16": "bfloat16.", "int8": "8-bit integers."}

Target = Annotated[
    str, typer.Option(help="Backend to export for; 'samx doctor' lists them, --target T --help shows its options.")
]
ObjectPointer = Annotated[
    bool, typer.Option("--object-pointer", help="SAM 2: each mask's object pointer too, for a video's loop.")
]
ObjectEmbeddings = Annotated[
    bool,
    typer.Option(
        "--object-embeddings",
        help="SAM 2: a decoder too, as ONNX, that takes an image embedding for each object, for a video's loop.",
    ),
]
WithMemoryEncoder = Annotated[
    bool, typer.Option("--memory-encoder", help="SAM 2: the memory encoder too, as ONNX, for a video's loop.")
]
WithEncoder = Annotated[
    bool, typer.Option("--encoder/--no-encoder", help="The checkpoint's image encoder too (default), or not.")
]
EncoderPrecision = Annotated[
    Optional[str],
    typer.Option(help="The image encoder's precision. Default: the decoder's where it has it, never int8; else fp32."),
]
EncoderPictures = Annotated[
    Optional[Path],
    typer.Option(help="Folder of at least 4 pictures for --encoder-precision int8. Default, for a demo model: scenes."),
]
Pictures = Annotated[
    Optional[str], typer.Option(help="Pictures that the encoder takes in a call: MIN:OPT:MAX, or one number.")
]
ImageSize = Annotated[
    Optional[int], typer.Option(help="Frame in px, where the checkpoint does not state it and it is not its model's.")
]
FrameFill = Annotated[
    Optional[str],
    typer.Option(help="How a picture fills the frame: pad (keeps its shape) or stretch. Default: the family's."),
]
PixelKind = Annotated[
    Optional[str],
    typer.Option(help="What the image encoder takes: imagenet, half, minmax or unit. Default: the family's."),
]

WhichDecoder = Annotated[
    Optional[str], typer.Option(help="Which decoder of a checkpoint of several: how its keys begin, such as tracker.")
]

Calibration = Annotated[
    Optional[Path], typer.Option(help="--int8, --bf16: set made by 'samx calibrate'; demo models need none.")
]
ClientCode = Annotated[
    Optional[list[str]],
    typer.Option(help="Client code too, picture to mask without samx: python, javascript, cpp, swift, kotlin."),
]


def export(
    checkpoint: Annotated[
        Optional[Path], typer.Argument(help="SAM, SAM 2 or SAM 3 weights; none: the demo model.")
    ] = None,
    target: Target = DEFAULT_TARGET,
    output: Annotated[
        Optional[Path], typer.Option("--output", "-o", help="Directory to make; default NAME-TARGET.")
    ] = None,
    family: Annotated[str, typer.Option(help="Which demo model: sam1 or sam2.")] = "sam1",
    multimask: Annotated[bool, typer.Option("--multimask", help="Three masks a prompt (default).")] = False,
    single: Annotated[bool, typer.Option("--single", help="One mask a prompt.")] = False,
    all_masks: Annotated[bool, typer.Option("--all-masks", help="All four mask tokens.")] = False,
    mask_input: Annotated[bool, typer.Option("--mask-input", help="Take previous masks as prompts too.")] = False,
    object_pointer: ObjectPointer = False,
    memory_encoder: WithMemoryEncoder = False,
    object_embeddings: ObjectEmbeddings = False,
    encoder: WithEncoder = True,
    encoder_precision: EncoderPrecision = None,
    encoder_pictures: EncoderPictures = None,
    pictures: Pictures = None,
    image_size: ImageSize = None,
    frame: FrameFill = None,
    pixels: PixelKind = None,
    decoder: WhichDecoder = None,
    calibration: Calibration = None,
    min_iou: Annotated[
        Optional[float], typer.Option(help="--int8: mean mask IoU to keep (default 0.98). Groups give way until it is.")
    ] = None,
    exclude: Annotated[
        Optional[list[str]], typer.Option(help="--int8: a group of products to leave in floating point.")
    ] = None,
    embedding: Annotated[
        Optional[list[Path]], typer.Option(help="Judge on your own embeddings, as 'segment' takes them.")
    ] = None,
    client: ClientCode = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an artifact that is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")] = False,
    **more: Any,
) -> None:
    """Export a decoder and prove it against PyTorch; leaves a directory, or nothing."""
    from samx.commands.export import ExportRequest
    from samx.commands.export import export as run
    from samx.models.shape_range import ShapeRange

    precision = one_of("precision", {name: more.pop(name) for name in _precisions()})
    masks = one_of("masks", {"multimask": multimask, "single": single, "all": all_masks}) or "multimask"
    name = checkpoint.name.partition(".")[0] if checkpoint else f"{family}-demo"
    request = ExportRequest(
        out=output or Path(f"{name}-{target}{'-' + precision if precision else ''}"),
        checkpoint=checkpoint, family=family, target=target, precision=precision, masks=masks,  # type: ignore[arg-type]
        mask_input=mask_input, object_pointer=object_pointer, memory_encoder=memory_encoder,
        object_embeddings=object_embeddings,
        encoder=encoder, encoder_precision=encoder_precision, encoder_pictures=encoder_pictures,
        pictures=None if pictures is None else ShapeRange.parse(pictures, "pictures"),
        image_size=image_size, frame=frame, pixels=pixels, decoder=decoder, embeddings=embedding or (),
        client=tuple(client or ()),
        calibration=calibration, exclude=tuple(exclude or ()), min_iou=min_iou, overwrite=force,
        options={name: value for name, value in more.items() if value not in (None, [], ())},
    )  # fmt: skip
    with console.steps() as progress:
        result = run(request, progress)
    console.show(result, console.exported, as_json=json)


class TargetCommand(TyperCommand):
    """Show the options of the target that was named, and no other's; all are parsed, to be refused by name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Look for the target before the options are parsed and help is shown."""
        entry = next((entry for entry in registry.BACKENDS if entry.target == _target(args)), registry.BACKENDS[0])
        declared = entry.option_fields()
        own = {*declared, *entry.precisions, *(CALIBRATED if entry.quantiser else ())}
        for parameter in self.params:
            if parameter.name in {*option_fields(), *_precisions(), *CALIBRATED}:
                parameter.hidden = parameter.name not in own  # type: ignore[attr-defined]
            if parameter.name in declared:
                parameter.help = _help(declared[parameter.name])  # type: ignore[attr-defined]
            if parameter.name in entry.precisions:
                default = " Default." if parameter.name == entry.default_precision else ""
                parameter.help = _words(parameter.name) + default  # type: ignore[attr-defined]
        return super().parse_args(ctx, args)


def add_to(app: typer.Typer) -> None:
    """Register the command."""

    def command(**given: Any) -> None:
        export(**given)

    parameters = list(_parameters())
    command.__doc__, command.__name__ = export.__doc__, "export"
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app.command(cls=TargetCommand, epilog=EPILOG)(command)


def one_of(what: str, flags: dict[str, bool]) -> str | None:
    """Return the flag that was set, if any.

    Raises: UsageError for more than one.
    """
    chosen = [name for name, is_set in flags.items() if is_set]
    if len(chosen) > 1:
        raise UsageError(f"more than one choice of {what}", found=" and ".join(chosen), expected="one")
    return chosen[0] if chosen else None


def _parameters() -> Iterator[inspect.Parameter]:
    """Yield export()'s own parameters, then a flag a precision, then the options of all targets."""
    hints = get_type_hints(export, include_extras=True)
    for parameter in inspect.signature(export).parameters.values():
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            yield parameter.replace(annotation=hints[parameter.name])
    for name in _precisions():
        annotation = Annotated[bool, typer.Option(f"--{name}", help=_words(name))]
        yield _keyword(name, annotation, False)
    types = {name: kind for entry in registry.BACKENDS for name, kind in get_type_hints(load(entry.options)).items()}
    for name, declared in option_fields().items():
        yield _keyword(name, _annotation(name, declared, types[name]), None)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)


def _annotation(name: str, declared: Field[Any], kind: Any) -> Any:
    """Return an option as typer takes it; one that is not given is None."""
    flag, help_text = flag_of(name, declared), _help(declared)
    if kind is bool:
        return Annotated[Optional[bool], typer.Option(flag, help=help_text)]
    types: dict[Any, Any] = {int: Optional[int], tuple[str, ...]: Optional[list[str]]}
    return Annotated[types.get(kind, Optional[str]), typer.Option(flag, help=help_text)]


def _help(declared: Field[Any]) -> str:
    text = str(declared.metadata["help"])
    has_default = declared.default not in (None, ()) and not isinstance(declared.default, bool)
    return f"{text} Default {declared.default}." if has_default else text


def _words(precision: str) -> str:
    return PRECISIONS.get(precision, f"Precision {precision}.")


def _precisions() -> list[str]:
    return list(dict.fromkeys(name for entry in registry.BACKENDS for name in entry.precisions))


def _target(args: Sequence[str]) -> str:
    for here, following in zip(args, [*args[1:], ""], strict=True):
        if here == "--target":
            return following
        if here.startswith("--target="):
            return here.partition("=")[2]
    return DEFAULT_TARGET
