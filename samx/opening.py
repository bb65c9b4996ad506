"""Opens an artifact as a predictor."""

from __future__ import annotations

from pathlib import Path

from samx.artifacts.store import Artifact
from samx.picture_encoder import PictureEncoder
from samx.predictor import Predictor
from samx.processing.embeddings import encoder_id
from samx.registry import open_session


def open_predictor(
    artifact: Artifact, device: str = "cpu", threads: int | None = None, *, encoder: Path | None = None,
    pixels: str | None = None, prepare: bool = False,
) -> Predictor:  # fmt: skip
    """Open a verified artifact where its target runs; with `prepare` its image encoder too, before the first picture.

    Raises: MissingExtraError, UnavailableError; ArtifactError when a file cannot be loaded.
    """
    session = open_session(artifact, device, threads)
    encode = PictureEncoder(artifact, encoder, pixels, device, threads)
    if prepare:
        encode.prepare()
    return Predictor(session, encode, device, encoder_id(artifact.manifest), threads)
