"""A small image encoder of SAM 1 and what its INT8 form is made and judged with; time is a counter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import upstream_encoders as upstream
from numpy.typing import NDArray
from toys import toy_checkpoint

from samx.exporters import onnx
from samx.exporters.base import ExportJob
from samx.models.encoders import vit
from samx.models.encoders.base import Encoder
from samx.models.encoders.picture import picture_graph
from samx.models.graph import Graph
from samx.models.session import Feed
from samx.models.spec import sam1_spec
from samx.picture_encoder import RunLevels
from samx.quantization.encoder import EncoderTrial, Pictures, pictures
from samx.quantization.search import Plan
from samx.runtimes.torch import reference_encoder, reference_session
from samx.validators.other_size import Sized

SIZE_PX = 128
SPEC = sam1_spec(image_size=SIZE_PX, width=upstream.WIDTH)
GROUPS = ("patch_embed.proj", "blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp", "neck.0", "neck.2")
CALIBRATING = 3
FLOAT_NS = 3_000_000_000  # of a call


def job(target: str = "onnx") -> ExportJob:
    return ExportJob(toy_checkpoint(SPEC), SPEC, None, "int8", target)


def encoder() -> Encoder:
    return vit.build(upstream.meta_vit(SIZE_PX, blocks=2).state_dict(), SPEC)


def graph() -> Graph:
    return picture_graph(encoder(), SPEC)


def reference() -> Sized:
    return Sized(reference_encoder(encoder(), SPEC), reference_session(toy_checkpoint(SPEC), SPEC), SIZE_PX)


def photos() -> Pictures:
    return pictures(SIZE_PX, None)[0][: CALIBRATING + 1]


def written(folder: Path) -> Path:
    """Write the encoder in float32."""
    onnx.write_encoder(graph(), job(), folder)
    return folder / "encoder.onnx"


@dataclass
class Counter:
    """A clock that moves only when an encoder is called: integers take as long as a test says."""

    int8_ns: Callable[[Plan], int]
    now: int = 0

    def __call__(self) -> int:
        return self.now

    def opened(self, open_plan: Callable[[EncoderTrial, Plan], RunLevels]) -> Callable[[EncoderTrial, Plan], RunLevels]:
        """Let what is opened move the clock."""

        def opened(trial: EncoderTrial, plan: Plan) -> RunLevels:
            run, took = open_plan(trial, plan), self.int8_ns(plan) if plan.integer else FLOAT_NS

            def timed(feed: Mapping[str, NDArray[Any]]) -> Feed:
                self.now += took
                return run(feed)

            return timed

        return opened
