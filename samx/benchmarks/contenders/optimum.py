"""The package 'optimum-onnx': Hugging Face's SamModel as ONNX, in ONNX Runtime. SAM 1 and clicks alone."""

from __future__ import annotations

import contextlib
import importlib
import io
import tempfile
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from samx.benchmarks.contenders import Opened, Setting, encoders
from samx.benchmarks.contenders.huggingface import build, build_encoder
from samx.benchmarks.contenders.pytorch import exact_arithmetic, split_prompts
from samx.errors import PromptError, UnavailableError
from samx.extras import require
from samx.models.encoders.base import Architecture, Weights
from samx.models.session import Feed, Outputs, Placement
from samx.models.spec import DecoderSpec

OPSET = 18
DECODER, ENCODER = "prompt_encoder_mask_decoder.onnx", "vision_encoder.onnx"
PROVIDER = "CPUExecutionProvider"


def open_optimum(setting: Setting) -> Opened:
    """Export the decoder, and open it.

    Raises: UnavailableError where it has not the masks that are asked for.
    """
    spec = setting.loaded.spec
    if spec.masks != "multimask":
        raise UnavailableError("it has other masks", found="multimask", expected=spec.masks)
    exact_arithmetic(setting)
    model = build(setting.loaded)
    positions = model.get_image_wide_positional_embeddings().numpy()
    with tempfile.TemporaryDirectory(prefix="samx-benchmark-") as folder:
        export(model, Path(folder))
        graph = Path(folder, DECODER).read_bytes()
    session = Decoder(spec, open_session(graph, setting.threads), positions)
    return Opened(session, len(graph), encoder=partial(encoders.opened, setting, build_onnx))


def build_onnx(architecture: Architecture, weights: Weights, picture_px: int) -> encoders.Peer:
    """Export the image encoder, and open it."""
    peer = build_encoder(architecture, weights, picture_px)

    def exported(path: Path) -> None:
        export(peer.model, path.parent)
        (path.parent / ENCODER).rename(path)

    return encoders.as_onnx(peer, exported)


def export(model: Any, folder: Path) -> None:
    """Let its own function write a model's graphs.

    Raises: ImportError without the package.
    """
    exporter = importlib.import_module("optimum.exporters.onnx")
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        exporter.onnx_export_from_model(
            model=model, output=folder, task="feature-extraction", do_validation=False, opset=OPSET
        )


def open_session(graph: bytes, threads: int | None) -> Any:
    """Load a graph."""
    ort = require("onnxruntime", "onnxruntime", "running ONNX files")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    return ort.InferenceSession(graph, options, providers=[PROVIDER])


class Decoder:
    """Decode clicks, all prompts of a call at once. The image's work is done in every call."""

    def __init__(self, spec: DecoderSpec, session: Any, positions: Any) -> None:
        self.spec, self._session = spec, session
        self._image: dict[str, Any] = {"image_positional_embeddings": positions}

    def set_image(self, image: Feed) -> None:
        """Take one image's features."""
        self._image["image_embeddings"] = image["image_embeddings"]

    def decode(self, prompts: Feed) -> Outputs:
        """Decode prompts of the same number of clicks.

        Raises: PromptError for boxes.
        """
        coords, labels, boxes = split_prompts(prompts)
        if boxes.shape[1]:
            raise PromptError("it takes no boxes")
        asked = {"input_points": coords[None], "input_labels": labels[None].astype(np.int64)}
        masks, iou = self._session.run(["pred_masks", "iou_scores"], {**self._image, **asked})
        return {"low_res_masks": masks[0], "iou_predictions": iou[0]}

    def placement(self) -> Placement:
        """Name the provider."""
        return Placement("onnxruntime", "cpu", Counter({"cpu": 1}), {"counted": "sessions", "provider": PROVIDER})
