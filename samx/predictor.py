"""Predictor: Meta's predictor API over any artifact. A picture first, then any number of prompts on it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samx.errors import ImageError, PromptError, UsageError
from samx.everything import look_over
from samx.extras import require
from samx.models.session import Feed, FloatArray, Session
from samx.models.spec import DecoderSpec
from samx.picture_encoder import Encode, framed_features
from samx.predictor_inputs import (
    Embedding,
    Picture,
    Transform,
    check_export,
    embedded,
    embedding_errors,
    from_frame,
    picture_array,
    picture_size,
    prompt_batch,
    prompt_errors,
    tensors,
)
from samx.processing.automatic import Kept, Record
from samx.processing.frames import Frame
from samx.processing.images import RgbArray
from samx.processing.postprocess import BEST, SegmentedMask, picture_logits, picture_mask, predicted_masks, segment
from samx.processing.prompts import Prompt, PromptBatch, decode_prompts
from samx.processing.settings import Settings
from samx.progress import Progress, silent
from samx.runtimes.base import OneImage, Runtime

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

Masks = NDArray[Any]  # bool or float32 by family, float32 where logits are asked for
Prediction = tuple[Masks, FloatArray, FloatArray]


class SetImage(NamedTuple):
    """One picture's place in the decoder's frame, and its features."""

    frame: Frame
    features: Feed


class Predictor:
    """Predict masks on a picture, called as Meta's SamPredictor (SAM 1) or SAM2ImagePredictor (SAM 2) is.

    Names, shapes, dtypes and order are those of the artifact's family: SAM 1 returns masks as bool, SAM 2 as float32,
    logits cut off at +-32, and its predict() takes several prompts at once.

    Threads may share a predictor: calls take turns, and predict() refuses to answer a thread whose picture another
    thread has replaced. `with predictor.lock:` keeps set_image() and predict() together.

    Example:
        >>> predictor = samx.open("tiny")
        >>> predictor.set_image("photo.jpg")
        >>> masks, scores, logits = predictor.predict(point_coords=[(300, 200)], point_labels=[1])
    """

    def __init__(
        self, session: Session, encode: Encode, device: str = "cpu", encoder_id: str | None = None,
        threads: int | None = None,
    ) -> None:  # fmt: skip
        self._session: Session | None = session
        self._threads = threads
        self._encode = encode
        self._encoder_id = encoder_id  # what tells embeddings of the artifact's own encoder; None: there is none
        self._spec = session.spec
        self._images: list[SetImage] = []
        self._held: SetImage | None = None  # the one that the session has
        self._is_batch = False
        self._turns = session.turns if isinstance(session, Runtime) else OneImage()
        self.device = device
        self.mask_threshold = session.spec.mask_threshold
        self.transform = Transform(session.spec)

    # The picture.

    def set_image(
        self, image: Picture | None = None, image_format: str = "RGB", *, embedding: Embedding | None = None,
        original_size: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        """Take the picture that is asked about from now on, or its embedding and size.

        image: a path, a PIL image or an array (H, W, 3) of uint8; image_format tells an array's order, RGB or BGR.
        embedding: what the model's image encoder made of it: a path (.npz, .npy), arrays by name, or the one array.
        original_size: (H, W) of the picture that the embedding is of; the picture may stand for it, and so does the
        tag of an embedding that 'samx encode' wrote.
        Raises: ImageError, ArtifactError; UsageError for an artifact without an encoder.

        Example:
            >>> predictor.set_image(cv2.imread("photo.jpg"), image_format="BGR")
            >>> predictor.set_image(embedding="photo.npz", original_size=(960, 1280))
        """
        with self._setting() as session:
            if embedding is None:
                taken = self._encoded(image, image_format, original_size)
            else:
                taken = SetImage(*embedded(embedding, image, image_format, original_size, self._spec, self._encoder_id))
            with embedding_errors() if embedding is not None else nullcontext():
                self._hold(session, taken)
            self._images = [taken]

    def set_image_batch(self, image_list: Sequence[Picture]) -> None:
        """Take several pictures, for predict_batch(). They are encoded together as far as the export takes them."""
        with self._setting():
            if isinstance(image_list, (str, bytes, np.ndarray)) or not len(image_list):
                raise ImageError("image_list is no list of pictures", found=type(image_list).__name__)
            pictures = (picture_array(image) for image in image_list)
            self._images = [SetImage(*found) for found in framed_features(self._encode, self._spec, pictures)]
            self._is_batch = True

    def reset_image(self) -> None:
        """Forget the picture."""
        with self._turns.changing():
            self._images, self._is_batch = [], False

    reset_predictor = reset_image

    def get_image_embedding(self) -> Any:
        """Return the picture's embedding as a tensor of PyTorch's. Shapes: -> (1, C, G, G)."""
        torch = require("torch", "export", "get_image_embedding()")
        with self._asking():
            return torch.from_numpy(np.asarray(self._images[-1].features[self._spec.image_inputs[0].name]))

    @property
    def spec(self) -> DecoderSpec:
        """What the artifact takes and returns."""
        return self._spec

    @property
    def is_image_set(self) -> bool:
        """Whether a picture is set."""
        return bool(self._images)

    @property
    def original_size(self) -> tuple[int, int]:
        """(H, W) of the picture."""
        with self._asking():
            frame = self._images[-1].frame
            return frame.height_px, frame.width_px

    @property
    def input_size(self) -> tuple[int, int]:
        """(H, W) of the picture in the decoder's frame."""
        with self._asking():
            frame = self._images[-1].frame
            return frame.valid_height_px, frame.valid_width_px

    # The prompts.

    def predict(
        self, point_coords: ArrayLike | None = None, point_labels: ArrayLike | None = None,
        box: ArrayLike | None = None, mask_input: ArrayLike | None = None, multimask_output: bool = True,
        return_logits: bool = False, normalize_coords: bool = True,
    ) -> Prediction:  # fmt: skip
        """Return masks at the picture's size, their predicted IoUs, and low-resolution logits that mask_input takes.

        normalize_coords: coordinates are in pixels of the picture; False: they are shares of it, 0 to 1.
        Shapes: point_coords (P, 2), point_labels (P) of 1 or 0, box (4) x0, y0, x1, y1, mask_input (1, S, S)
            -> (M, H, W), (M), (M, S, S); M is 3, or 1 without multimask_output.
            SAM 2, several prompts: (B, P, 2), (B, P), (B, 4), (B, 1, S, S) -> (B, M, H, W), (B, M), (B, M, S, S).
        Raises: PromptError naming the argument; UsageError without a picture, or for masks that the export has not.

        Example:
            >>> masks, scores, logits = predictor.predict(box=[40, 60, 300, 380], multimask_output=False)
        """
        given = point_coords, point_labels, box, mask_input
        with self._asking() as session:
            return self._predict(session, self._images[-1], given, multimask_output, return_logits, normalize_coords)

    def predict_batch(
        self, point_coords_batch: Sequence[ArrayLike] | None = None,
        point_labels_batch: Sequence[ArrayLike] | None = None, box_batch: Sequence[ArrayLike] | None = None,
        mask_input_batch: Sequence[ArrayLike] | None = None, multimask_output: bool = True,
        return_logits: bool = False, normalize_coords: bool = True,
    ) -> tuple[list[Masks], list[FloatArray], list[FloatArray]]:  # fmt: skip
        """Predict on each picture of set_image_batch(), with a list of predict()'s arguments for each.

        Raises: as predict().
        """
        batches = {"point_coords_batch": point_coords_batch, "point_labels_batch": point_labels_batch,
                   "box_batch": box_batch, "mask_input_batch": mask_input_batch}  # fmt: skip
        with self._asking() as session:
            if not self._is_batch:
                raise UsageError("no batch of pictures is set", fix="Call set_image_batch first.")
            for name, batch in batches.items():
                if batch is not None and len(batch) != len(self._images):
                    raise PromptError(
                        f"{name} does not match the pictures", found=len(batch), expected=len(self._images)
                    )
            found: list[Prediction] = []
            for place, image in enumerate(self._images):
                given = tuple(None if batch is None else batch[place] for batch in batches.values())
                found.append(self._predict(session, image, given, multimask_output, return_logits, normalize_coords))
        masks, scores, logits = zip(*found, strict=True)
        return list(masks), list(scores), list(logits)

    def predict_torch(
        self, point_coords: ArrayLike | None, point_labels: ArrayLike | None, boxes: ArrayLike | None = None,
        mask_input: ArrayLike | None = None, multimask_output: bool = True, return_logits: bool = False,
    ) -> tuple[Any, Any, Any]:  # fmt: skip
        """Predict several prompts whose coordinates are in the decoder's frame (Predictor.transform moves them there).

        Tensors of PyTorch's come back where one was given, else arrays.
        Shapes: (B, P, 2), (B, P), (B, 4), (B, 1, S, S) -> (B, M, H, W), (B, M), (B, M, S, S).
        Raises: as predict().
        """
        given = point_coords, point_labels, boxes, mask_input
        with self._asking() as session:
            image = self._images[-1]
            batch = prompt_batch(*given, several=True, to_picture=lambda xy: from_frame(xy, image.frame))
            found = self._decoded(session, image, batch, multimask_output, return_logits)
        masks = found[0] if return_logits else found[0].astype(np.bool_)
        tensor = next((value for value in given if hasattr(value, "new_tensor")), None)
        return (masks, *found[1:]) if tensor is None else tensors((masks, *found[1:]), tensor)

    def segment(self, prompts: Sequence[Prompt], masks: str = BEST) -> list[SegmentedMask]:
        """Return the best mask of each prompt, with its area, box and stability; prompts may be of different kinds.

        masks: "all" of each, or the one of that number, in the place of the "best".
        Raises: PromptError; UsageError for a number that there is not.

        Example:
            >>> [found.box for found in predictor.segment([samx.Prompt(box=(40, 60, 300, 380))])]
        """
        with self._asking() as session:
            self._hold(session, self._images[-1])
            frame = self._images[-1].frame
            return list(segment(decode_prompts(session, prompts, frame), frame, self._spec, masks))

    def everything(
        self, image: Picture | None = None, image_format: str = "RGB", *, progress: Progress | None = None,
        **settings: Any,
    ) -> Iterator[Record]:  # fmt: skip
        """Find what is in a picture, without prompts; yield masks one by one, as Meta's generate() lists them.

        image: as set_image() takes it, and forgotten afterwards; None: the picture that is set, without crops.
        settings: under the names and with the defaults of the family's generator, points_per_side=32 and so on.
        Raises: UsageError for settings out of range, and for masks that the export has not; as set_image().

        Example:
            >>> for record in predictor.everything("photo.jpg", points_per_side=16):
            ...     print(record["area"], record["predicted_iou"], record["segmentation"].shape)
        """
        checked = Settings.of(self._spec, settings)
        picture = None if image is None else picture_array(image, image_format, checked.most_px)
        return self.look_over(picture, checked, progress or silent).records(checked.output_mode)

    def look_over(self, picture: RgbArray | None, settings: Settings, progress: Progress) -> Kept:
        """Find what everything() yields, run-length encoded."""
        if picture is None:
            with self._asking() as session:
                self._hold(session, self._images[-1])
                return look_over(session, self.original_size[::-1], settings, None, progress, self._threads)
        with self._setting() as session:
            size = picture.shape[1], picture.shape[0]
            bring = lambda crop: self._hold(session, self._encoded(crop.cut(picture), "RGB", None))  # noqa: E731
            return look_over(session, size, settings, bring, progress, self._threads)

    # Its life.

    @property
    def lock(self) -> threading.RLock:
        """What a thread holds so that no other one sets a picture between its calls."""
        return self._turns.lock

    def close(self) -> None:
        """Let go of the model; afterwards nothing but close() can be called."""
        with self._turns.changing():
            self._session, self._images, self._held = None, [], None

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _setting(self) -> Iterator[Session]:
        with self._turns.changing():
            self._images, self._is_batch = [], False
            yield self._opened()

    @contextmanager
    def _asking(self) -> Iterator[Session]:
        with self._turns.asking():
            session = self._opened()
            if not self._images:
                raise UsageError("no image is set", fix="Call set_image first.")
            yield session

    def _opened(self) -> Session:
        if self._session is None:
            raise UsageError("this predictor is closed", fix="Open the artifact again.")
        return self._session

    def _encoded(self, image: Picture | None, image_format: str, original_size: Sequence[int] | None) -> SetImage:
        if image is None:
            raise UsageError("set_image() is given neither image nor embedding")
        picture = picture_array(image, image_format)
        picture_size(original_size, picture)
        ((frame, found),) = framed_features(self._encode, self._spec, [picture])
        return SetImage(frame, found)

    def _hold(self, session: Session, image: SetImage) -> None:
        """Bring a picture's features to the session, if they are not there."""
        if self._held is not image:
            self._held = None
            session.set_image(image.features)
            self._held = image

    def _predict(
        self, session: Session, image: SetImage, given: tuple[ArrayLike | None, ...], multimask: bool,
        return_logits: bool, in_pixels: bool,
    ) -> Prediction:  # fmt: skip
        frame, rules = image.frame, self._spec.rules
        unit = (1, 1) if in_pixels else (frame.width_px, frame.height_px)
        batch = prompt_batch(*given, several=rules.predicts_batches, to_picture=lambda xy: xy * unit)
        masks, scores, logits = self._decoded(session, image, batch, multimask, return_logits)
        return (masks[0], scores[0], logits[0]) if len(batch) == 1 else (masks, scores, logits)

    def _decoded(
        self, session: Session, image: SetImage, batch: PromptBatch, multimask: bool, return_logits: bool
    ) -> Prediction:
        spec, rules, frame = self._spec, self._spec.rules, image.frame
        check_export(spec, multimask, has_mask=any(mask is not None for mask in batch.masks))
        with prompt_errors():
            feed = batch.feed(spec, frame)
        self._hold(session, image)
        logits, scores = predicted_masks(session.decode(feed), spec, multimask)
        dtype = np.float32 if return_logits or rules.float_masks else np.bool_
        masks = np.empty((*scores.shape, frame.height_px, frame.width_px), dtype)
        for place in np.ndindex(scores.shape):
            if return_logits:
                masks[place] = picture_logits(logits[place], frame)
            else:
                masks[place] = picture_mask(logits[place], frame, self.mask_threshold)
        return masks, scores, np.clip(logits, -rules.mask_limit, rules.mask_limit)
