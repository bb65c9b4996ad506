"""What a Triton server runs: pictures are kept by key, and prompts of one picture are decoded together."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samx.artifacts.store import Artifact
from samx.errors import ImageError, PromptError, SamxError, UsageError
from samx.kits.triton_backend import PARTS_FILE, Parts, Served, served
from samx.models.session import Feed, FloatArray, Session
from samx.models.spec import DecoderSpec
from samx.picture_encoder import Encode, PictureEncoder, encode_levels, framed_features
from samx.processing.frames import Frame
from samx.processing.images import read_image_bytes
from samx.processing.postprocess import picture_mask, predicted_masks
from samx.processing.prompts import PromptBatch
from samx.processing.rle import Rle
from samx.registry import open_session

FOLDER = "artifact"  # beside model.py
NOT_KEPT = "IMAGE_NOT_KEPT"  # how the answer begins that a client sends the picture after
INPUTS = ("image_key", "picture", "points", "labels", "box")

Arrays = Mapping[str, NDArray[Any]]


class NotKeptError(ImageError):
    """Report a picture that the server has not, or has no more."""

    def __init__(self) -> None:
        super().__init__(f"{NOT_KEPT}: this picture is not here", fix="Send the request again with the picture.")


@dataclass(frozen=True, eq=False)
class Kept:
    """One picture's place in the decoder's frame, and its features."""

    frame: Frame
    features: Feed


@dataclass(frozen=True, eq=False)
class Answer:
    """What one request is answered. Shapes: logits (N, M, S, S), scores (N, M)."""

    logits: FloatArray
    scores: FloatArray
    frame: Frame
    threshold: float

    def tensor(self, name: str) -> NDArray[Any]:
        """Return an output; masks are made at the picture's size, each as JSON of COCO's runs."""
        return self._masks() if name == "masks" else {"scores": self.scores, "logits": self.logits}[name]

    def _masks(self) -> NDArray[Any]:
        packed = np.empty(self.scores.shape, np.object_)
        for place in np.ndindex(packed.shape):
            runs = Rle.of(picture_mask(self.logits[place], self.frame, self.threshold)).uncompressed()
            packed[place] = json.dumps(runs, separators=(",", ":")).encode()
        return packed


class Answers:
    """Answer requests, those that came together joined picture by picture."""

    def __init__(
        self, artifact: Artifact, device: str = "cpu", threads: int | None = None, keep: int = 16,
        over: Served | None = None,
    ) -> None:  # fmt: skip
        """Open an artifact; `keep` is how many pictures' features stay in memory, `over` what the server computes.

        Raises: MissingExtraError, UnavailableError, ArtifactError.
        """
        if keep < 1:
            raise UsageError("too few pictures are kept", found=keep, expected="at least 1")
        self._session: Session = open_session(artifact, device, threads) if over is None else over.session
        entry = artifact.manifest.encoder
        self._encode: Encode = PictureEncoder(artifact, device=device, threads=threads)
        if over is not None and over.encode is not None and entry is not None:
            self._encode = partial(encode_levels, over.encode, self.spec, entry)
        self._pictures: OrderedDict[str, Kept] = OrderedDict()
        self._keep, self._held = keep, Kept.__new__(Kept)

    @property
    def spec(self) -> DecoderSpec:
        """What the artifact takes and returns."""
        return self._session.spec

    def answer(self, requests: Sequence[Arrays]) -> list[Answer | SamxError]:
        """Answer each request, or say what is wrong with it, without harm to the others."""
        found: dict[int, Answer | SamxError] = {}
        groups: dict[tuple[int, int], list[tuple[int, Kept, Feed]]] = {}
        for place, request in enumerate(requests):
            try:
                picture, feed = self._asked(request)
            except SamxError as error:
                found[place] = error
            else:  # another number of points would be padded, and padding changes masks
                alike = id(picture), feed["point_labels"].shape[1]
                groups.setdefault(alike, []).append((place, picture, feed))
        for group in groups.values():
            found.update(self._decoded(group))
        return [found[place] for place in range(len(requests))]

    def _asked(self, request: Arrays) -> tuple[Kept, Feed]:
        """Check a request, and find its picture."""
        key = _one_key(request["image_key"])
        batch = _prompts(request, len(request["image_key"]))
        picture = self._picture(key, request.get("picture"))
        return picture, batch.feed(self.spec, picture.frame)

    def _picture(self, key: str, sent: NDArray[Any] | None) -> Kept:
        if sent is not None:
            self._take(key, sent)
        if key not in self._pictures:
            raise NotKeptError
        self._pictures.move_to_end(key)
        return self._pictures[key]

    def _take(self, key: str, sent: NDArray[Any]) -> None:
        """Encode a picture that is not kept yet. Its key has to be its hash, so that nobody can put another there."""
        data = sent.reshape(-1)[0] if sent.shape == (1, 1) else None
        if not isinstance(data, bytes):
            raise ImageError("picture is no single file", found=sent.shape, expected="(1, 1): send it with one prompt")
        own = hashlib.sha256(data).hexdigest()
        if key != own:
            expected = f"the SHA-256 of the picture's file, {own}"
            raise ImageError("image_key is not the picture's", found=repr(key), expected=expected)
        if key in self._pictures:
            return
        ((frame, features),) = framed_features(self._encode, self.spec, [read_image_bytes(data)])
        self._pictures[key] = Kept(frame, features)
        while len(self._pictures) > self._keep:
            self._pictures.popitem(last=False)

    def _decoded(self, group: Sequence[tuple[int, Kept, Feed]]) -> dict[int, Answer | SamxError]:
        """Decode prompts of one picture and one number of points together."""
        places, pictures, feeds = zip(*group, strict=True)
        joined = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
        try:
            self._hold(pictures[0])
            outputs = self._session.decode(joined)
            logits, scores = predicted_masks(outputs, self.spec, multimask=True)
        except SamxError as error:
            return dict.fromkeys(places, error)
        ends = np.cumsum([len(feed["point_labels"]) for feed in feeds])[:-1]
        answer = partial(Answer, frame=pictures[0].frame, threshold=self.spec.mask_threshold)
        return dict(zip(places, map(answer, np.split(logits, ends), np.split(scores, ends)), strict=True))

    def _hold(self, picture: Kept) -> None:
        """Bring a picture's features to the session, if they are not there."""
        if self._held is not picture:
            self._held = Kept.__new__(Kept)
            self._session.set_image(picture.features)
            self._held = picture


