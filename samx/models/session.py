"""What every runtime offers: one image, then any number of prompts on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from samx.models.spec import DecoderSpec

FloatArray = NDArray[np.float32]
Feed = Mapping[str, FloatArray]
Outputs = dict[str, FloatArray]


@dataclass(frozen=True)
class Placement:
    """Record where the work really ran: device asked for, operations per device that ran them."""

    runtime: str
    requested: str
    operations: Mapping[str, int]
    details: Mapping[str, Any]

    @property
    def honoured(self) -> bool:
        """Tell whether every operation ran on the device that was asked for."""
        return set(self.operations) == {self.requested}


class Session(Protocol):
    """Decode prompts on an image."""

    @property
    def spec(self) -> DecoderSpec:
        """Return the tensors in and out."""
        ...

    def set_image(self, image: Feed) -> None:
        """Take one image's features (spec.image_inputs) and keep what does not depend on prompts."""
        ...

    def decode(self, prompts: Feed) -> Outputs:
        """Decode N prompts (spec.prompt_inputs) on that image into spec.outputs."""
        ...

    def placement(self) -> Placement:
        """Report where the last image and prompts were computed."""
        ...
