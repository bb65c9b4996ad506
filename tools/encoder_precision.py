"""Measure what half precision costs an image encoder's masks: python -m tools.encoder_precision CHECKPOINT PICTURES.

Every operation is rounded, in the form that is exported; PyTorch adds products up in float32, as engines do. Points and
boxes are random. Masks count that are steady in float32, as in the gate; the figures of all masks stand beside.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from samx.commands.references import in_torch
from samx.exporters.base import ExportJob
from samx.exporters.encoder import load_encoder
from samx.models.checkpoint import load_checkpoint
from samx.models.encoders.picture import picture_graph
from samx.models.encoders.precision import in_half
from samx.models.session import Feed, FloatArray, Session
from samx.processing.images import read_image
from samx.validators.encoder_gate import mask_agreement, steady
from samx.validators.encoder_suite import EncoderSuite

SUFFIXES = (".png", ".jpg", ".jpeg")
HALVES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line a precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("pictures", type=Path, nargs="+", help="files, or a folder of them")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    loaded = load_checkpoint(given.checkpoint)
    job = ExportJob(loaded, loaded.spec, None)
    model = in_torch(given.checkpoint, job)
    photos = [(path.name, read_image(path)) for path in files(given.pictures)]
    suite = EncoderSuite.build(model.encode, model.session, model.picture_px, photos, seed=given.seed)
    say(f"{len(photos)} pictures, masks that are steady from {steady(suite):.3f}")
    for name, half in HALVES.items():
        iou, counted = agreement(suite, encoder(given.checkpoint, job, half), model.session)
        shown = [f"mean {part.mean():.4f}, p05 {np.percentile(part, 5):.4f} of {len(part)}" for part in (counted, iou)]
        say(f"{name}: steady masks {shown[0]}; all masks {shown[1]}")


def say(line: str) -> None:
    """Print a line at once: the next one takes minutes."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def files(given: list[Path]) -> list[Path]:
    """List pictures, those of folders too."""
    lists = [sorted(path.iterdir()) if path.is_dir() else [path] for path in given]
    return [path for found in lists for path in found if path.suffix.lower() in SUFFIXES]


def encoder(checkpoint: Path, job: ExportJob, half: torch.dtype | None) -> Callable[[Feed], Feed]:
    """Build the encoder of levels in a precision."""
    found = load_encoder(checkpoint, job).encoder
    assert found is not None, "the checkpoint has an encoder"
    graph = picture_graph(found.module, job.spec)
    graph = graph if half is None else in_half(graph, half)

    @torch.inference_mode()
    def encode(taken: Feed) -> Feed:
        features = graph.module(*(torch.from_numpy(taken[tensor.name]) for tensor in graph.inputs))
        return {tensor.name: value.numpy() for tensor, value in zip(graph.outputs, features, strict=True)}

    return encode


def agreement(suite: EncoderSuite, encode: Callable[[Feed], Feed], session: Session) -> tuple[FloatArray, FloatArray]:
    """Return the masks' IoU with float32's: of all of them, and of the steady ones."""
    iou = [mask_agreement(one, encode(suite.feed([i])), session)[0] for i, one in enumerate(suite.pictures)]
    stability = [answers.stability.ravel() for one in suite.pictures for answers in one.answers]
    every, steadiness = np.concatenate(iou), np.concatenate(stability)
    return every, every[steadiness >= steady(suite)]


if __name__ == "__main__":
    main()
