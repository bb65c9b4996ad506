"""The front door: what `import samx` offers, with paths as people write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from samx.artifacts.store import Artifact
from samx.errors import UsageError
from samx.models.shape_range import ShapeRange
from samx.models.spec import FrameRule, MaskChoice, PixelRule, check_choice
from samx.opening import open_predictor
from samx.predictor import Predictor
from samx.registry import DEFAULT_TARGET, backend

if TYPE_CHECKING:
    from samx.models.fast.decoder import FastDecoder
    from samx.progress import Progress
    from samx.validators.report import ParityReport

PathLike = Union[str, Path]
Sizes = Union[int, str, tuple[int, int, int]]  # the one that there is, or MIN:OPT:MAX


def export(
    checkpoint: PathLike | None, out: PathLike, target: str = DEFAULT_TARGET, *, family: str = "sam1",
    precision: str | None = None, masks: MaskChoice = "multimask", mask_input: bool = False,
    object_pointer: bool = False, memory_encoder: bool = False, object_embeddings: bool = False,
    encoder: bool = True, encoder_precision: str | None = None,
    encoder_pictures: PathLike | None = None, pictures: Sizes | None = None,
    image_size: int | None = None, frame: FrameRule | None = None, pixels: PixelRule | None = None,
    decoder: str | None = None,
    points: Sizes | None = None, prompts: Sizes | None = None, embedding: PathLike | Sequence[PathLike] = (),
    client: Sequence[str] = (), calibration: PathLike | None = None, exclude: Sequence[str] = (),
    min_iou: float | None = None,
    force: bool = False, progress: Progress | None = None, **options: object,
) -> Artifact:  # fmt: skip
    """Export a decoder and its image encoder, compare it with PyTorch, and return an artifact; or leave nothing.

    checkpoint: SAM, SAM 2 or SAM 3 weights; None: the demo model of `family`. out: the directory to make.
    encoder: export the checkpoint's image encoder too, where samx knows it, in this precision (None: the decoder's,
    where the target's encoder has it; int8 only where it is asked for); pictures: that it takes in a call.
    encoder_pictures: folder of pictures that an encoder of int8 is calibrated and judged on.
    client: languages of client code that is written beside the files: python, javascript, cpp, swift or kotlin.
    The rest is named as the options of 'samx export' (precision fp32, fp16, bf16 or int8, None the target's default;
    masks multimask, single or all), and so are the options that a target has of its own: opset=23 or split=True.
    Raises: UsageError, CheckpointError, ImageError, MissingExtraError, WriteError; ParityError when the export computes
    something else.

    Example:
        >>> samx.export("sam2.1_hiera_tiny.pt", "tiny", target="onnx", mask_input=True)
        >>> samx.export(None, "demo", target="onnx", precision="int8", split=True)
    """
    from samx.commands.export import ExportRequest
    from samx.commands.export import export as run
    from samx.progress import silent

    check_choice("masks", masks, MaskChoice)
    _check_names(target, options)
    paths = [embedding] if isinstance(embedding, (str, Path)) else embedding
    request = ExportRequest(
        out=Path(out), checkpoint=None if checkpoint is None else Path(checkpoint), family=family, target=target,
        precision=precision, masks=masks, mask_input=mask_input, object_pointer=object_pointer,
        memory_encoder=memory_encoder, object_embeddings=object_embeddings,
        encoder=encoder, encoder_precision=encoder_precision,
        encoder_pictures=None if encoder_pictures is None else Path(encoder_pictures), pictures=_range(pictures),
        image_size=image_size, frame=frame, pixels=pixels, decoder=decoder,
        embeddings=[Path(path) for path in paths], client=tuple(client),
        calibration=None if calibration is None else Path(calibration),
        exclude=tuple(exclude), min_iou=min_iou, overwrite=force, options={**options, **_sizes(points, prompts)},
    )  # fmt: skip
    result = run(request, progress or silent)
    return Artifact(result.path, result.manifest)


def _check_names(target: str, options: Mapping[str, object]) -> None:
    """Refuse an argument that a target has not.

    Raises: UsageError naming it.
    """
    own = backend(target).option_fields()
    for name in options:
        if name not in own:
            raise UsageError(
                f"samx.export() takes no such argument for target '{target}'", found=name, expected=", ".join(own)
            )


def _sizes(points: Sizes | None, prompts: Sizes | None) -> dict[str, str]:
    """Write the numbers of points and prompts that were given as the command line does."""
    given = {"points": points, "prompts": prompts}
    return {name: _text(value) for name, value in given.items() if value is not None}


def _range(pictures: Sizes | None) -> ShapeRange | None:
    return None if pictures is None else ShapeRange.parse(_text(pictures), "pictures")


def _text(value: Sizes) -> str:
    return ":".join(map(str, value)) if isinstance(value, tuple) else str(value)


def open(
    artifact: PathLike | Artifact, device: str = "cpu", threads: int | None = None, *,
    encoder: PathLike | None = None, pixels: PixelRule | None = None,
) -> Predictor:  # fmt: skip
    """Verify an artifact and open it where its target runs, to be called as Meta's predictors are.

    encoder: an image encoder as ONNX, (1, 3, S, S) in, in place of the artifact's own; pixels: what it takes, needed
    with it: imagenet, half (-1 to 1), minmax or unit (0 to 1).
    Raises: ArtifactError, MissingExtraError, UnavailableError.

    Example:
        >>> with samx.open("tiny") as predictor:
        ...     predictor.set_image("photo.jpg")
        ...     masks, scores, logits = predictor.predict(box=[40, 60, 300, 380])
    """
    opened = artifact if isinstance(artifact, Artifact) else Artifact.open(Path(artifact))
    return open_predictor(opened, device, threads, encoder=None if encoder is None else Path(encoder), pixels=pixels)


def validate(
    artifact: PathLike | Artifact, device: str = "cpu", threads: int | None = None, *,
    checkpoint: PathLike | None = None, seed: int | None = None,
) -> ParityReport:  # fmt: skip
    """Run an artifact's comparison with PyTorch again, here; with a checkpoint, on expectations computed anew.

    seed: of an earlier run's report, to repeat what it drew.
    Raises: ArtifactError, MissingExtraError, UnavailableError; ParityError when the check gives no verdict.

    Example:
        >>> report = samx.validate("tiny")
        >>> report.passed
        True
    """
    from samx.commands.validate import validate as run

    path = artifact.path if isinstance(artifact, Artifact) else Path(artifact)
    weights = None if checkpoint is None else Path(checkpoint)
    return run(path, device=device, threads=threads, checkpoint=weights, seed=seed)


def load(checkpoint: PathLike | None = None, family: str = "sam1", **options: Any) -> FastDecoder:
    """Return a checkpoint's decoder (None: the demo model of `family`) as a PyTorch module in its fast form.

    options: those of samx.models.load.load().
    Raises: as there; UsageError for a family without a demo model.

    Example:
        >>> decoder = samx.load("sam_vit_b_01ec64.pth")
    """
    from samx.demo import demo_checkpoint
    from samx.models.load import load as load_decoder

    return load_decoder(demo_checkpoint(family) if checkpoint is None else Path(checkpoint), **options)
