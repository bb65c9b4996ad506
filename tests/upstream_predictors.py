"""Meta's own predictors around Meta's own modules, with the weights and the image features of a test."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samx.benchmarks.contenders.meta import build_sam
from samx.demo import demo_checkpoint
from samx.demo.model import load_demo
from samx.models.checkpoint import LoadedDecoder, load_checkpoint
from samx.models.session import Feed, FloatArray, Outputs, Placement, Session
from samx.models.spec import DecoderSpec
from samx.predictor import Predictor
from samx.processing.images import RgbArray


class Features(nn.Module):
    """Stand in for an image encoder: the first picture of a batch has the first features, and so on."""

    def __init__(self, spec: DecoderSpec, images: Sequence[Mapping[str, Tensor]]) -> None:
        super().__init__()
        self.img_size, self.names = spec.image_size, [tensor.name for tensor in spec.image_inputs]
        self.images = images
        self.seen: list[Tensor] = []

    def forward(self, pictures: Tensor) -> Any:
        self.seen.append(pictures)
        stacked = [torch.cat([image[name] for image in self.images[: len(pictures)]]) for name in self.names]
        return stacked if len(stacked) > 1 else stacked[0]


class Sam2(nn.Module):
    """What SAM2ImagePredictor asks of a SAM 2 model."""

    directly_add_no_mem_embed = False  # the features of a test have it

    def __init__(self, loaded: LoadedDecoder, features: Features) -> None:
        super().__init__()
        from sam2.modeling.sam.mask_decoder import MaskDecoder
        from sam2.modeling.sam.prompt_encoder import PromptEncoder
        from sam2.modeling.sam.transformer import TwoWayTransformer

        spec = loaded.spec
        self.image_size, self.image_encoder = spec.image_size, features
        self.sam_prompt_encoder = PromptEncoder(spec.width, (spec.grid,) * 2, (spec.image_size,) * 2, 16)
        self.sam_mask_decoder = MaskDecoder(
            transformer_dim=spec.width, transformer=TwoWayTransformer(2, spec.width, 8, spec.mlp_width),
            use_high_res_features=True, iou_prediction_use_sigmoid=True, dynamic_multimask_via_stability=True,
            dynamic_multimask_stability_delta=spec.stability_delta,
            dynamic_multimask_stability_thresh=spec.stability_threshold, pred_obj_scores=True, pred_obj_scores_mlp=True,
        )  # fmt: skip
        self.sam_mask_decoder.conv_s0 = self.sam_mask_decoder.conv_s1 = None  # the features went through them
        renamed = {f"sam_{_sam2_name(name)}": weight for name, weight in loaded.weights.items()}
        self.load_state_dict(renamed, strict=True)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def forward_image(self, pictures: Tensor) -> list[Tensor]:
        embedding, fine, coarse = self.image_encoder(pictures)
        return [fine, coarse, embedding]

    def _prepare_backbone_features(self, levels: list[Tensor]) -> tuple[object, list[Tensor], None, None]:
        return None, [level.flatten(2).permute(2, 0, 1) for level in levels], None, None


def _sam2_name(name: str) -> str:
    return name.replace("mlp.lin1", "mlp.layers.0").replace("mlp.lin2", "mlp.layers.1")


def metas_predictor(loaded: LoadedDecoder, images: Sequence[Mapping[str, Tensor]]) -> Any:
    """Open Meta's predictor of the decoder's family."""
    features = Features(loaded.spec, images)
    if loaded.spec.family == "sam1":
        from segment_anything import SamPredictor

        sam = build_sam(loaded)
        sam.image_encoder = features
        return SamPredictor(sam)
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    predictor = SAM2ImagePredictor(Sam2(loaded, features).eval())
    grid = loaded.spec.grid
    predictor._bb_feat_sizes = [(4 * grid, 4 * grid), (2 * grid, 2 * grid), (grid, grid)]
    return predictor


class Noise:
    """A session that returns logits without any smoothness, the hardest to resize, and remembers them in order."""

    def __init__(self, spec: DecoderSpec, gain: float = 10.0) -> None:
        self.spec, self.gain = spec, gain
        self.rng = np.random.default_rng(0)
        self.returned: list[Outputs] = []

    def set_image(self, image: Feed) -> None:
        assert set(image) == {tensor.name for tensor in self.spec.image_inputs}

    def decode(self, prompts: Feed) -> Outputs:
        shapes = {
            tensor.name: (len(prompts["point_labels"]), *map(int, tensor.shape[1:])) for tensor in self.spec.outputs
        }
        drawn = {name: self.rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        self.returned.append({**drawn, "low_res_masks": self.gain * drawn["low_res_masks"]})
        return self.returned[-1]

    def placement(self) -> Placement:
        return Placement("noise", "cpu", {}, {})


class DemoEncoder(nn.Module):
    """The demo model's image encoder where Meta's predictors expect theirs."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.img_size = spec.image_size
        self.encoder = load_demo(spec.family, demo_checkpoint(spec.family), spec.grid).encoder

    def forward(self, pictures: Tensor) -> Any:
        levels = self.encoder(pictures)
        return levels if len(levels) > 1 else levels[0]


def metas_demo_predictor(family: str, image_size: int) -> Any:
    """Open Meta's predictor on the demo model, whose encoder takes values from 0 to 1."""
    loaded = load_checkpoint(demo_checkpoint(family), image_size=image_size)
    predictor = metas_predictor(loaded, [])
    predictor.model.image_encoder = DemoEncoder(loaded.spec)
    if family == "sam1":
        predictor.model.pixel_mean.zero_()
        predictor.model.pixel_std.fill_(255)
        return predictor
    transforms = predictor._transforms
    resize, _ = transforms.transforms
    transforms.transforms = resize  # without the normalisation
    return predictor


def our_predictor(session: Session, images: Sequence[Mapping[str, Tensor]]) -> Predictor:
    """Open ours with the same image features."""
    turns: Iterator[int] = iter(range(1_000_000))

    def encode(pictures: Iterable[RgbArray]) -> Iterator[Feed]:
        for _ in pictures:
            image = images[next(turns) % len(images)]
            yield {name: tensor.numpy() for name, tensor in image.items()}

    return Predictor(session, encode)


def answer_with(predictor: Any, session: Noise) -> None:
    """Let Meta's decoder return what ours returned, in order, so that only what is around it can differ."""

    def predict_masks(**_: object) -> tuple[Tensor, ...]:
        outputs = session.returned.pop(0)
        logits, scores = (torch.from_numpy(outputs[name]) for name in ("low_res_masks", "iou_predictions"))
        if session.spec.family == "sam1":
            return logits, scores
        return logits, scores, torch.zeros(len(logits), 4, session.spec.width), torch.zeros(len(logits), 1)

    model = predictor.model
    decoder = model.mask_decoder if session.spec.family == "sam1" else model.sam_mask_decoder
    decoder.predict_masks = predict_masks


def iou(first: FloatArray, second: FloatArray) -> float:
    """Divide shared area by joint area of two stacks of masks."""
    a, b = first.astype(bool), second.astype(bool)
    return float((a & b).sum() / max((a | b).sum(), 1))
