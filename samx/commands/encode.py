"""Keep what an artifact's image encoder makes of a picture, for any number of prompts later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samx.artifacts.commit import write_file
from samx.artifacts.store import Artifact
from samx.errors import UsageError
from samx.picture_encoder import PictureEncoder
from samx.processing.embeddings import SUFFIX, Tag, embedding_bytes, encoder_id
from samx.processing.images import check_free, read_image
from samx.processing.rasters import Levels
from samx.progress import Progress, silent
from samx.registry import backend


def encode(
    image: Path, model: Path, output: Path, *, levels: Levels | None = None, device: str = "cpu",
    threads: int | None = None, overwrite: bool = False, progress: Progress = silent,
) -> dict[str, Any]:  # fmt: skip
    """Encode a picture with an artifact's own encoder, and write its embedding with a tag; return what was written.

    Raises: UsageError for an artifact without an encoder; ArtifactError, ImageError, UnavailableError, WriteError.
    """
    if output.suffix.lower() != SUFFIX:
        fix = f"Name it {output.with_suffix(SUFFIX).name}."
        raise UsageError(f"'{output}' is not written", found=output.suffix or "no suffix", expected=SUFFIX, fix=fix)
    check_free(output, overwrite)
    artifact = Artifact.open(model)
    backend(artifact.manifest.target).require_device(device)
    picture = read_image(image, levels)
    progress(f"Encoding {image.name}")
    (features,) = PictureEncoder(artifact, device=device, threads=threads)([picture])
    encoder, (height, width) = encoder_id(artifact.manifest), picture.shape[:2]
    assert encoder is not None  # it has just run
    data = embedding_bytes(features, Tag.of(encoder, picture))
    write_file(output, data)
    shapes = {name: list(value.shape) for name, value in features.items()}
    summary = f"wrote {output}: {', '.join(shapes)} of a picture of {width} x {height} px"
    return {
        "embedding": str(output), "encoder": encoder, "original_size": [height, width], "arrays": shapes,
        "bytes": len(data), "summary": summary,
    }  # fmt: skip
