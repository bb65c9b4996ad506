"""What is measured beside artifacts: other people's decoders, and PyTorch forms of ours. One line each in CONTENDERS.

Each is opened as a session, so that the harness asks it what it asks an artifact. Nothing heavy is imported here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samx.errors import UnavailableError, UsageError, how_to_install
from samx.models.session import Session
from samx.picture_encoder import RunLevels

if TYPE_CHECKING:
    from samx.models.checkpoint import LoadedDecoder

PLAIN_PRECISION = "fp32"
EXTRAS: Mapping[str, str | None] = {
    "torch": "export", "segment_anything": "bench", "onnxruntime": "onnxruntime", "samexporter": None,
    "transformers": None, "optimum": None,
}  # fmt: skip
# Of what no extra brings.
ELSEWHERE = "'make compare' installs it into an environment of its own."
OWN_ENVIRONMENT = {
    "optimum": "Install optimum-onnx, which asks for transformers below 4.58, apart, beside 'samx[bench]'."
}


@dataclass(frozen=True)
class Contender:
    """Name a decoder, how it is opened, and what it needs."""

    name: str
    open: str  # "module:function" of a Setting and the options; returns Opened
    library: str  # that has to be importable
    families: tuple[str, ...] = ("sam1", "sam2")
    devices: tuple[str, ...] = ("cpu",)
    precisions: tuple[str, ...] = (PLAIN_PRECISION,)
    options: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""  # a word of --against that asks for it too
    precision: str = PLAIN_PRECISION  # the one that was asked for

    @property
    def title(self) -> str:
        """Return its name in a report."""
        return self.name if self.precision == PLAIN_PRECISION else f"{self.name}-{self.precision}"

    def require(self, family: str, device: str) -> None:
        """Check that it can be opened here.

        Raises: UnavailableError.
        """
        if importlib.util.find_spec(self.library) is None:
            extra = EXTRAS.get(self.library)
            fix = how_to_install(self.library, extra) if extra else OWN_ENVIRONMENT.get(self.library, ELSEWHERE)
            raise UnavailableError(f"its package '{self.library}' is not installed", fix=fix)
        for what, found, known in (("family", family, self.families), ("device", device, self.devices)):
            if found not in known:
                raise UnavailableError(f"it has no such {what}", found=found, expected=" or ".join(known))


@dataclass(frozen=True)
class Setting:
    """What is decoded, where, and in which arithmetic."""

    checkpoint: Path
    loaded: LoadedDecoder  # its spec has the masks and inputs of the artifact
    device: str = "cpu"
    threads: int | None = None
    precision: str = PLAIN_PRECISION


@dataclass(frozen=True)
class Opened:
    """A contender that can be asked, and what its work is."""

    session: Session
    bytes: int  # of its weights or its graph
    form: str = "reference"  # of operations.FORMS
    keeps_image: bool = False  # the image's work is done when it is set, and not in every call
    limit: float = inf  # that it clamps mask logits to, which changes no mask
    encoder: Callable[[], RunLevels] | None = None  # opens the image encoder beside it


# How a decoder in PyTorch may run: compiled, and recorded as a CUDA graph.
WAYS: Mapping[str, Mapping[str, bool]] = {
    "": {}, "-compiled": {"compiled": True}, "-graph": {"graph": True},
    "-compiled-graph": {"compiled": True, "graph": True},
}  # fmt: skip
META, TORCH = f"{__name__}.meta:open_meta", f"{__name__}.pytorch"


def _in_torch(name: str, opener: str, library: str = "torch", **options: Any) -> tuple[Contender, ...]:
    """List a decoder of PyTorch in every way."""
    families = ("sam1",) if library == "segment_anything" else ("sam1", "sam2")
    return tuple(
        Contender(
            f"{name}{suffix}", f"{TORCH}:{opener}", library, families, ("cuda",) if "graph" in way else ("cpu", "cuda"),
            (PLAIN_PRECISION, "fp16", "bf16"), {**options, **way}, "pytorch" if not suffix and not options else "",
        )
        for suffix, way in WAYS.items()
    )  # fmt: skip


CONTENDERS: tuple[Contender, ...] = (
    Contender("meta", META, "segment_anything", ("sam1",)),
    Contender("meta-threads", META, "segment_anything", ("sam1",), options={"pooled": True}),
    Contender("samexporter", f"{__name__}.samexporter:open_samexporter", "samexporter"),
    Contender("huggingface", f"{__name__}.huggingface:open_hugging_face", "transformers"),
    Contender("huggingface-compiled", f"{__name__}.huggingface:open_hugging_face", "transformers",
              options={"compiled": True}),
    Contender("optimum", f"{__name__}.optimum:open_optimum", "optimum", ("sam1",)),
    *_in_torch("pytorch", "open_fast"),
    *_in_torch("pytorch-whole", "open_fast", whole=True),
    *_in_torch("reference", "open_reference"),
    *_in_torch("meta-pytorch", "open_meta", "segment_anything", peer=True),
    Contender("onnx-bound", f"{__name__}.onnx_bound:open_bound", "onnxruntime", devices=("cpu", "cuda")),
)  # fmt: skip


def chosen(against: Iterable[str]) -> list[Contender]:
    """Return the contenders that words of --against ask for, in the order of asking.

    Words are separated by commas. Each is a name or a group, and may end in a precision: pytorch:fp16.
    Raises: UsageError for a word that asks for none.
    """
    found: dict[str, Contender] = {}
    for word in (part.strip() for words in against for part in words.split(",")):
        name, _, precision = word.partition(":")
        asked = [entry for entry in CONTENDERS if name and name in (entry.group, entry.name)]
        fits = [entry for entry in asked if (precision or PLAIN_PRECISION) in entry.precisions]
        if not fits:
            names = ", ".join(entry.name for entry in CONTENDERS)
            expected = names if not asked else f"{name}:{' or '.join(asked[0].precisions)}"
            raise UsageError("nobody of that name to measure against", found=repr(word), expected=expected)
        for entry in fits:
            one = replace(entry, precision=precision or PLAIN_PRECISION)
            found.setdefault(one.title, one)
    return list(found.values())
