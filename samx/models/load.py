"""samx.load(): the fast form as a PyTorch module, for code that stays in PyTorch (docs/pytorch.md)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from samx.demo import demo_checkpoint
from samx.errors import UsageError
from samx.extras import require
from samx.models.spec import DecoderSpec, Family, MaskChoice

if TYPE_CHECKING:
    import torch

    from samx.models.fast.decoder import FastDecoder, Form

PURPOSE = "samx.load()"
DTYPES = ("float32", "float16", "bfloat16")
FORMS = ("low_rank", "absorbed", "direct")
USUAL_POINTS = 8  # a prompt's, padding counted: a box and a few clicks


def load(
    checkpoint: str | Path | None = None, family: Family = "sam1", *, masks: MaskChoice = "multimask",
    mask_input: bool = False, image_size: int | None = None, points: int = USUAL_POINTS, slots: bool = False,
    form: Form | None = None, dtype: torch.dtype | None = None, device: str | torch.device = "cpu",
) -> FastDecoder:  # fmt: skip
    """Give a checkpoint's decoder (None: the demo model of `family`) as a module that is ready to infer.

    Once an image: state = decoder.image_state(**features). Then, for any number of prompts on it,
    decoder.decode(state, point_coords, point_labels[, mask_input, has_mask_input]) gives what decoder.spec.outputs
    names; decoder(**features, **prompts) does both. Inputs and outputs are float32 whatever the dtype.

    points: a prompt's usual number, padding counted, that the form is chosen for; any number works.
    slots: points labelled -2 are as good as absent, for calls of one fixed shape.
    dtype: torch.float32 (None), float16 or bfloat16; the encoding of coordinates stays float32.
    Raises: MissingExtraError, CheckpointError; UsageError for what does not go together; UnavailableError for a device
    that is not there.
    """
    torch, _ = (require(library, "export", PURPOSE) for library in ("torch", "safetensors"))
    from samx.models.checkpoint import build_reference, load_checkpoint
    from samx.models.fast.decoder import FastDecoder
    from samx.models.fast.precision import set_precision
    from samx.runtimes.torch import torch_device

    where, dtype = torch_device(device), torch.float32 if dtype is None else dtype
    _check("dtype", str(dtype).removeprefix("torch."), DTYPES)
    _check("masks", masks, get_args(MaskChoice))
    path = demo_checkpoint(family) if checkpoint is None else Path(checkpoint)
    loaded = load_checkpoint(path, image_size=image_size)
    spec = replace(loaded.spec, masks=masks, mask_input=mask_input)
    exact = dtype == torch.float32
    chosen = form or usual_form(spec, points, low_rank=exact and where.type == "cpu")
    _check_form(chosen, exact)
    decoder = FastDecoder(build_reference(replace(loaded, spec=spec)), chosen, fused=True, slots=slots)
    return (decoder if exact else set_precision(decoder, half=dtype)).to(where)


def usual_form(spec: DecoderSpec, points: int, low_rank: bool) -> Form:
    """Pick the form that is fastest for this many points; low-rank products are for a CPU in float32."""
    from samx.models.fast.decoder import choose_form

    if points < 1:
        raise UsageError("no number of points to choose a form for", found=points, expected="at least 1")
    return choose_form(spec, points, low_rank)


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
