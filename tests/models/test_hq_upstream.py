"""HQ-SAM and HQ-SAM 2: all prompts and choices of masks agree with what is built around Meta's classes, and with
transformers' SamHQModel once its defect is mended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import randomize
from hq_upstream import INTERM, hq_sam, hq_sam2_decoder, hq_sam2_state, loud, mended
from test_reference_upstream import (
    CASES,
    CLASSES,
    SIZE_PX,
    TINY_SAM_VISION,
    TOLERANCE,
    Pair,
    Prompt,
    assert_agree,
    feed,
    images,
    make_pair,
    outputs,
    sam_hq_config,
)
from torch import Tensor, nn
from upstream_encoders import pictures, relative_error

from samx.models.checkpoint import LoadedDecoder, build_reference, load_checkpoint
from samx.models.encoders.load import find_encoder
from samx.models.spec import MaskChoice
from samx.models.weight_files import open_weights

LOUD = 50  # logits of the largest, at least
Upstream = Callable[[dict[str, Tensor], Prompt, bool], dict[str, Tensor]]
MASKS: tuple[MaskChoice, ...] = ("multimask", "single")
GRID = SIZE_PX // 16


class Hq2(nn.Module):
    """HQ-SAM 2 without its encoder."""

    def __init__(self) -> None:
        super().__init__()
        from sam2.modeling.sam.prompt_encoder import PromptEncoder

        self.prompt_encoder = PromptEncoder(256, (GRID, GRID), (SIZE_PX, SIZE_PX), 16)
        self.mask_decoder = hq_sam2_decoder()
        self.image_encoder = nn.Identity()
        loud(self.eval(), self.mask_decoder)
        for name in ("conv_s0", "conv_s1"):
            delattr(self.mask_decoder, name)


def asked(model: Any, prompt: Prompt, boxes_as_points: bool) -> dict[str, Tensor]:
    """Embed a prompt as SamPredictor and SAM2ImagePredictor do."""
    given = feed("sam2" if boxes_as_points else "sam1", prompt)
    points = None if prompt.points is None else (prompt.points, prompt.labels)
    if boxes_as_points and (points is not None or prompt.boxes is not None):
        points = given["point_coords"][:, :-1], given["point_labels"][:, :-1]
    boxes = None if boxes_as_points else prompt.boxes
    sparse, dense = model.prompt_encoder(points=points, boxes=boxes, masks=prompt.masks)
    return {
        "image_pe": model.prompt_encoder.get_dense_pe(), "sparse_prompt_embeddings": sparse,
        "dense_prompt_embeddings": dense,
    }  # fmt: skip


@pytest.fixture(scope="module")
def hq(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedDecoder, Upstream]:
    sam, path = hq_sam(SIZE_PX), tmp_path_factory.mktemp("hq") / "sam_hq_vit_b.pth"
    torch.save(sam.state_dict(), path)

    def ask(image: dict[str, Tensor], prompt: Prompt, multimask: bool) -> dict[str, Tensor]:
        sam.mask_decoder.interm = image["interm_embeddings"]
        given = asked(sam, prompt, boxes_as_points=False)
        masks, iou = sam.mask_decoder(multimask, image_embeddings=image["image_embeddings"], **given)
        return {"low_res_masks": masks, "iou_predictions": iou}

    return load_checkpoint(path), ask


@pytest.fixture(scope="module")
def hq2(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedDecoder, Upstream]:
    model, path = Hq2(), tmp_path_factory.mktemp("hq2") / "sam2.1_hq_hiera_large.pt"
    torch.save({"model": hq_sam2_state(model)}, path)

    def ask(image: dict[str, Tensor], prompt: Prompt, multimask: bool) -> dict[str, Tensor]:
        embedding, *skips = image.values()
        found = model.mask_decoder(
            image_embeddings=embedding, high_res_features=skips, multimask_output=multimask, repeat_image=True,
            **asked(model, prompt, boxes_as_points=True),
        )  # fmt: skip
        return dict(
            zip(("low_res_masks", "iou_predictions", "object_score_logits"), (*found[:2], found[3]), strict=True)
        )

    return load_checkpoint(path, image_size=SIZE_PX), ask


def ours(
    loaded: LoadedDecoder, image: dict[str, Tensor], given: dict[str, Tensor], **changes: Any
) -> dict[str, Tensor]:
    decoder = build_reference(replace(loaded, spec=replace(loaded.spec, **changes)))
    return dict(decoder(**image, **given))


def test_syscvs_layouts_are_recognised(hq: tuple[LoadedDecoder, Upstream], hq2: tuple[LoadedDecoder, Upstream]) -> None:
    assert (hq[0].kind, hq[0].spec.interm_width) == ("SysCV SAM-HQ checkpoint", INTERM)
    assert (hq2[0].kind, hq2[0].spec.interm_width) == ("SysCV HQ-SAM 2 checkpoint", 0)
    assert all(loaded.spec.hq_token for loaded, _ in (hq, hq2))


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("case", CASES)
def test_hq_sam_agrees(hq: tuple[LoadedDecoder, Upstream], case: str, masks: MaskChoice) -> None:
    loaded, ask = hq
    torch.manual_seed(0)
    image, prompt = images(loaded.spec, 1), CASES[case]()
    expected = ask(image, prompt, masks == "multimask")
    assert expected["low_res_masks"].abs().max() > LOUD
    assert expected["low_res_masks"].shape[1] == 1, "SysCV's multimask output is the best of the three alone"
    assert_agree(ours(loaded, image, feed("sam1", prompt), masks=masks), expected)


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("case", [case for case in CASES if case != "mask"])  # which gets no token from SAM 2's classes
def test_hq_sam2_agrees(hq2: tuple[LoadedDecoder, Upstream], case: str, masks: MaskChoice) -> None:
    loaded, ask = hq2
    torch.manual_seed(0)
    image, prompt = images(loaded.spec, 1), CASES[case]()
    expected = ask(image, prompt, masks == "multimask")
    assert expected["low_res_masks"].abs().max() > LOUD
    given = feed("sam2", prompt)
    assert_agree(ours(loaded, image, given, masks=masks), expected)
    everything = ours(loaded, image, given, masks="all")
    kept = {"multimask": slice(1, 4), "single": slice(0, 1)}[masks]
    cut = {name: everything[name][:, kept] for name in ("low_res_masks", "iou_predictions")}
    assert_agree({**everything, **cut}, expected)


def in_order(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sort three masks as Hugging Face does, the best first."""
    scores, order = found["iou_predictions"][:, 1:].sort(descending=True)
    masks = found["low_res_masks"][:, 1:]
    rows = torch.arange(len(masks))[:, None]
    return {"low_res_masks": masks[rows, order], "iou_predictions": scores}


