"""What a checkpoint states of its decoder beside the decoder's weights: its configuration, its sizes, its model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from samx.errors import CheckpointError
from samx.models.encoders.load import architecture_of
from samx.models.families.base import Family
from samx.models.families.configuration import (
    BOOKKEEPING,
    COMPLETE,
    RANGES,
    READ,
    SIZED_SECTIONS,
    SIZES,
    sections_of,
)
from samx.models.spec import DecoderSpec, family_spec
from samx.models.weight_files import Reader, WeightSource

GRIDS = (2, 256)  # image tokens a side: the smallest with neighbours; 16 times the released area
DEMO_FORMAT = "samx_demo"
# An image encoder of SAM's: a position for each token, (1, G, G, C), and the kernel that makes a token of pixels.
POSITIONS = re.compile(r"(?:^|\.)(?:image_encoder|vision_encoder)\.pos_embed$")
PATCHES = re.compile(r"(?:^|\.)(?:image_encoder|vision_encoder)\.patch_embed\.(?:proj|projection)\.weight$")
# Spec field -> option that states it; the family's own value holds where nothing does.
OPTIONS: Mapping[str, str] = {"image_size": "--image-size", "frame": "--frame", "pixels": "--pixels"}


class Statement(NamedTuple):
    """Hold a spec field's value and where a checkpoint says it."""

    field: str
    value: Any
    where: str


def stated_sizes(source: WeightSource, family: Family, readers: Mapping[str, Reader]) -> dict[str, Any]:
    """Return the spec's sizes that the file states.

    Raises: CheckpointError for statements that contradict each other.
    """
    return _agreed(source.path, [*_sizes(source, family, readers)])


