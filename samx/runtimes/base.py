"""What every runtime shares: checks of devices and feeds, the image, padding, cutting batches, threads."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from samx.errors import ImageError, PromptError, SamxError, UnavailableError, UsageError
from samx.models.session import Feed, FloatArray, Outputs, Placement
from samx.models.shape_range import ShapeRange
from samx.models.spec import PADDED_POINT, DecoderSpec, TensorSpec

# Prompts decoded at a time. Sixteen keep the products long enough on a CPU (eight cost 6 to 12 % more time a prompt, 32
# gain nothing) and the peak bounded: 1.6 GiB resident for 1000 prompts, 1 GiB of it the masks themselves.
DEFAULT_CHUNK = 16


FLAGS = (0.0, 1.0)  # has_mask_input: a mask is used or it is not

GRAPH_ROLES = ("image", "prompt")  # of a split artifact's files; else one file with the role 'decoder'


def graph_roles(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the roles of an artifact's graphs, the image's before the prompts'; `options` are the export's."""
    return GRAPH_ROLES if options.get("split") else ("decoder",)


def check_device(device: str, known: Collection[str], what: str, fix: str | None = None) -> None:
    """Refuse a device that a runtime does not know; `what` says so in words.

    Raises: UnavailableError.
    """
    if device not in known:
        raise UnavailableError(what, found=f"'{device}'", expected=" or ".join(known), fix=fix)


def refuse_threads(threads: int | None, what: str) -> None:
    """Refuse a number of threads where there are none to choose; `what` says so in words.

    Raises: UsageError.
    """
    if threads is not None:
        raise UsageError(what, found=f"--threads {threads}", fix="Leave it out.")


@dataclass(frozen=True)
class Padding:
    """How many points a prompt and how many prompts a call may have; what is missing is padded, and changes nothing."""

    points: ShapeRange
    prompts: ShapeRange
    sizes: tuple[int, ...] = ()  # the only numbers of points that there are graphs for; none: every one in the span

    @classmethod
    def of(cls, options: Mapping[str, Any], where: str) -> Padding | None:
        """Read an artifact's options; None where its graph takes any number."""
        if not options.get("slots"):
            return None
        points, prompts = (
            ShapeRange.from_json(options.get(name), f"{where}: {name}") for name in ("points", "prompts")
        )
        return cls(points, prompts)

    def padded(self, prompts: dict[str, FloatArray]) -> dict[str, FloatArray]:
        """Pad to the next number of points and prompts. Prompts do not see each other, so the last is repeated.

        Raises: PromptError for more points than the graph takes.
        """
        n, points = prompts["point_labels"].shape
        if points > self.points.max:
            raise PromptError(
                "too many points a prompt for this artifact, padding counted", found=points,
                expected=f"at most {self.points.max}", fix="Export again with a larger --points.",
            )  # fmt: skip
        num_points = min((size for size in self.sizes if size >= points), default=max(self.points.min, points))
        more, missing = num_points - points, max(self.prompts.min - n, 0)
        coords = np.pad(prompts["point_coords"], ((0, 0), (0, more), (0, 0)))
        labels = np.pad(prompts["point_labels"], ((0, 0), (0, more)), constant_values=PADDED_POINT)
        feed = {**prompts, "point_coords": coords, "point_labels": labels}
        return {name: np.pad(x, [(0, missing), *[(0, 0)] * (x.ndim - 1)], "edge") for name, x in feed.items()}


class CopiesOnly:
    """A runtime whose device has a memory of its own: the copies to and from it can be had without the work between."""

    _works = True

    @contextmanager
    def copies_only(self) -> Iterator[None]:
        """Let decode() copy and compute nothing; its outputs hold whatever was there."""
        self._works = False
        try:
            yield
        finally:
            self._works = True


