"""Find the image encoder in a checkpoint: its keys tell which one it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from samx.models.encoders.base import Architecture, Encoder
from samx.models.spec import DecoderSpec
from samx.models.weight_files import WeightSource


@dataclass(frozen=True)
class LoadedEncoder:
    """Pair an image encoder with its architecture."""

    architecture: Architecture
    module: Encoder


class Found(NamedTuple):
    """Hold a checkpoint's image encoder, None where it has none that is known, and what the user should know of it."""

    encoder: LoadedEncoder | None
    notes: tuple[str, ...] = ()


def find_encoder(source: WeightSource, spec: DecoderSpec) -> Found:
    """Build the image encoder in a checkpoint, for the frame of its decoder."""
    return Found(None)
