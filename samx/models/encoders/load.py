"""Find the image encoder in a checkpoint: its keys tell which one it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from samx.errors import CheckpointError
from samx.models.encoders.base import Architecture, Encoder, Weights, refused
from samx.models.families.base import Family
from samx.models.families.configuration import sections_of
from samx.models.lora import weight_readers
from samx.models.spec import DecoderSpec
from samx.models.weight_files import Reader, WeightSource
from samx.models.weights import check_finite, check_floats, owned_float32, refuse_quantised, some

# Names of an encoder's weights: after this, and those of SAM 2's that lie beside it.
PREFIX = re.compile(r"^(?P<prefix>(?:.*?\.)?)(?:image_encoder|vision_encoder)\.")
BESIDE: tuple[tuple[str, str], ...] = (
    (r"^(?:no_mem_embed|no_memory_embedding)$", "no_mem_embed"),
    (r"^(?:sam_)?mask_decoder\.(conv_s[01]\.(?:weight|bias))$", r"\1"),
)


@dataclass(frozen=True)
class LoadedEncoder:
    """Pair an image encoder with its architecture."""

    architecture: Architecture
    module: Encoder


class Found(NamedTuple):
    """Hold a checkpoint's image encoder, None where it has none that is known, and what the user should know of it."""

    encoder: LoadedEncoder | None
    notes: tuple[str, ...] = ()


def architecture_of(family: Family, keys: Iterable[str]) -> Architecture | None:
    """Return the architecture that the keys of a checkpoint show."""
    names = {match.string[match.end() :] for key in keys if (match := PREFIX.match(family.place(key)))}
    known: list[Architecture] = [import_module(module).ENCODER for module in family.encoders]
    return next((one for one in known if one.has(one.renamed(name) for name in names)), None)


def find_encoder(source: WeightSource, spec: DecoderSpec, prefix: str | None = None) -> Found:
    """Build the image encoder in a checkpoint, for the frame of its decoder; prefix: of the one that was chosen.

    Raises: CheckpointError for half of one, for one of sizes that are not known, and for weights that are no numbers.
    """
    readers = weight_readers(source)
    places = {key: spec.rules.place(key) for key in spec.rules.without_others(readers, prefix)}
    prefixes = sorted({match["prefix"] for place in places.values() if (match := PREFIX.match(place))})
    if not prefixes:
        return Found(None)
    refuse_quantised(source.path, (key for key, place in places.items() if PREFIX.match(place)))
    architecture = architecture_of(spec.rules, readers)
    if architecture is None:
        keys = some(key for key, place in places.items() if PREFIX.match(place))
        return Found(None, (f"The checkpoint's image encoder is none that samx knows ({keys}): it is left out.",))
    if len(prefixes) > 1:
        raise CheckpointError(
            f"'{source.path}' holds more than one image encoder", found=f"prefixes {some(map(repr, prefixes))}",
            expected="one", fix="Save the one you mean in a file of its own, or export with --no-encoder.",
        )  # fmt: skip
    weights = read_weights(source.path, readers, architecture, encoder_names(architecture, prefixes[0], places))
    check_configuration(source, architecture.configuration(weights))
    module = architecture.build(weights, spec)
    check_outputs(architecture, module, spec)
    return Found(LoadedEncoder(architecture, module), module.notes)


def read_weights(
    path: Path, readers: Mapping[str, Reader], architecture: Architecture, names: Mapping[str, str]
) -> Weights:
    """Return the weights of these keys in float32, under upstream's names.

    Raises: CheckpointError for weights that are there twice, or are no numbers.
    """
    twice = [key for key, name in names.items() if list(names.values()).count(name) > 1]
    if twice:
        raise refused(architecture.title, "has weights twice", some(twice), "each once")
    weights: dict[str, Tensor] = {}
    for key, name in names.items():
        tensor = readers[key]()
        check_floats(path, key, tensor)
        weights[name] = owned_float32(tensor)
    check_finite(path, weights)
    return weights


def check_configuration(source: WeightSource, expected: Mapping[str, Any]) -> None:
    """Refuse a configuration that says of the encoder what samx does not compute.

    Raises: CheckpointError naming the field.
    """
    for name, value in expected.items():
        for found in sections_of(source.config, "vision_config"):
            for part in name.split("."):
                found = found.get(part, value) if isinstance(found, Mapping) else value
            if found in (value, [value, value]):
                continue
            raise CheckpointError(
                f"the image encoder in '{source.path}' differs from the released",
                found=f"vision_config.{name} = {found!r} in config.json", expected=f"{value!r}",
                fix="Restore the file if it was edited, or export with --no-encoder.",
            )  # fmt: skip


def check_outputs(architecture: Architecture, module: Encoder, spec: DecoderSpec) -> None:
    """Refuse an encoder whose features are not of the decoder's shapes; nothing is computed.

    Raises: CheckpointError.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        outputs = module(torch.empty(1, 3, module.picture_px, module.picture_px))
    found = [tuple(output.shape) for output in outputs]
    expected = [tensor.shape for tensor in spec.image_inputs]
    if found != expected:
        raise refused(architecture.title, "does not fit the decoder beside it", found, str(expected))


def encoder_names(architecture: Architecture, prefix: str, places: Mapping[str, str]) -> Mapping[str, str]:
    """Map the keys of an encoder's weights, and of those beside it, to upstream's names; `places` as if all lay as in
    SAM's checkpoints.
    """
    names: dict[str, str] = {}
    for key, place in ((key, place) for key, place in places.items() if place.startswith(prefix)):
        match, rest = PREFIX.match(place), place.removeprefix(prefix)
        beside = [re.sub(pattern, name, rest) for pattern, name in BESIDE if re.match(pattern, rest)]
        for name in [architecture.renamed(place[match.end() :])] if match else beside:
            names[key] = name
    return {key: name for key, name in names.items() if not any(re.search(of, name) for of in architecture.unused)}
