"""Other people's decoders, built from their own code and filled with our checkpoint, to be measured beside ours."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

import torch
from torch import nn

from samx.errors import CheckpointError, UnavailableError
from samx.models.checkpoint import LoadedDecoder
from samx.models.families.base import TABLES

POINT_ROWS = [f"prompt_encoder.point_embeddings.{i}.weight" for i in range(4)]  # one table in Hugging Face's SAM 2


def require_peer(library: str) -> ModuleType:
    """Import somebody else's package.

    Raises: UnavailableError naming the command that sets all of them up.
    """
    if importlib.util.find_spec(library) is None:
        raise UnavailableError(
            f"comparing with '{library}' needs its package, which is not installed",
            fix="'make compare' installs it into an environment of its own.",
        )  # fmt: skip
    return importlib.import_module(library)


def fill(model: nn.Module, loaded: LoadedDecoder) -> None:
    """Copy every decoder weight into somebody else's modules, whatever they call it.

    Raises: CheckpointError when the model has one that the checkpoint has not, or leaves one over.
    """
    state = model.state_dict()
    family = loaded.spec.rules
    found = family.decoder_names(state, "").items()
    names = {key: name for key, name in found if not name.startswith(family.left_out)}
    rows = {key: POINT_ROWS if name in TABLES else [name] for key, name in names.items()}
    missing = [key for key, parts in rows.items() if not set(parts) <= set(loaded.weights)]
    left = set(loaded.weights) - {part for parts in rows.values() for part in parts}
    if missing or left:
        raise CheckpointError("the peer's decoder has other weights", found=", ".join([*missing, *sorted(left)][:4]))
    with torch.no_grad():
        for key, parts in rows.items():
            weights = [loaded.weights[part] for part in parts]
            state[key].copy_(torch.cat(weights) if len(weights) > 1 else weights[0])
