"""A small real decoder behind the Session protocol, and ways to break it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from toys import toy_decoder

from samx.errors import PromptError
from samx.models.session import Feed, FloatArray, Outputs, Placement
from samx.models.spec import DecoderSpec, sam1_spec, sam2_spec

IMAGE_SIZE = 128  # an eighth of the released one: the same graph, 64 times less work
SPECS = {
    "sam1": sam1_spec(image_size=IMAGE_SIZE, mask_input=True),
    "sam2": sam2_spec(image_size=IMAGE_SIZE, mask_input=True),
}
ON_CPU = Placement("toy", "cpu", {"cpu": 1}, {"torch": torch.__version__})


class ToySession:
    """Decode with PyTorch. Answers are remembered by their question, because many tests ask the same."""

    def __init__(self, spec: DecoderSpec, memory: dict[str, Outputs] | None = None) -> None:
        self.spec = spec
        self.decoder = toy_decoder(spec)
        self.memory = {} if memory is None else memory
        self.image: Feed = {}

    def set_image(self, image: Feed) -> None:
        self.image = image

    def decode(self, prompts: Feed) -> Outputs:
        if not np.isin(prompts.get("has_mask_input", 0), (0, 1)).all():
            raise PromptError("has_mask_input is no flag", expected="0 or 1 each")
        feed = {**self.image, **prompts}
        key = hashlib.sha256(b"".join(feed[name].tobytes() for name in sorted(feed))).hexdigest()
        if key not in self.memory:
            tensors: dict[str, Tensor] = {name: torch.from_numpy(value.copy()) for name, value in feed.items()}
            with torch.inference_mode():
                answers: dict[str, Tensor] = self.decoder(**tensors)
            self.memory[key] = {name: value.numpy() for name, value in answers.items()}
        return {name: value.copy() for name, value in self.memory[key].items()}

    def placement(self) -> Placement:
        return ON_CPU


class FaultySession(ToySession):
    """Spoil the prompts, the image or the answers of an honest session."""

    def __init__(
        self,
        honest: ToySession,
        *,
        prompts: Callable[[Feed], Feed] = lambda feed: feed,
        answers: Callable[[Outputs], Outputs] = lambda outputs: outputs,
        placement: Placement = ON_CPU,
    ) -> None:
        self.__dict__.update(honest.__dict__)
        self.image = {}
        self.spoil_prompts, self.spoil_answers, self.place = prompts, answers, placement

    def decode(self, prompts: Feed) -> Outputs:
        return self.spoil_answers(super().decode(self.spoil_prompts(prompts)))

    def placement(self) -> Placement:
        return self.place


def logits_of(outputs: Outputs) -> FloatArray:
    """Give the mask logits, to be spoiled in place."""
    return outputs["low_res_masks"]
