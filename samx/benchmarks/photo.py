"""The whole way from a picture to its mask, with its own image encoder, and the parts of that way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from samx.artifacts.manifest import EncoderEntry
from samx.benchmarks.interleave import Candidate
from samx.benchmarks.scenarios import Scenario, Workload
from samx.benchmarks.subjects import Subject
from samx.models.session import Feed, Outputs, Session
from samx.models.shape_range import ShapeRange
from samx.models.spec import DecoderSpec
from samx.picture_encoder import PictureEncoder, RunLevels, encoder_inputs
from samx.processing.frames import Frame
from samx.processing.images import RgbArray
from samx.processing.postprocess import best_indices, picture_mask
from samx.processing.prompts import Prompt, PromptBatch
from samx.registry import backend
from samx.validators.metrics import ENCODER_LIMITS, PRECISIONS

WIDTH_PX, HEIGHT_PX = 4000, 3000  # 12 megapixels, as phones take them
TILE_PX = 64  # of the noise that the picture is made of: an encoder takes as long for any picture
Bind = Callable[[str, Session, Scenario, Workload], Candidate]
NO_ENCODER = "the artifact has no image encoder that takes a picture's levels"
NOT_BESIDE = "this contender is a decoder; its image encoder is not measured"
NO_TRUTH = "no artifact here has an image encoder to compare its features with"
PEER_MARGIN = 2  # of the bound of an encoder's precision: others may be off to the other side


@dataclass(frozen=True, eq=False)
class Way:
    """Bind an image encoder and a decoder's session. The encoder is opened before anything is timed."""

    session: Session
    entry: EncoderEntry
    open: Callable[[], RunLevels]

    @cached_property
    def run(self) -> RunLevels:
        """Open the encoder."""
        return self.open()

    @property
    def spec(self) -> DecoderSpec:
        """Return the decoder's."""
        return self.session.spec

    def resize(self, picture: RgbArray) -> Mapping[str, Any]:
        """Make what the encoder takes."""
        return encoder_inputs([picture], self.spec, self.entry)

    def encode(self, taken: Mapping[str, Any]) -> Feed:
        """Return the features of one picture, as the decoder takes them."""
        found = self.run(taken)
        return {tensor.name: found[tensor.name][:1] for tensor in self.spec.image_inputs}

    def decode(self, features: Feed, click: Feed) -> Outputs:
        """Take the features, and answer a click."""
        self.session.set_image(features)
        return self.session.decode(click)

    def mask(self, outputs: Outputs) -> Any:
        """Return the best mask at the picture's size."""
        best = best_indices(outputs, self.spec)[0]
        frame = Frame.of(self.spec, WIDTH_PX, HEIGHT_PX)
        return picture_mask(outputs["low_res_masks"][0, best], frame, self.spec.mask_threshold)


def way_of(subject: Subject, device: str, threads: int | None) -> Way:
    """Bind what is measured; nobody else's encoder takes another size than its decoder's frame."""
    if subject.artifact is not None and (entry := subject.artifact.manifest.encoder):
        return Way(subject.session, entry, PictureEncoder(subject.artifact, None, None, device, threads).opened_levels)
    assert subject.encoder is not None  # problem()
    entry = EncoderEntry(subject.name, subject.session.spec.image_size, PRECISIONS[0], ShapeRange(1, 1, 1))
    return Way(subject.session, entry, subject.encoder)


def problem(subject: Subject, device: str) -> str | None:
    """Return why a subject cannot take pictures on a device; None: it can."""
    if subject.artifact is None:
        return NOT_BESIDE if subject.encoder is None else None
    if subject.artifact.manifest.encoder is None:
        return NO_ENCODER
    runs_on = backend(subject.artifact.manifest.target).encoder_opener(device)[1]
    return None if runs_on == device else f"its image encoder would run on '{runs_on}', not on '{device}'"


def difference(way: Way, truth: Way) -> str | None:
    """Return how far an encoder's features lie from another's, where that is further than the other's precision."""
    found, expected = (one.encode(one.resize(picture())) for one in (way, truth))
    errors = [
        float(np.linalg.norm(found[name].astype(np.float64) - value) / np.linalg.norm(value.astype(np.float64)))
        for name, value in expected.items()
    ]
    limit = PEER_MARGIN * ENCODER_LIMITS["feature_error"][PRECISIONS.index(truth.entry.precision)]
    return None if max(errors) <= limit else f"its features are off by {max(errors):.2g} (at most {limit:.2g})"


def picture() -> RgbArray:
    """Make a picture of 12 megapixels. Shapes: (H, W, 3)."""
    tile = np.random.default_rng(0).integers(0, 256, (TILE_PX, TILE_PX, 3), np.uint8)
    across, down = -(-WIDTH_PX // TILE_PX), -(-HEIGHT_PX // TILE_PX)
    return np.ascontiguousarray(np.tile(tile, (down, across, 1))[:HEIGHT_PX, :WIDTH_PX])


def click(spec: DecoderSpec) -> Feed:
    """Return a click in the middle."""
    prompt = Prompt([(WIDTH_PX / 2, HEIGHT_PX / 2)], [1])
    return PromptBatch.of([prompt]).feed(spec, Frame.of(spec, WIDTH_PX, HEIGHT_PX))


def parts(way: Way) -> dict[str, Callable[[], Any]]:
    """Return what is timed, by phase: the whole way, and each part of it with its input made before."""
    photo, asked = picture(), click(way.spec)
    taken = way.resize(photo)
    features = way.encode(taken)
    outputs = {name: np.array(value) for name, value in way.decode(features, asked).items()}
    return {
        "steady": lambda: way.mask(way.decode(way.encode(way.resize(photo)), asked)),
        "resize": lambda: way.resize(photo),
        "encode": lambda: way.encode(taken),
        "decode": lambda: way.decode(features, asked),
        "post_processing": lambda: way.mask(outputs),
    }


def bound(calls: Mapping[str, Mapping[str, Callable[[], Any]]], phase: str) -> Bind:
    """Bind a part of each subject's way, by the subject's name, for the harness."""

    def bind(name: str, session: Session, scenario: Scenario, workload: Workload) -> Candidate:
        call = calls[name][phase]
        return Candidate(name, scenario.prompts, lambda _: call(), lambda _: None)

    return bind