def asked_of_transformers(pair: Pair, image: dict[str, Tensor], prompt: Prompt, multimask: bool) -> dict[str, Tensor]:
    count = len(feed("sam1", prompt)["point_coords"])
    given = {"input_points": prompt.points, "input_labels": prompt.labels, "input_boxes": prompt.boxes}
    return outputs(
        pair.upstream(
            **{name: None if value is None else value[:, None] for name, value in given.items()},
            input_masks=prompt.masks, image_embeddings=image["image_embeddings"].expand(count, -1, -1, -1),
            intermediate_embeddings=[image["interm_embeddings"].expand(count, -1, -1, -1)],
            multimask_output=multimask, hq_token_only=False,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("huggingface"), "sam_hq", SIZE_PX)


@pytest.mark.parametrize("case", CASES)
def test_hugging_faces_layout_agrees(pair: Pair, tmp_path_factory: pytest.TempPathFactory, case: str) -> None:
    assert pair.loaded.kind == "Hugging Face SAM-HQ model"
    torch.manual_seed(0)
    image, prompt = images(pair.spec, 1), CASES[case]()
    right = Pair(
        "sam_hq", mended(make_pair(tmp_path_factory.mktemp("mended"), "sam_hq", SIZE_PX).upstream), pair.loaded
    )
    given = feed("sam1", prompt)
    everything = ours(pair.loaded, image, given, masks="all")
    sorted_masks = asked_of_transformers(right, image, prompt, multimask=True)
    assert_agree(in_order(everything), sorted_masks)
    best = {name: value[:, :1] for name, value in sorted_masks.items()}
    assert_agree(ours(pair.loaded, image, given, masks="multimask"), best)
    single = asked_of_transformers(right, image, prompt, multimask=False)
    assert_agree(ours(pair.loaded, image, given, masks="single"), single)


def test_what_transformers_computes_as_it_stands(pair: Pair) -> None:
    """Its masks are of the image before the two-way transformer, rows and columns swapped; its scores are right."""
    torch.manual_seed(0)
    image, prompt = images(pair.spec, 1), CASES["box and points"]()
    found = in_order(ours(pair.loaded, image, feed("sam1", prompt), masks="all"))
    theirs = asked_of_transformers(pair, image, prompt, multimask=True)
    assert_agree({"iou_predictions": found["iou_predictions"]}, {"iou_predictions": theirs["iou_predictions"]})
    with pytest.raises(AssertionError, match="low_res_masks: "):
        assert_agree(found, theirs)


def test_hugging_faces_encoder_hands_over_its_first_block_that_attends_everywhere(pair: Pair, tmp_path: Path) -> None:
    config = sam_hq_config(SIZE_PX)
    sizes = {**TINY_SAM_VISION, "image_size": SIZE_PX, "num_hidden_layers": 3, "global_attn_indexes": [1, 2]}
    config.vision_config = type(config.vision_config)(**sizes)
    model = CLASSES["sam_hq"](config).eval().requires_grad_(False)
    randomize(model)
    model.save_pretrained(tmp_path)
    found = find_encoder(open_weights(tmp_path), pair.spec).encoder
    assert found is not None
    pixels = pictures(SIZE_PX)
    theirs = model.vision_encoder(pixels)
    embedding, interm = found.module(pixels)
    assert relative_error(embedding, theirs.last_hidden_state) < TOLERANCE
    assert relative_error(interm, theirs.intermediate_embeddings[0]) < TOLERANCE
    assert relative_error(interm, theirs.intermediate_embeddings[1]) > TOLERANCE


@pytest.mark.parametrize("part", ["embedding_maskfeature.1.eps", "compress_vit_feat.1.eps"])
def test_a_changed_epsilon_shows(hq: tuple[LoadedDecoder, Upstream], part: str) -> None:
    loaded, ask = hq
    torch.manual_seed(0)
    image, prompt = images(loaded.spec, 1), CASES["box"]()
    decoder = build_reference(loaded)
    path, _, name = part.rpartition(".")
    setattr(decoder.mask_decoder.get_submodule(path), name, 1e-1)
    with pytest.raises(AssertionError, match="low_res_masks: "):
        assert_agree(decoder(**image, **feed("sam1", prompt)), ask(image, prompt, True))
