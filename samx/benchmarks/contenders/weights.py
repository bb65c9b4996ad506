"""Put a checkpoint's weights into somebody else's modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from samx.errors import CheckpointError
from samx.models.checkpoint import LoadedDecoder
from samx.models.families.base import TABLES

POINT_LABELS = 4  # rows of the table that Hugging Face's SAM 2 keeps


def fill(model: nn.Module, loaded: LoadedDecoder) -> None:
    """Copy every decoder weight, whatever the model calls it.

    Raises: CheckpointError when the model has one that the checkpoint has not, or leaves one over.
    """
    state = model.state_dict()
    family = loaded.spec.rules
    names = family.decoder_names(state, "")
    taken = {key: _weight(loaded, name) for key, name in names.items() if not name.startswith(family.left_out)}
    missing = [key for key, weight in taken.items() if weight is None]
    left = set(loaded.weights) - set(_used(names.values()))
    if missing or left:
        raise CheckpointError("the peer's decoder has other weights", found=", ".join([*missing, *sorted(left)][:4]))
    with torch.no_grad():
        for key, weight in taken.items():
            assert weight is not None
            state[key].copy_(weight)


def _weight(loaded: LoadedDecoder, name: str) -> Tensor | None:
    if name not in TABLES:
        return loaded.weights.get(name)
    return torch.cat([loaded.weights[row] for row in _rows()])


def _rows() -> list[str]:
    return [f"prompt_encoder.point_embeddings.{i}.weight" for i in range(POINT_LABELS)]


def _used(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        yield from _rows() if name in TABLES else [name]
