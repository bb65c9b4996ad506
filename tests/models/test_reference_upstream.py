"""The reference form computes what independent implementations compute: Hugging Face's SamModel and Sam2Model.

Their random models are saved by their own code and loaded by ours, so this also checks the renaming of weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import randomize
from torch import Tensor

from samx.errors import CheckpointError
from samx.models.checkpoint import LoadedDecoder, build_reference, load_checkpoint
from samx.models.reference import ReferenceDecoder
from samx.models.selection import stability_scores
from samx.models.spec import DecoderSpec, sam1_spec, sam2_spec
from samx.processing.frames import Frame
from samx.processing.prompts import PromptBatch

transformers = pytest.importorskip("transformers")

# Of the largest magnitude, or of 1 for scores that are all smaller. Sums in another order differ by about 1e-6 in
# float32 and 1e-15 in float64; the rest is room for weights that magnify it.
TOLERANCE = 1e-5
TOLERANCE_FLOAT64 = 1e-12
# SamModel writes 1e-6 where Meta's nn.LayerNorm has 1e-5; the reference follows Meta.
META_NORM_EPS = 1e-5
PROMPTS = 3
SIZE_PX = 256  # the decoder is full-size, its image is not
FULL_SIZE_PX = 1024
GRIDS = {SIZE_PX: 16, FULL_SIZE_PX: 64}

TINY_SAM_VISION: dict[str, Any] = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "mlp_dim": 8, "global_attn_indexes": [0],
}  # fmt: skip
TINY_SAM2_VISION: dict[str, Any] = {
    "backbone_config": {
        "model_type": "sam2_hiera_det_model", "hidden_size": 8, "embed_dim_per_stage": [8, 16, 32, 64],
        "blocks_per_stage": [1, 1, 1, 1], "num_attention_heads_per_stage": [1, 1, 1, 1], "global_attention_blocks": [],
    },
    "backbone_channel_list": [64, 32, 16, 8],
}  # fmt: skip


def sam1_config(size: int, **decoder: Any) -> Any:
    return transformers.SamConfig(
        vision_config={**TINY_SAM_VISION, "image_size": size},
        prompt_encoder_config={"image_size": size, "image_embedding_size": GRIDS[size]},
        mask_decoder_config={"layer_norm_eps": META_NORM_EPS, **decoder},
    )


def sam2_config(size: int, **decoder: Any) -> Any:
    return transformers.Sam2Config(
        vision_config=TINY_SAM2_VISION, prompt_encoder_config={"image_size": size}, mask_decoder_config=decoder
    )


def sam_hq_config(size: int, **decoder: Any) -> Any:
    given = {"vit_dim": TINY_SAM_VISION["hidden_size"], "layer_norm_eps": META_NORM_EPS, **decoder}
    return transformers.SamHQConfig(
        vision_config={**TINY_SAM_VISION, "image_size": size}, prompt_encoder_config={"image_size": size},
        mask_decoder_config=given,
    )  # fmt: skip


CONFIGS: dict[str, Callable[..., Any]] = {"sam1": sam1_config, "sam2": sam2_config, "sam_hq": sam_hq_config}
CLASSES = {"sam1": transformers.SamModel, "sam2": transformers.Sam2Model, "sam_hq": transformers.SamHQModel}


def build_upstream(family: str, size: int, seed: int = 0, **decoder: Any) -> Any:
    """Build Hugging Face's model of a family with random weights."""
    config = CONFIGS[family](size, **decoder)
    model = CLASSES[family](config).eval()
    randomize(model, seed)
    shared = model.shared_image_embedding.positional_embedding
    model.prompt_encoder.shared_embedding.positional_embedding.data.copy_(shared)  # one matrix in every release
    return model.requires_grad_(False)


@dataclass(frozen=True)
class Pair:
    """Hold an upstream model and what our loader made of it."""

    family: str
    upstream: Any
    loaded: LoadedDecoder

    def ours(self, **changes: Any) -> ReferenceDecoder:
        return build_reference(replace(self.loaded, spec=replace(self.loaded.spec, **changes)))

    @property
    def spec(self) -> DecoderSpec:
        return self.loaded.spec


def make_pair(folder: Path, family: str, size: int, **options: Any) -> Pair:
    upstream = build_upstream(family, size, **options)
    upstream.save_pretrained(folder)
    return Pair(family, upstream, load_checkpoint(folder))


