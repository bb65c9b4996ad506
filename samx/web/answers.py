"""What a served page asks: what the encoder makes of a picture is kept, and prompts on it are answered with logits."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from samx.artifacts.store import Artifact
from samx.artifacts.strict_json import Document
from samx.errors import ImageError, PromptError, SamxError
from samx.files import MIB
from samx.picture_encoder import PictureEncoder, framed_features
from samx.processing.images import read_image_bytes
from samx.processing.postprocess import predicted_masks
from samx.processing.prompts import Prompt, PromptBatch
from samx.registry import open_session
from samx.web.site import MOST_PX

KEPT_PICTURES = 4  # with their features: 4 MiB each of SAM, 16 MiB of SAM 2
PICTURE_CAP_BYTES = 128 * MIB  # a file of the most megapixels, hardly compressed


@dataclass(frozen=True)
class Question(Document):
    """Ask for the masks of one prompt. Units: px of the picture."""

    picture: str
    points: tuple[tuple[float, ...], ...]
    labels: tuple[int, ...]
    box: tuple[float, ...] | None

    def prompt(self) -> Prompt:
        """Return the prompt.

        Raises: PromptError when it cannot be meant.
        """
        return Prompt(self.points, self.labels, self.box)  # type: ignore[arg-type]  # Prompt checks the lengths


class Answers:
    """Answer questions one after the other, on the device that was asked for."""

    def __init__(self, artifact: Artifact, device: str, threads: int | None) -> None:
        """Open an artifact.

        Raises: MissingExtraError, UnavailableError, ArtifactError.
        """
        self._session = open_session(artifact, device, threads)
        self._encode = PictureEncoder(artifact, device=device, threads=threads)
        self._pictures: OrderedDict[str, Any] = OrderedDict()
        self._held, self._turn = "", threading.Lock()

    def take(self, data: bytes) -> dict[str, Any]:
        """Encode a picture file, keep it, and return the key to ask about it with, its size and the time.

        Raises: ImageError.
        """
        picture = read_image_bytes(data, MOST_PX)
        height, width = picture.shape[:2]
        with self._turn:
            start = time.perf_counter()
            (framed,) = framed_features(self._encode, self._session.spec, [picture])
            key, self._held = secrets.token_hex(8), ""
            self._pictures[key] = framed
            self._hold(key)
            while len(self._pictures) > KEPT_PICTURES:
                self._pictures.popitem(last=False)
            return {"picture": key, "width": width, "height": height, "ms": 1000 * (time.perf_counter() - start)}

    def ask(self, question: Question) -> bytes:
        """Return predicted IoUs and then logits, as float32, little-endian, of all masks to choose from.

        Raises: PromptError; ImageError for a picture that is not kept.
        """
        prompt = question.prompt()
        with self._turn:
            if question.picture not in self._pictures:
                raise ImageError("this picture is not kept any more", fix="Choose it again.")
            self._hold(question.picture)
            frame, _ = self._pictures[question.picture]
            outputs = self._session.decode(PromptBatch.of([prompt]).feed(self._session.spec, frame))
        logits, scores = predicted_masks(outputs, self._session.spec, multimask=True)
        return np.concatenate([scores.ravel(), logits.ravel()]).astype("<f4").tobytes()

    def _hold(self, key: str) -> None:
        """Bring a picture's features to the session, if they are not there."""
        self._pictures.move_to_end(key)
        if self._held != key:
            self._held = ""
            self._session.set_image(self._pictures[key][1])
            self._held = key


def status_of(error: SamxError) -> int:
    """Return the HTTP status of a refusal."""
    return 422 if isinstance(error, (ImageError, PromptError)) else 500
