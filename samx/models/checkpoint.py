"""Load the decoder of a trained checkpoint, whoever saved it: the keys tell what it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samx.errors import CheckpointError
from samx.models.families import find, known, recognise
from samx.models.families.base import ENCODER_KEY, HUGGING_FACE_MARK, RELATIVES, Family
from samx.models.keras_files import KERAS_FORMAT
from samx.models.lora import weight_readers
from samx.models.object_pointer import PARTS as POINTER_PARTS
from samx.models.reference import ReferenceDecoder
from samx.models.spec import HIGH_RES_CHANNELS, DecoderSpec, family_spec
from samx.models.stated import (
    DEMO_FORMAT,
    assumed_note,
    check_configuration,
    check_size,
    resized_note,
    stated_fields,
    stated_sizes,
)
from samx.models.weight_files import WANTED, WeightSource, open_weights
from samx.models.weights import check_finite, check_floats, owned_float32, refuse_quantised, some

OBJECT_TOKEN, HIGH_RES_PART = "mask_decoder.obj_score_token.weight", "mask_decoder.conv_s0."
IOU_LAYER = "mask_decoder.iou_prediction_head.layers.0.weight"
# Spec field -> (key, axis) whose length it is.
SIZE_KEYS: Mapping[str, tuple[str, int]] = {
    "width": ("mask_decoder.mask_tokens.weight", 1),
    "mask_tokens": ("mask_decoder.mask_tokens.weight", 0),
    "mlp_width": ("mask_decoder.transformer.layers.0.mlp.lin1.weight", 0),
    "cross_attention_width": ("mask_decoder.transformer.layers.0.cross_attn_token_to_image.q_proj.weight", 0),
}
# Of some families.
MORE_SIZE_KEYS: Mapping[str, tuple[str, int]] = {"interm_width": ("mask_decoder.compress_vit_feat.0.weight", 0)}
MASK_KEYS: Mapping[str, tuple[str, int]] = {"mask_prompt_channels": ("prompt_encoder.mask_downscaling.3.weight", 0)}
# Spec field -> stem of the numbered layers that it counts.
DEPTH_STEMS: Mapping[str, str] = {
    "depth": "mask_decoder.transformer.layers",
    "iou_head_depth": "mask_decoder.iou_prediction_head.layers",
    "object_score_head_depth": "mask_decoder.pred_obj_score_head.layers",
}


@dataclass(frozen=True)
class LoadedDecoder:
    """Bundle a decoder's weights, in float32 under Meta's SAM 1 names, and where they come from."""

    spec: DecoderSpec
    weights: dict[str, Tensor]
    name: str
    sha256: str
    bytes: int
    kind: str
    dtype: str
    own_px: int | None = None  # the image size that its weights have; None: they have none
    prefix: str | None = None  # in front of its keys, where there was a choice of decoders
    notes: tuple[str, ...] = ()  # what was assumed of it


def load_checkpoint(
    path: Path, *, image_size: int | None = None, frame: str | None = None, pixels: str | None = None,
    decoder: str | None = None, object_pointer: bool = False,
) -> LoadedDecoder:  # fmt: skip
    """Read the decoder, and only the decoder, out of a checkpoint.

    image_size, frame, pixels: as in DecoderSpec; None: what the checkpoint states, or else its family's.
    decoder: how the keys of the one that is meant begin, where there are several.
    object_pointer: read what makes object pointers too; the spec then has them.
    Raises: CheckpointError when it holds no supported decoder, not exactly one, or a damaged one.
    """
    source = open_weights(path)
    readers = weight_readers(source)
    family = recognise(readers)
    _refuse_relatives(source, family, readers)
    family = _told_from_twin(source, family, readers, image_size)
    prefix = _only_prefix(path, family, readers, decoder)
    names = family.decoder_names(readers, prefix)
    names |= _pointer_names(path, family, readers, prefix) if object_pointer else {}
    refuse_quantised(path, names)
    raw = [(key, name, readers[key]()) for key, name in names.items() if name not in family.left_out]
    weights = _convert(path, family, raw)
    sizes, given = stated_sizes(source, family, readers), {"image_size": image_size, "frame": frame, "pixels": pixels}
    stated = stated_fields(source, family, readers, sizes, given)
    spec = _spec(path, family, weights, list(names.values()), {**stated, "object_pointer": object_pointer})
    unasked = stated_fields(source, family, readers, sizes, dict.fromkeys(given))
    is_demo = source.metadata.get("format") == DEMO_FORMAT
    check_configuration(source, family, replace(spec, **sizes))
    _check_shapes(path, spec, weights)
    check_finite(path, weights)
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for _, _, tensor in raw})
    return LoadedDecoder(
        spec=spec, weights=weights, name=source.name, sha256=source.sha256(), bytes=source.bytes,
        kind=_kind(source, names, family), dtype="+".join(dtypes),
        own_px=None if is_demo else unasked.get("image_size", family_spec(family.name).image_size),
        prefix=None if decoder is None else prefix,
        notes=assumed_note(family, stated, spec) + resized_note(sizes, spec),
    )  # fmt: skip


def build_reference(loaded: LoadedDecoder) -> ReferenceDecoder:
    """Return the reference form with the loaded weights, ready to infer and not to train."""
    spec = loaded.spec
    decoder: ReferenceDecoder = spec.rules.reference_class(spec.object_pointer)(spec)
    decoder.load_state_dict(loaded.weights)
    return decoder.eval().requires_grad_(False)


def _refuse_relatives(source: WeightSource, found: Family, keys: Iterable[str]) -> None:
    families = known().values()
    titles = {family.title for family in families}
    for relative in RELATIVES:
        mark = next((key for key in keys if re.search(relative.mark, key)), None)
        if mark is not None and relative.title not in titles and relative.family != found.name:
            raise CheckpointError(
                f"'{source.path}' holds {relative.title}, which samx does not support",
                found=f"key '{mark}'", expected="a decoder of SAM, SAM 2 or SAM 3", fix=f"{relative.fix}.",
            )  # fmt: skip
    model_type, types = source.config.get("model_type"), [name for family in families for name in family.model_types]
    if model_type is not None and model_type not in types:
        raise CheckpointError(
            f"'{source.path}' belongs to a model that samx does not support",
            found=f"model_type '{model_type}' in config.json", expected=" or ".join(types),
            fix="Use a checkpoint of SAM, SAM 2 or SAM 3.",
        )  # fmt: skip


def _only_prefix(path: Path, family: Family, keys: Iterable[str], decoder: str | None) -> str:
    found = family.prefixes(keys)
    meant = [prefix for prefix in found if decoder is None or prefix.startswith(decoder)]
    if len(meant) == 1:
        return meant[0]
    if found:
        problem = "more than one decoder" if decoder is None else f"not one decoder whose keys begin with '{decoder}'"
        names = [prefix.rstrip("._") for prefix in found]
        raise CheckpointError(
            f"'{path}' holds {problem}", found="prefixes " + some(repr(p) for p in found), expected="one",
            fix=f"Say which: --decoder {names[-1]}; or save the one you mean in a file of its own.",
        )  # fmt: skip
    if any(ENCODER_KEY.search(key) for key in keys):
        raise CheckpointError(
            f"'{path}' holds an image encoder without a decoder", found="keys " + some(keys),
            expected="keys 'prompt_encoder.*' and 'mask_decoder.*'", fix="Use the complete checkpoint.",
        )  # fmt: skip
    raise CheckpointError(
        f"'{path}' is not a Segment Anything checkpoint", found="keys " + (some(keys) or "none"),
        expected=WANTED, fix="Check which file it is.",
    )  # fmt: skip


def _pointer_names(path: Path, family: Family, keys: Iterable[str], prefix: str) -> dict[str, str]:
    """Map the keys of what makes object pointers.

    Raises: CheckpointError where there is none.
    """
    names = family.names_of(POINTER_PARTS, keys, prefix) if family.pointing else {}
    if not names or OBJECT_TOKEN not in family.decoder_names(keys, prefix).values():
        raise CheckpointError(
            f"'{path}' has no object pointer that samx knows", found=f"{family.title}, keys {some(names) or 'none'}",
            expected="'obj_ptr_proj.*', 'no_obj_ptr' and an object score, of SAM 2's whole checkpoint",
            fix="Leave --object-pointer out.",
        )  # fmt: skip
    return names


def _told_from_twin(source: WeightSource, family: Family, keys: Iterable[str], image_size: int | None) -> Family:
    """Return the family of a decoder alone that may as well be another model's: its configuration or its frame tells.

    Raises: CheckpointError where neither does.
    """
    is_demo = source.metadata.get("format") == DEMO_FORMAT
    if not family.twin or is_demo or any(re.search(family.evidence, key) for key in keys):
        return family
    twins = family, find(family.twin)
    model_type, noted = source.config.get("model_type"), source.metadata.get("image_size", "")
    size = int(noted) if image_size is None and noted.isdecimal() else image_size
    by_type = [of for of in twins if model_type in of.model_types]
    by_frame = [of for of in twins if size is not None and size % of.frame_step_px == 0]
    if by_type or by_frame or noted:
        return next(iter(by_type or by_frame), family)
    frames = [f"--image-size {family_spec(of.name).image_size} for {of.title}" for of in twins]
    raise CheckpointError(
        f"'{source.path}' holds a decoder alone, which may be of {twins[0].title} or of {twins[1].title}",
        found="no image encoder" + ("" if size is None else f", and an image size of {size} px"),
        expected="the complete checkpoint, or the frame", fix=f"State it: {' or '.join(frames)}.",
    )  # fmt: skip


def _convert(path: Path, family: Family, raw: Iterable[tuple[str, str, Tensor]]) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for key, name, tensor in raw:
        check_floats(path, key, tensor)
        for part_name, part in _parts(family, name, tensor):
            value = owned_float32(part)
            if part_name in weights and not torch.equal(weights[part_name], value):
                raise CheckpointError(
                    f"'{path}' holds two different values of '{part_name}'", found=f"the second is '{key}'",
                    expected="equal ones, or one", fix="Save the model again from its trained state.",
                )  # fmt: skip
            weights[part_name] = value
    return weights


def _parts(family: Family, name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    if name not in family.tables:
        return [(name, tensor)]
    return [(family.tables[name].format(i), tensor[i : i + 1]) for i in range(len(tensor))]


def _spec(
    path: Path, family: Family, weights: Mapping[str, Tensor], names: list[str], stated: Mapping[str, Any]
) -> DecoderSpec:
    released = family_spec(family.name)
    fields = {
        "image_size": released.image_size,
        "patch_px": released.patch_px,
        **family.spec,
        "high_res_features": any(HIGH_RES_PART in name for name in names),
        "object_score": OBJECT_TOKEN in weights,
        **_sizes(path, weights, {**SIZE_KEYS, **MASK_KEYS} if family.takes_masks else SIZE_KEYS),
        **stated,
    }
    lacking = [name for name in family.left_out if name not in names]
    if lacking and len(lacking) < len(family.left_out):
        raise _other_weights(path, "lacks weights", lacking)
    check_size(path, fields["image_size"], fields["patch_px"])
    spec = DecoderSpec(**{**fields, "family": family.name})
    _check_widths(path, spec)
    return spec


def _sizes(path: Path, weights: Mapping[str, Tensor], needed: Mapping[str, tuple[str, int]]) -> dict[str, int]:
    missing = [key for key, axis in needed.values() if key not in weights or weights[key].ndim <= axis]
    if missing:
        raise CheckpointError(
            f"the decoder in '{path}' is incomplete", found="no usable " + some(dict.fromkeys(missing)),
            expected="every weight of a SAM decoder",
            fix="Use the complete checkpoint; merge a peft adapter into its model first (merge_and_unload()).",
        )  # fmt: skip
    keys = {**needed, **{field: place for field, place in MORE_SIZE_KEYS.items() if place[0] in weights}}
    sizes = {field: weights[key].shape[axis] for field, (key, axis) in keys.items()}
    # A head that is one linear layer has no numbered layers.
    sizes |= {field: max(1, _count_layers(weights, stem)) for field, stem in DEPTH_STEMS.items()}
    if OBJECT_TOKEN not in weights:
        del sizes["object_score_head_depth"]
    first = weights.get(IOU_LAYER)
    return sizes if first is None or first.ndim == 0 else {**sizes, "iou_head_width": first.shape[0]}


def _count_layers(keys: Iterable[str], stem: str) -> int:
    pattern = re.compile(re.escape(stem) + r"\.(\d+)\.")
    return len({match[1] for key in keys if (match := pattern.match(key))})


def _check_widths(path: Path, spec: DecoderSpec) -> None:
    splits = spec.heads > 0 and spec.width % spec.heads == 0 and spec.cross_attention_width % spec.heads == 0
    skips = (spec.width // 8, spec.width // 4)
    if splits and (skips == HIGH_RES_CHANNELS or not spec.high_res_features):
        return
    raise CheckpointError(
        f"the decoder in '{path}' has a width that SAM's do not have",
        found=f"{spec.width} and {spec.cross_attention_width} for {spec.heads} heads", expected="256 and 128 for 8",
        fix="Use a SAM or SAM 2 checkpoint.",
    )  # fmt: skip


def _check_shapes(path: Path, spec: DecoderSpec, weights: Mapping[str, Tensor]) -> None:
    with torch.device("meta"):  # shapes without memory
        plain = spec.rules.reference_class(spec.object_pointer)(spec)
    expected = {key: tuple(tensor.shape) for key, tensor in plain.state_dict().items()}
    found = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    problems = {
        "lacks weights": [key for key in expected if key not in found],
        "has weights that SAM's does not have": [key for key in found if key not in expected],
        "has weights of the wrong shape": [
            f"{key} {found[key]} instead of {expected[key]}"
            for key in expected
            if key in found and found[key] != expected[key]
        ],
    }
    for problem, items in problems.items():
        if items:
            raise _other_weights(path, problem, items)


def _other_weights(path: Path, problem: str, items: Iterable[str]) -> CheckpointError:
    return CheckpointError(
        f"the decoder in '{path}' {problem}", found=some(items), expected="the decoder of SAM or SAM 2",
        fix="Use the complete checkpoint of an unchanged decoder.",
    )  # fmt: skip


def _kind(source: WeightSource, keys: Iterable[str], family: Family) -> str:
    if source.metadata.get("format") == DEMO_FORMAT:
        return f"samx {family.title} demo model"
    if source.metadata.get("format") == KERAS_FORMAT:
        return f"Keras Hub {family.title} preset"
    if any(HUGGING_FACE_MARK.search(key) for key in keys):
        return f"Hugging Face {family.title} model"
    return f"{family.publisher} {family.title} checkpoint"
