"""What is measured of PyTorch's ways of decoding, in which order, and how long each part may take. No torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from samx.errors import UsageError

DTYPES = ("float32", "float16", "bfloat16")
PROMPTS: Mapping[str, tuple[int, ...]] = {"cpu": (1, 16, 64), "cuda": (1, 16, 64, 256, 1024)}  # a call's, by device
USUAL_DTYPES = {"cpu": ("float32",), "cuda": DTYPES}
PARITY = "parity"
JUDGED, TINY_JUDGED = 32, 8  # prompts that a decoder is compared on at least: a few small masks make no mean
TINY_PROMPTS, TINY_IMAGE_PX = (2, 3), 256
TINY_COMPILED = "float32"  # a compiler takes as long for a tiny decoder as for any
# The most that a part may take of the budget, so that one that hangs leaves time to the others.
SHARES: Mapping[str, float] = {PARITY: 1 / 8, "plain": 1 / 5, "compiled": 1 / 4, "onnxruntime": 1 / 5}
# What matters most comes first, in case that the time is over.
ORDER = (
    (PARITY, "float32"), (PARITY, "float16"), (PARITY, "bfloat16"), ("plain", "float16"), ("plain", "bfloat16"),
    ("plain", "float32"), ("compiled", "float16"), ("onnxruntime", "float32"), ("compiled", "bfloat16"),
    ("compiled", "float32"),
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """Say what one process measures."""

    kind: str = PARITY  # of SHARES
    dtype: str = "float32"
    device: str = "cpu"
    prompts: tuple[int, ...] = ()  # of each call; none: what suits the device
    seconds: float = 3.0  # timed, of each way
    least: int = 10  # timed calls of each way
    threads: int | None = None
    checkpoint: str = ""
    tiny: bool = False  # a small picture and small peaks: to prove the program, not to measure

    @property
    def judged(self) -> int:
        """Return the number of prompts that each way is compared on, at least."""
        return TINY_JUDGED if self.tiny else JUDGED

    @property
    def name(self) -> str:
        """Name it for people."""
        return f"{self.kind} {self.dtype}"

    @property
    def image_size(self) -> int | None:
        """Return the side of the picture that the decoder is made for; None: the checkpoint says it."""
        return TINY_IMAGE_PX if self.tiny else None


def plan(asked: Task, dtypes: Sequence[str] = (), kinds: Sequence[str] = ()) -> list[Task]:
    """List the tasks, the most important first; nothing asked: what suits the device.

    Raises: UsageError for what is not offered.
    """
    check("device", asked.device, PROMPTS)
    for what, values, choices in (("dtype", dtypes, DTYPES), ("part", kinds, SHARES)):
        for value in values:
            check(what, value, choices)
    prompts = asked.prompts or (TINY_PROMPTS if asked.tiny else PROMPTS[asked.device])
    few = (min(max(prompts), asked.judged),)
    wanted = dtypes or (DTYPES if asked.tiny else USUAL_DTYPES[asked.device])
    tasks = [
        replace(asked, kind=kind, dtype=dtype, prompts=few if kind == PARITY else prompts)
        for kind, dtype in ORDER
        if dtype in wanted and kind in (kinds or SHARES) and not _spared(asked, kind, dtype)
    ]
    if not tasks:
        raise UsageError("nothing to measure", found=", ".join((*kinds, *dtypes)), expected="onnx in float32")
    return tasks


def _spared(asked: Task, kind: str, dtype: str) -> bool:
    return asked.tiny and kind == "compiled" and dtype != TINY_COMPILED


def check(what: str, value: str, choices: Collection[str]) -> None:
    """Raise UsageError for a value that is not offered."""
    if value not in choices:
        raise UsageError(f"no measurement on this {what}", found=value, expected=" or ".join(choices))
