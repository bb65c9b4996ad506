"""Export the Segment Anything mask decoder to devices, with proof that it still computes the same masks.

samx.export("sam2.1_hiera_tiny.pt", "tiny", target="onnx")
predictor = samx.open("tiny")
predictor.set_image("photo.jpg")
masks, scores, logits = predictor.predict(point_coords=[(300, 200)], point_labels=[1])
report = samx.validate("tiny")
"""

from __future__ import annotations

import importlib
import os

# ONNX Runtime 1.29 and later writes an id of the device and reports its use over the network, unless this is set before
# it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.2.0"

ERRORS = (
    "ArtifactError", "BenchmarkError", "CheckpointError", "ImageError", "InputError", "MissingExtraError",
    "NoMemoryError", "ParityError", "PromptError", "SamxError", "UnavailableError", "UsageError", "WriteError",
)  # fmt: skip
# Names that cost something, imported when they are first asked for; __init__.pyi tells type checkers.
LAZY = {
    **dict.fromkeys(("export", "open", "validate", "load"), "samx.api"),
    "Artifact": "samx.artifacts.store",
    "Predictor": "samx.predictor",
    "Prompt": "samx.processing.prompts",
    **dict.fromkeys(ERRORS, "samx.errors"),
}
__all__ = [*LAZY, "__version__"]


def __getattr__(name: str) -> object:
    if name not in LAZY:
        raise AttributeError(f"module 'samx' has no attribute {name!r}")
    return getattr(importlib.import_module(LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *LAZY})