def stated_fields(
    source: WeightSource, family: Family, readers: Mapping[str, Reader], sizes: Mapping[str, Any],
    given: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Return the spec's fields that the file or the caller states; `given` has the caller's, None where unstated.

    Raises: CheckpointError where the caller contradicts the file, and for a configuration of other types.
    """
    fields: dict[str, Any] = {}
    for variant in family.variants:
        if any(re.search(variant.mark, key) and _ends(reader, variant.shape) for key, reader in readers.items()):
            fields |= variant.spec
    stated, asked = sizes.get("image_size"), given["image_size"]
    if None not in (stated, asked) and stated != asked and not _resizes(family, readers, asked):
        raise CheckpointError(
            f"'{source.path}' states another image size", found=f"{stated} px", expected=f"{asked} px",
            fix="Leave the image size out.",
        )  # fmt: skip
    fields |= {**sizes, **{name: value for name, value in given.items() if value is not None}}
    if source.metadata.get("format") == DEMO_FORMAT:
        released = family_spec(family.name)
        fields = {"image_size": released.image_size, "frame": released.frame, "pixels": "unit", **fields}
    return {**fields, **_configured(source, family)}


def _resizes(family: Family, readers: Mapping[str, Reader], image_size: int) -> bool:
    """Tell whether there is an image encoder that can be built for this size."""
    architecture = architecture_of(family, readers)
    return architecture is not None and architecture.size_step > 0 and image_size % architecture.size_step == 0


def _ends(reader: Reader, shape: tuple[int, ...]) -> bool:
    return not shape or tuple(reader().shape[-len(shape) :]) == shape


def _agreed(path: Path, statements: list[Statement]) -> dict[str, Any]:
    """Join what is said in several places."""
    found: dict[str, Statement] = {}
    for said in statements:
        first = found.setdefault(said.field, said)
        if first.value != said.value:
            raise CheckpointError(
                f"'{path}' contradicts itself", found=f"{said.field} {said.value} in {said.where}",
                expected=f"{first.value}, as in {first.where}", fix="Restore the file that was changed.",
            )  # fmt: skip
    return {name: said.value for name, said in found.items()}


def _sizes(source: WeightSource, family: Family, readers: Mapping[str, Reader]) -> Iterator[Statement]:
    note = source.metadata.get("image_size")
    if note is not None:
        yield Statement("image_size", int(note) if note.isdecimal() else note, "its metadata")
    for section in SIZED_SECTIONS:
        for name, theirs in SIZES.items():
            value = plain(section_of(source, section).get(theirs))
            if value is not None and theirs in family.configuration.get(section, ()):
                yield Statement(name, value, f"config.json, {section}.{theirs}")
    yield from _encoder_sizes(family, readers)


def _encoder_sizes(family: Family, readers: Mapping[str, Reader]) -> Iterator[Statement]:
    """Read the sizes off the shapes of an image encoder that has a position for each image token."""
    kernels, patch_px = list(_arrays(readers, PATCHES)), family_spec(family.name).patch_px
    for key, table in _arrays(readers, POSITIONS):
        for of, kernel in kernels:
            patch_px = plain(list(kernel.shape[-2:]))
            yield Statement("patch_px", patch_px, f"the shape of '{of}'")
        if type(patch_px) is int:
            yield Statement(
                "image_size", plain([patch_px * side for side in table.shape[1:3]]), f"the shape of '{key}'"
            )


def _arrays(readers: Mapping[str, Reader], name: re.Pattern[str]) -> Iterator[tuple[str, Tensor]]:
    found = ((key, reader()) for key, reader in readers.items() if name.search(key))
    return ((key, array) for key, array in found if array.ndim == 4)


def section_of(source: WeightSource, name: str) -> Mapping[str, Any]:
    """Return a section of config.json; empty where there is none.

    Raises: CheckpointError where it is something else.
    """
    section = next(iter(sections_of(source.config, name)), None)
    if section is not None and not isinstance(section, Mapping):
        raise _wrong_type(source, name, section, "an object")
    return section or {}


def plain(value: Any) -> Any:
    """Return the one number of a square's two."""
    return value[0] if isinstance(value, list) and len(value) == 2 and value[0] == value[1] else value


def _configured(source: WeightSource, family: Family) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for ours, (section, theirs) in READ.items():
        if theirs not in family.configuration.get(section, ()) or theirs not in section_of(source, section):
            continue
        value, wanted = section_of(source, section)[theirs], type(getattr(DecoderSpec, ours))
        if type(value) is not wanted:
            raise _wrong_type(source, theirs, value, wanted.__name__)
        least, most = RANGES[ours]
        if not least <= value <= most:
            raise _wrong_type(source, theirs, value, f"{least} to {most}")
        fields[ours] = value
    return fields


def _wrong_type(source: WeightSource, name: str, value: Any, wanted: str) -> CheckpointError:
    return CheckpointError(
        f"config.json of '{source.path}' has a value that no decoder can have", found=f"{name} = {value!r}",
        expected=wanted, fix="Restore the file.",
    )  # fmt: skip


def check_configuration(source: WeightSource, family: Family, spec: DecoderSpec) -> None:
    """Refuse a configuration that says of the decoder what samx does not compute, or does not know.

    Raises: CheckpointError naming the field.
    """
    model_type = source.config.get("model_type")
    if model_type is not None and family.model_types and model_type not in family.model_types:
        raise CheckpointError(
            f"'{source.path}' contradicts itself", found=f"model_type {model_type!r} in config.json",
            expected=f"{' or '.join(family.model_types)}, as its weights are {family.title}'s",
            fix="Restore the file that was changed.",
        )  # fmt: skip
    for section, rules in family.configuration.items():
        for name, value in section_of(source, section).items():
            if name in rules and plain(value) != rules[name](spec):
                raise CheckpointError(
                    f"the decoder in '{source.path}' differs from {family.title}'s",
                    found=f"{section}.{name} = {value!r} in config.json", expected=f"{rules[name](spec)!r}",
                    fix="Use a decoder that was trained unchanged; restore the file if it was edited.",
                )  # fmt: skip
            if name not in rules and name not in BOOKKEEPING and section in COMPLETE:
                raise CheckpointError(
                    f"config.json of '{source.path}' has a field that samx does not know",
                    found=f"{section}.{name} = {value!r}", expected=", ".join(rules),
                    fix="If the decoder computes the same without it, take it out of a copy of the file.",
                )  # fmt: skip


def check_size(path: Path, size: Any, patch_px: Any) -> None:
    """Refuse a frame that no decoder has.

    Raises: CheckpointError.
    """
    smallest, largest = GRIDS
    if type(patch_px) is not int or not 1 <= patch_px <= largest:
        raise CheckpointError(
            f"patch size for '{path}' cannot be used", found=f"{patch_px} px", expected="a number, for both sides",
            fix="Use a checkpoint of an unchanged encoder.",
        )  # fmt: skip
    if type(size) is int and size % patch_px == 0 and smallest * patch_px <= size <= largest * patch_px:
        return
    raise CheckpointError(
        f"image size for '{path}' cannot be used", found=f"{size} px",
        expected=f"a multiple of {patch_px} from {smallest * patch_px} to {largest * patch_px} px, for both sides",
        fix="Give the size that the model was trained at.",
    )  # fmt: skip


def resized_note(sizes: Mapping[str, Any], spec: DecoderSpec) -> tuple[str, ...]:
    """Return the line that says that the model is built for another size than its own."""
    own = sizes.get("image_size", spec.image_size)
    return (
        ()
        if own == spec.image_size
        else (f"The checkpoint states {own} px; built for {spec.image_size} px, as asked.",)
    )


def assumed_note(family: Family, stated: Mapping[str, Any], spec: DecoderSpec) -> tuple[str, ...]:
    """Return the line that says what was assumed, and the options that state it; nothing where all was stated."""
    assumed = [
        f"{name.replace('_', ' ')} {getattr(spec, name)} ({option})"
        for name, option in OPTIONS.items()
        if name not in stated
    ]
    if not assumed:
        return ()
    return (f"The checkpoint does not state these; assumed as for {family.title}: {', '.join(assumed)}.",)