def _one_key(keys: NDArray[Any]) -> str:
    """Return the key that every row of a request has."""
    named = {bytes(key) for key in keys.reshape(-1)} if keys.dtype == np.object_ else set()
    if len(named) != 1 or keys.shape != (len(keys), 1):
        found = f"{len(named)} keys of shape {keys.shape}"
        raise ImageError("image_key does not name one picture", found=found, expected="the same text in (N, 1)")
    return named.pop().decode(errors="replace")


def _prompts(request: Arrays, count: int) -> PromptBatch:
    """Check a request's prompts. Shapes: points (N, P, 2), labels (N, P), box (N, 4)."""
    points = request.get("points", np.zeros((count, 0, 2)))
    labels = request.get("labels", np.zeros((count, 0), np.int32))
    batch = PromptBatch(points, labels, request.get("box"))
    if len(batch) != count:
        raise PromptError("prompts do not match image_key", found=len(batch), expected=f"{count}, a key for each")
    return batch


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the artifact beside model.py, as config.pbtxt says; who computes, execute() finds out."""
        self._triton: Any = importlib.import_module("triton_python_backend_utils")
        given = json.loads(args["model_config"]).get("parameters", {})
        words = {name: value["string_value"] for name, value in given.items()}
        folder = Path(args["model_repository"])
        home = folder / args["model_version"]
        threads = int(words.get("threads") or 0) or None
        self._artifact, listed = Artifact.open(home / FOLDER), home / PARTS_FILE
        self._open = partial(Answers, self._artifact, words["device"], threads, int(words["keep_pictures"]))
        self._parts = Parts.from_bytes(listed.read_bytes(), str(listed)) if listed.is_file() else None
        if self._parts is not None:
            self._parts.check_copies(self._artifact, folder.parent)
        self._answers = self._open() if self._parts is None else None

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer what the dynamic batcher put together."""
        asked = [self._arrays(request) for request in requests]
        found: Sequence[Answer | SamxError]
        try:
            found = self._opened().answer(asked)
        except SamxError as error:  # nothing could be opened
            found = [error] * len(asked)
        return [self._response(*pair) for pair in zip(requests, found, strict=True)]

    def _opened(self) -> Answers:
        """Choose who computes, with the first request: before it, Triton may be loading other models still."""
        if self._answers is None:
            assert self._parts is not None
            self._answers = self._open(over=served(self._triton, self._parts, self._artifact))
        return self._answers

    def _arrays(self, request: Any) -> Arrays:
        given = {name: self._triton.get_input_tensor_by_name(request, name) for name in INPUTS}
        return {name: tensor.as_numpy() for name, tensor in given.items() if tensor is not None}

    def _response(self, request: Any, found: Answer | SamxError) -> Any:
        triton = self._triton
        if isinstance(found, SamxError):
            return triton.InferenceResponse([], triton.TritonError(str(found), self._code(found)))
        asked = request.requested_output_names()
        return triton.InferenceResponse([triton.Tensor(name, found.tensor(name)) for name in asked])

    def _code(self, error: SamxError) -> Any:
        """Return gRPC's status: not found, invalid argument, or a fault of the server's."""
        kinds = self._triton.TritonError
        if isinstance(error, NotKeptError):
            return kinds.NOT_FOUND
        return kinds.INVALID_ARG if isinstance(error, (ImageError, PromptError)) else kinds.INTERNAL
