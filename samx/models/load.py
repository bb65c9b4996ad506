"""A checkpoint's decoder as a PyTorch module in its fast form, for code that stays in PyTorch (docs/pytorch.md)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from samx.errors import UnavailableError, UsageError
from samx.extras import require
from samx.models.spec import MaskChoice

if TYPE_CHECKING:
    import torch

    from samx.models.fast.decoder import FastDecoder, Form

PURPOSE = "samx.load()"
DTYPES = ("float32", "float16", "bfloat16")
FORMS = ("low_rank", "absorbed", "direct")
USUAL_POINTS = 8  # a prompt's, padding counted: a box and a few clicks


def load(
    checkpoint: str | Path, *, masks: MaskChoice = "multimask", mask_input: bool = False,
    image_size: int | None = None, decoder: str | None = None, points: int = USUAL_POINTS, padded_points: bool = False,
    object_pointer: bool = False, form: Form | None = None,
    dtype: torch.dtype | None = None, device: str | torch.device = "cpu",
) -> FastDecoder:  # fmt: skip
    """Return a checkpoint's decoder as a module that is ready to infer.

    Once an image: state = decoder.image_state(**features). Then, for any number of prompts on it,
    decoder.decode(state, point_coords, point_labels[, mask_input, has_mask_input]) returns what decoder.spec.outputs
    names; decoder(**features, **prompts) does both. Inputs and outputs are float32 whatever the dtype.

    decoder: which one of a checkpoint of several, as 'samx export --decoder' takes it.
    points: a prompt's usual number, padding counted, that the form is chosen for; any number works.
    padded_points: points labelled -2 are as good as absent, for calls of one fixed shape.
    object_pointer: return what a video's loop keeps of an object too (SAM 2).
    dtype: torch.float32 (None), float16 or bfloat16; the encoding of coordinates stays float32.
    Raises: MissingExtraError, CheckpointError; UsageError for what does not go together; UnavailableError for a device
    that is not there.
    """
    torch, _ = (require(library, "export", PURPOSE) for library in ("torch", "safetensors"))
    from samx.models.checkpoint import build_reference, load_checkpoint
    from samx.models.fast.decoder import FastDecoder, choose_form
    from samx.models.fast.precision import set_precision

    where, dtype = torch_device(device), torch.float32 if dtype is None else dtype
    _check("dtype", str(dtype).removeprefix("torch."), DTYPES)
    _check("masks", masks, get_args(MaskChoice))
    loaded = load_checkpoint(Path(checkpoint), image_size=image_size, decoder=decoder, object_pointer=object_pointer)
    spec = replace(loaded.spec, masks=masks, mask_input=mask_input)
    exact = dtype == torch.float32
    if points < 1:
        raise UsageError("no number of points to choose a form for", found=points, expected="at least 1")
    # Low-rank products are for a CPU in float32.
    chosen = form or choose_form(spec, points, low_rank=exact and where.type == "cpu")
    _check_form(chosen, exact)
    reference = build_reference(replace(loaded, spec=spec))
    module = FastDecoder(reference, chosen, fused=True, padded_points=padded_points)
    return (module if exact else set_precision(module, half=dtype)).to(where)


def torch_device(device: str | torch.device) -> torch.device:
    """Return a device of PyTorch's, seen to be there.

    Raises: UsageError for a name that it does not know; UnavailableError where it has none of this name.
    """
    import torch

    try:
        found = torch.device(device)
    except RuntimeError as cause:
        raise UsageError("PyTorch knows no such device", found=f"'{device}'", expected="cpu, cuda or cuda:0") from cause
    try:
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, ImportError) as cause:  # the last two from a build without it
        raise UnavailableError(
            f"PyTorch finds no {found.type.upper()} device", found=f"device '{device}'",
            expected="one that is there, and a build of torch for it", fix="Use --device cpu, or run 'samx doctor'.",
        ) from cause  # fmt: skip
    return found


def _check_form(form: str, exact: bool) -> None:
    _check("form", form, FORMS)
    if form == "low_rank" and not exact:
        raise UsageError(
            "the low_rank form cancels large sums, which half precision does not survive", found="half precision",
            expected="float32", fix="Choose form='absorbed' or 'direct', or none.",
        )  # fmt: skip


def _check(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"samx.load() knows no such {what}", found=value, expected=" or ".join(choices))