@pytest.fixture(scope="module", params=["sam1", "sam2"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("upstream"), request.param, SIZE_PX)


@dataclass(frozen=True)
class Prompt:
    """Hold N prompts as a user means them, before either side's padding."""

    points: Tensor | None = None
    labels: Tensor | None = None
    boxes: Tensor | None = None
    masks: Tensor | None = None


def points(*labels: int, size: int = SIZE_PX) -> Prompt:
    coords = torch.rand(PROMPTS, len(labels), 2) * size
    return Prompt(coords, torch.tensor([labels] * PROMPTS))


def boxes(size: int = SIZE_PX) -> Tensor:
    return torch.rand(PROMPTS, 4).sort(dim=-1).values * size


def masks(size: int = SIZE_PX) -> Tensor:
    return 8 * torch.randn(PROMPTS, 1, size // 4, size // 4)


CASES: dict[str, Callable[[], Prompt]] = {
    "one point": lambda: points(1),
    "negative point": lambda: points(0),
    "negative points": lambda: points(0, 0, 0),
    "many points": lambda: points(1, 0, 1, 1, 0, 1, 0, 1, 1),
    "points and padding": lambda: points(1, 0, -1, -1),
    "padding alone": lambda: points(-1),
    "box": lambda: Prompt(boxes=boxes()),
    "box and points": lambda: replace(points(1, 0), boxes=boxes()),
    "box and padding": lambda: replace(points(-1), boxes=boxes()),
    "mask": lambda: Prompt(masks=masks()),
    "mask and points": lambda: replace(points(1, 0), masks=masks()),
    "mask and box": lambda: Prompt(boxes=boxes(), masks=masks()),
    "mask, box and points": lambda: replace(points(0, 1), boxes=boxes(), masks=masks()),
}


def feed(family: str, prompt: Prompt) -> dict[str, Tensor]:
    """Pad as design.md says: SAM 1 adds one padding token unless there is a box, SAM 2 always does."""
    coords, labels = torch.zeros(PROMPTS, 0, 2), torch.zeros(PROMPTS, 0)
    if prompt.boxes is not None:
        coords, labels = prompt.boxes.reshape(PROMPTS, 2, 2), torch.tensor([[2.0, 3.0]] * PROMPTS)
    if prompt.points is not None and prompt.labels is not None:
        coords, labels = torch.cat([coords, prompt.points], 1), torch.cat([labels, prompt.labels.float()], 1)
    paddings = _paddings(family, prompt)
    coords = torch.cat([coords, torch.zeros(PROMPTS, paddings, 2)], 1)
    labels = torch.cat([labels, -torch.ones(PROMPTS, paddings)], 1)
    given = {"point_coords": coords, "point_labels": labels}
    return given if prompt.masks is None else {**given, "mask_input": prompt.masks}


def _paddings(family: str, prompt: Prompt) -> int:
    if prompt.points is None and prompt.boxes is None:
        # A mask alone: Sam2Model puts in a padding point as the user's and pads it; SamModel has no token at all.
        return 2 if family == "sam2" else 0
    return int(family == "sam2" or prompt.boxes is None)


def images(spec: DecoderSpec, count: int) -> dict[str, Tensor]:
    return {tensor.name: torch.randn(count, *map(int, tensor.shape[1:])) for tensor in spec.image_inputs}


def run_upstream(pair: Pair, image: dict[str, Tensor], prompt: Prompt, multimask: bool) -> dict[str, Tensor]:
    """Give each prompt an image of its own, the only way upstream takes a mask for each."""
    embeddings, *skips = (tensor.expand(PROMPTS, -1, -1, -1) for tensor in image.values())
    given = {
        "input_points": None if prompt.points is None else prompt.points[:, None],
        "input_labels": None if prompt.labels is None else prompt.labels[:, None],
        "input_boxes": None if prompt.boxes is None else prompt.boxes[:, None],
        "input_masks": prompt.masks,
        "image_embeddings": [*skips, embeddings] if pair.family == "sam2" else embeddings,
    }
    return outputs(pair.upstream(**given, multimask_output=multimask))


def outputs(result: Any) -> dict[str, Tensor]:
    """Rename upstream's outputs, images and prompts flattened into one axis."""
    found = {"low_res_masks": result.pred_masks.flatten(0, 1), "iou_predictions": result.iou_scores.flatten(0, 1)}
    score = getattr(result, "object_score_logits", None)
    return found if score is None else {**found, "object_score_logits": score.flatten(0, 1)}


def assert_agree(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = TOLERANCE) -> None:
    assert set(found) == set(expected)
    for name, output in expected.items():
        assert found[name].shape == output.shape, name
        size = output.abs().max()
        assert size > 0.01, f"{name} is too small to compare"
        error = (found[name] - output).abs().max() / size.clamp(min=1)
        assert error <= tolerance, f"{name}: {error:.1e}"


def test_what_was_saved_is_recognised(pair: Pair) -> None:
    specs = {"sam1": sam1_spec(image_size=SIZE_PX), "sam2": sam2_spec(image_size=SIZE_PX)}
    kinds = {"sam1": "Hugging Face SAM model", "sam2": "Hugging Face SAM 2 model"}
    assert pair.spec == specs[pair.family]
    assert pair.loaded.kind == kinds[pair.family]


@pytest.mark.parametrize("case", CASES)
def test_multimask_agrees(pair: Pair, case: str) -> None:
    torch.manual_seed(0)
    image, prompt = images(pair.spec, 1), CASES[case]()
    expected = run_upstream(pair, image, prompt, multimask=True)
    assert_agree(pair.ours()(**image, **feed(pair.family, prompt)), expected)
    assert bool((expected["low_res_masks"] > 0).any())
    assert bool((expected["low_res_masks"] < 0).any())


@pytest.mark.parametrize("case", CASES)
def test_all_masks_agree(pair: Pair, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if pair.family == "sam2":
        monkeypatch.setattr(pair.upstream.mask_decoder, "dynamic_multimask_via_stability", False)
    torch.manual_seed(1)
    image, prompt = images(pair.spec, PROMPTS), CASES[case]()
    parts = [run_upstream(pair, image, prompt, multimask) for multimask in (False, True)]
    expected = {name: torch.cat([part[name] for part in parts], 1) for name in ("low_res_masks", "iou_predictions")}
    found = pair.ours(masks="all")(**image, **feed(pair.family, prompt))
    found.pop("object_score_logits", None)
    assert_agree(found, expected)
    single = pair.ours(masks="single", stability_fallback=False)(**image, **feed(pair.family, prompt))
    assert_agree(single, parts[0])


def test_one_padding_token_more_or_less_shows(pair: Pair) -> None:
    torch.manual_seed(2)
    image, prompt = images(pair.spec, 1), points(1)
    expected = run_upstream(pair, image, prompt, multimask=True)
    given = feed(pair.family, prompt)
    fewer = {name: tensor[:, :-1] for name, tensor in given.items()}
    more = {name: torch.cat([tensor, tensor[:, -1:]], 1) for name, tensor in given.items()}
    assert_agree(pair.ours()(**image, **given), expected)
    for wrong in (fewer, more):
        with pytest.raises(AssertionError, match="e-0"):
            assert_agree(pair.ours()(**image, **wrong), expected)


@pytest.mark.parametrize("case", ["one point", "negative points", "many points", "box", "box and points"])
def test_prompt_batch_pads_as_upstream_does(pair: Pair, case: str) -> None:
    torch.manual_seed(10)
    image, prompt = images(pair.spec, 1), CASES[case]()
    none = torch.zeros(PROMPTS, 0, 2)
    batch = PromptBatch(
        (none if prompt.points is None else prompt.points).double().numpy(),
        (none[..., 0] if prompt.labels is None else prompt.labels).double().numpy(),
        None if prompt.boxes is None else prompt.boxes.double().numpy(),
    )
    arrays = batch.feed(pair.spec, Frame.of(pair.spec, SIZE_PX, SIZE_PX))
    given = {name: torch.from_numpy(array) for name, array in arrays.items()}
    assert_agree(pair.ours()(**image, **given), run_upstream(pair, image, prompt, multimask=True))


@pytest.mark.parametrize("boxed", [False, True])
def test_several_prompts_on_one_image(pair: Pair, boxed: bool) -> None:
    torch.manual_seed(3)
    image = images(pair.spec, 1)
    prompt = replace(points(1, 0), boxes=boxes() if boxed else None)
    assert prompt.points is not None
    assert prompt.labels is not None
    embeddings, *skips = image.values()
    result = pair.upstream(
        input_points=prompt.points[None], input_labels=prompt.labels[None],
        input_boxes=prompt.boxes[None] if prompt.boxes is not None else None,
        image_embeddings=[*skips, embeddings] if pair.family == "sam2" else embeddings,
    )  # fmt: skip
    assert_agree(pair.ours()(**image, **feed(pair.family, prompt)), outputs(result))


def test_a_mask_for_some_prompts(pair: Pair) -> None:
    torch.manual_seed(4)
    image, prompt = images(pair.spec, 1), replace(points(1), masks=masks())
    with_mask = run_upstream(pair, image, prompt, multimask=True)
    without = run_upstream(pair, image, replace(prompt, masks=None), multimask=True)
    has_mask = torch.tensor([1.0, 0.0, 1.0])
    expected = {
        name: torch.where(has_mask.reshape(-1, *[1] * (out.ndim - 1)) > 0, out, without[name])
        for name, out in with_mask.items()
    }
    given = {**feed(pair.family, prompt), "has_mask_input": has_mask}
    assert_agree(pair.ours()(**image, **given), expected)


def test_sam2_falls_back_when_the_single_mask_is_unstable(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "sam2", SIZE_PX)
    torch.manual_seed(5)
    image, prompt = images(pair.spec, PROMPTS), points(1)
    given = feed("sam2", prompt)
    logits, _, _ = pair.ours().all_masks(**image, **given)
    scores = stability_scores(logits[:, 0], 0.0, pair.spec.stability_delta)
    low, high = scores.sort().values[:2].tolist()
    assert low < high
    threshold = (low + high) / 2  # so that both branches are taken, whatever the weights
    pair.upstream.mask_decoder.dynamic_multimask_stability_thresh = threshold
    single = pair.ours(masks="single", stability_threshold=threshold)(**image, **given)
    assert_agree(single, run_upstream(pair, image, prompt, multimask=False))
    fell_back = (single["low_res_masks"][:, 0] != logits[:, 0]).flatten(1).any(1)
    assert fell_back.tolist() == (scores < threshold).tolist()
    assert fell_back.any()
    assert not fell_back.all()


def test_sam2_fallback_settings_come_from_the_config(tmp_path: Path) -> None:
    settings = {
        "dynamic_multimask_via_stability": False,
        "dynamic_multimask_stability_delta": 0.25,
        "dynamic_multimask_stability_thresh": 0.5,
    }
    spec = make_pair(tmp_path, "sam2", SIZE_PX, **settings).spec
    assert (spec.stability_fallback, spec.stability_delta, spec.stability_threshold) == (False, 0.25, 0.5)


@pytest.mark.parametrize("family", ["sam1", "sam2"])
@pytest.mark.parametrize(
    "changes",
    [
        {"iou_head_depth": 2, "iou_head_hidden_dim": 64},
        {"iou_head_depth": 4},
        {"num_attention_heads": 4, "mlp_dim": 128},
    ],
)
def test_other_decoder_sizes_agree(tmp_path: Path, family: str, changes: dict[str, int]) -> None:
    pair = make_pair(tmp_path, family, SIZE_PX, **changes)
    torch.manual_seed(6)
    image, prompt = images(pair.spec, 1), points(1, 0)
    assert_agree(pair.ours()(**image, **feed(family, prompt)), run_upstream(pair, image, prompt, multimask=True))


@pytest.mark.parametrize("family", ["sam1", "sam2"])
def test_full_size_agrees(tmp_path: Path, family: str) -> None:
    pair = make_pair(tmp_path, family, FULL_SIZE_PX)
    torch.manual_seed(7)
    prompt = replace(points(1, 0, size=FULL_SIZE_PX), boxes=boxes(FULL_SIZE_PX), masks=masks(FULL_SIZE_PX))
    image = images(pair.spec, 1)
    assert_agree(pair.ours()(**image, **feed(family, prompt)), run_upstream(pair, image, prompt, multimask=True))


@pytest.mark.parametrize("family", ["sam1", "sam2"])
def test_float64_agrees_to_its_own_rounding(tmp_path: Path, family: str) -> None:
    pair = make_pair(tmp_path, family, SIZE_PX)
    pair.upstream.double()
    torch.manual_seed(9)
    given = replace(points(1, 0), boxes=boxes(), masks=masks())
    prompt = replace(given, **{name: getattr(given, name).double() for name in ("points", "boxes", "masks")})
    image = {name: tensor.double() for name, tensor in images(pair.spec, 1).items()}
    found = pair.ours().double()(**image, **feed(family, prompt))
    assert_agree(found, run_upstream(pair, image, prompt, multimask=True), TOLERANCE_FLOAT64)


def test_a_wrong_weight_shows(pair: Pair) -> None:
    torch.manual_seed(8)
    image, prompt = images(pair.spec, 1), points(1)
    decoder = pair.ours()
    decoder.mask_decoder.iou_token.weight[0, 0] += 0.01
    with pytest.raises(AssertionError, match="e-0"):
        assert_agree(decoder(**image, **feed(pair.family, prompt)), run_upstream(pair, image, prompt, multimask=True))


def test_two_different_position_matrices_are_refused(tmp_path: Path) -> None:
    model = build_upstream("sam2", SIZE_PX)
    model.prompt_encoder.shared_embedding.positional_embedding.data = torch.randn(2, 128)
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="two different values"):
        load_checkpoint(tmp_path)