class OneImage:
    """Keep callers on several threads from being answered about each other's image.

    Calls take turns. A thread that set an image is refused once another thread has put its own in the place of it; a
    thread that set none asks about the image that is there.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._number, self._depth = 0, 0
        self._mine = threading.local()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Take the turn, and make the image this thread's; within a turn that was taken before, nothing changes."""
        with self.lock:
            if not self._depth:
                self._number += 1
                self._mine.number = self._number
            with self._turn():
                yield

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Take the turn to ask about the image.

        Raises: UsageError when this thread's own was replaced.
        """
        with self.lock:
            if getattr(self._mine, "number", self._number) != self._number:
                raise UsageError(
                    "another thread has set another image since this one set its own",
                    fix="Open one for each thread, or hold its lock from set_image to the answer.",
                )
            with self._turn():
                yield

    @contextmanager
    def _turn(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1


class Runtime(ABC):
    """Decode prompts on one image; subclasses say how. Threads may share it as OneImage says.

    With `side_by_side` threads, so many prompts or more are decoded one by one, each on a thread of its own: no
    operation then waits for another thread's share of it, which costs a tenth with two threads.
    """

    def __init__(
        self, spec: DecoderSpec, chunk: int = DEFAULT_CHUNK, padding: Padding | None = None, side_by_side: int = 0
    ) -> None:
        if chunk < 1:
            raise UsageError("chunk is too small", found=chunk, expected="at least 1 prompt at a time")
        self._spec, self._padding = spec, padding
        self._side_by_side = side_by_side if padding is None else 0
        self._chunk = chunk if padding is None else min(chunk, padding.prompts.max)
        self._has_image = False
        self.turns = OneImage()

    @property
    def spec(self) -> DecoderSpec:
        """Return the tensors in and out."""
        return self._spec

    def set_image(self, image: Feed) -> None:
        """Take one image's features and keep what does not depend on prompts.

        Shapes: DecoderSpec.image_inputs.
        Raises: ImageError when a tensor is missing, of another shape or not finite.
        """
        with self.turns.changing():
            self._has_image = False
            self._set_image(_checked(image, self._spec.image_inputs, ImageError))
            self._has_image = True

    def decode(self, prompts: Feed) -> Outputs:
        """Decode N prompts on the image, a bounded number at a time.

        Shapes: DecoderSpec.prompt_inputs -> DecoderSpec.outputs.
        Raises: PromptError when a tensor is missing or wrong, or when there are no prompts; UsageError without an
        image, or when another thread has replaced the caller's.
        """
        with self.turns.asking():
            return self._decode_all(prompts)

    def _decode_all(self, prompts: Feed) -> Outputs:
        if not self._has_image:
            raise UsageError("no image is set", fix="Call set_image first.")
        feed = _checked(prompts, self._spec.prompt_inputs, PromptError)
        n = len(feed["point_coords"])
        if n == 0:
            raise PromptError("no prompts", found="N = 0", expected="at least one prompt")
        if "has_mask_input" in feed and not np.isin(feed["has_mask_input"], FLAGS).all():
            raise PromptError("has_mask_input is no flag", found=feed["has_mask_input"], expected="0 or 1 each")
        pooled = 0 < self._side_by_side <= n
        slices = list(_slices(n, 1 if pooled else self._chunk))
        parts = [{name: value[rows] for name, value in feed.items()} for rows in slices]
        answers = self._decode_in_threads(parts) if pooled and n > 1 else map(self._decode_padded, parts)
        return _joined(zip(slices, answers, strict=True), n)

    def _decode_in_threads(self, parts: Sequence[Feed]) -> Iterator[Outputs]:
        """Decode prompts in their order, as many at a time as there are threads."""
        decode = self._decoder_of_a_thread()
        with ThreadPoolExecutor(self._side_by_side, "samx-decode") as pool:
            yield from pool.map(decode, parts)

    def _decoder_of_a_thread(self) -> Callable[[Feed], Outputs]:
        """Return what decodes on the thread that calls it."""
        return self._decode

    def _decode_padded(self, prompts: dict[str, FloatArray]) -> Outputs:
        if self._padding is None:
            return self._decode(prompts)
        n = len(prompts["point_coords"])
        return {name: value[:n] for name, value in self._decode(self._padding.padded(prompts)).items()}

    def _named(self, values: Iterable[Any]) -> Outputs:
        """Return output values by name."""
        return {tensor.name: np.asarray(value) for tensor, value in zip(self._spec.outputs, values, strict=True)}

    @abstractmethod
    def placement(self) -> Placement:
        """Report where the last image and prompts were computed."""

    @abstractmethod
    def _set_image(self, image: Feed) -> None: ...

    @abstractmethod
    def _decode(self, prompts: Feed) -> Outputs: ...


def _joined(answers: Iterable[tuple[slice, Outputs]], n: int) -> Outputs:
    """Put the parts of N prompts' outputs together."""
    outputs: Outputs = {}
    for rows, part in answers:
        if rows == slice(0, n):
            return part
        for name, value in part.items():
            outputs.setdefault(name, np.empty((n, *value.shape[1:]), value.dtype))[rows] = value
    return outputs


def _slices(n: int, chunk: int) -> Iterator[slice]:
    """Cut evenly: nine prompts in chunks of at most eight are five and four, not eight and one."""
    parts = -(-n // chunk)
    bounds = [n * i // parts for i in range(parts + 1)]
    return (slice(a, b) for a, b in pairwise(bounds))


def _checked(feed: Feed, specs: Sequence[TensorSpec], error: type[SamxError]) -> dict[str, FloatArray]:
    expected = [spec.name for spec in specs]
    if set(feed) != set(expected):
        raise error("wrong tensors", found=", ".join(sorted(feed)) or "none", expected=", ".join(expected))
    sizes: dict[str, int] = {}
    return {spec.name: _checked_tensor(np.asarray(feed[spec.name]), spec, sizes, error) for spec in specs}


def _checked_tensor(value: FloatArray, spec: TensorSpec, sizes: dict[str, int], error: type[SamxError]) -> FloatArray:
    if value.dtype != np.float32:
        raise error(f"{spec.name} has the wrong type", found=value.dtype, expected="float32")
    if not _fits(value.shape, spec, sizes):
        shape = tuple(sizes.get(d, d) if isinstance(d, str) else d for d in spec.shape)
        raise error(f"{spec.name} has the wrong shape", found=value.shape, expected=_words(shape))
    if not np.isfinite(value).all():
        raise error(f"{spec.name} holds NaN or infinity", expected="finite values")
    return np.ascontiguousarray(value)


def _fits(shape: tuple[int, ...], spec: TensorSpec, sizes: dict[str, int]) -> bool:
    """Compare shapes; a named axis takes its size from the first tensor that has it."""
    if len(shape) != len(spec.shape):
        return False
    wanted = [sizes.setdefault(d, n) if isinstance(d, str) else d for n, d in zip(shape, spec.shape, strict=True)]
    return list(shape) == wanted


def _words(shape: Sequence[int | str]) -> str:
    return "(" + ", ".join(str(d) for d in shape) + ")"
