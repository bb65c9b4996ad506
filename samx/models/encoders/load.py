"""Find the image encoder of a checkpoint: its keys tell which one it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from samx.models.checkpoint import LoadedDecoder
from samx.models.encoders.base import Architecture, Encoder


@dataclass(frozen=True)
class LoadedEncoder:
    """Bundle an image encoder that is ready to infer, and what people should read about it."""

    architecture: Architecture
    module: Encoder
    notes: tuple[str, ...] = ()


def find_encoder(path: Path, loaded: LoadedDecoder) -> LoadedEncoder | None:
    """Build the image encoder beside a decoder; None where there is none whose architecture is known."""
    return None
