"""Faults that can be planted into any session, with numbers and pixels drawn anew: kinds, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from samx.models.session import Feed, Outputs, Placement, Session
from samx.models.spec import DecoderSpec
from samx.validators.suite import lattice

MASKS, IOU = "low_res_masks", "iou_predictions"
Rng = np.random.Generator
Array = np.ndarray[Any, Any]


@dataclass
class Planted:
    """Pass everything on to an honest session; subclasses and hooks spoil it."""

    session: Session
    image_hook: Callable[[Feed], Feed] = lambda feed: feed
    prompt_hook: Callable[[Feed], Feed] = lambda feed: feed
    answer_hook: Callable[[Planted, Feed, Outputs], Outputs] = lambda planted, feed, outputs: outputs
    calls: int = 0  # of decode
    since_image: int = 0  # calls on this image
    images: int = 0  # that were set
    image: Feed = field(default_factory=dict)
    memory: dict[Any, Any] = field(default_factory=dict)  # of hooks

    @property
    def spec(self) -> DecoderSpec:
        return self.session.spec

    def set_image(self, image: Feed) -> None:
        self.images, self.since_image, self.image = self.images + 1, 0, image
        self.session.set_image(self.image_hook(image))

    def decode(self, prompts: Feed) -> Outputs:
        self.calls, self.since_image = self.calls + 1, self.since_image + 1
        outputs = self.session.decode(self.prompt_hook(prompts))
        return self.answer_hook(self, prompts, {name: value.copy() for name, value in outputs.items()})

    def placement(self) -> Placement:
        return self.session.placement()


Kind = Callable[[Session, Rng], Planted]


def _wrong(outputs: Outputs, rows: Any = slice(None)) -> Outputs:
    """Be wrong for some prompts, as a broken kernel is."""
    outputs[MASKS][rows] = -outputs[MASKS][rows] - np.float32(1)
    return outputs


def _image(change: Callable[[Feed], Feed]) -> Kind:
    return lambda session, rng: Planted(session, image_hook=change)


def _prompts(change: Callable[[Feed, Rng], Feed]) -> Kind:
    return lambda session, rng: Planted(session, prompt_hook=lambda feed: change(feed, rng))


def _answers(change: Callable[[Planted, Feed, Outputs], Outputs]) -> Kind:
    return lambda session, rng: Planted(session, answer_hook=change)


def _masks(change: Callable[[Array], Array]) -> Kind:
    return _answers(lambda planted, feed, outputs: {**outputs, MASKS: change(outputs[MASKS]).astype(np.float32)})


def _rows(which: Callable[[int], Any]) -> Kind:
    """Be wrong for some rows of a call of n prompts."""
    return _answers(lambda planted, feed, outputs: _wrong(outputs, which(len(outputs[IOU]))))


def _counts(least: int, most: int | None = None) -> Kind:
    """Be wrong in calls of so many prompts."""
    return _rows(lambda n: slice(None) if least <= n <= (most or n) else slice(0))


def _points(which: Callable[[Array], Any]) -> Kind:
    """Be wrong for prompts of some numbers of points, padding not counted."""

    def change(planted: Planted, feed: Feed, outputs: Outputs) -> Outputs:
        labels = feed["point_labels"]
        points = np.isin(labels, (0, 1)).sum(axis=1) * ~np.isin(labels, (2, 3)).any(axis=1)
        return _wrong(outputs, which(points))

    return _answers(change)


def _bare_point(planted: Planted, feed: Feed, outputs: Outputs) -> Outputs:
    return _wrong(outputs) if feed["point_labels"].shape[1] == 1 and (feed["point_labels"] == 1).all() else outputs


def _only_first_points(feed: Feed, most: int) -> Feed:
    kept = {name: np.ascontiguousarray(feed[name][:, :most]) for name in ("point_coords", "point_labels")}
    return {**feed, **kept}


def _drawn_points(session: Session, rng: Rng) -> Planted:
    n = int(rng.integers(1, 19))
    return _points(lambda points: points == n)(session, rng)


def _beyond_drawn_prompt(session: Session, rng: Rng) -> Planted:
    beyond = int(rng.integers(1, 65))
    return _rows(lambda n: slice(beyond, None))(session, rng)


def _off_lattice(change: Callable[[Array], Array]) -> Kind:
    """Change logits wherever a stored suite keeps no float32."""

    def masks(logits: Array) -> Array:
        flat, on = logits.reshape(*logits.shape[:2], -1).copy(), lattice(logits.shape[-1] // 4)
        changed = change(flat).astype(np.float32)
        changed[..., on] = flat[..., on]
        return changed.reshape(logits.shape)

    return _masks(masks)


def _one_pixel(session: Session, rng: Rng) -> Planted:
    """Set one drawn pixel between the lattice's to -99."""
    size = session.spec.mask_size
    pixel = int(rng.choice(np.setdiff1d(np.arange(size * size), lattice(size // 4))))
    return _off_lattice(lambda flat: np.where(np.arange(flat.shape[-1]) == pixel, -99, flat))(session, rng)


def _one_background_pixel(session: Session, rng: Rng) -> Planted:
    """Set one drawn background pixel to half the largest logit below zero more."""

    def masks(flat: Array) -> Array:
        pixel = rng.integers(flat.shape[-1])
        flat[..., pixel] -= np.where(flat[..., pixel] < 0, 0.5 * np.abs(flat).max(axis=-1), 0)
        return flat

    return _off_lattice(lambda flat: masks(flat.copy()))(session, rng)


def _clipped(name: str, limit: float) -> Kind:
    return _image(lambda feed: {**feed, **({name: feed[name].clip(-limit, limit)} if name in feed else {})})


def _mask_prompts(change: Callable[[Array], Array]) -> Kind:
    return _prompts(lambda feed, rng: {**feed, "mask_input": change(feed["mask_input"]).astype(np.float32)})


class Blending(Planted):
    """Mix what a mask gives and what none gives, by the flag."""

    def decode(self, prompts: Feed) -> Outputs:
        flags = prompts["has_mask_input"]
        ends = [super(Blending, self).decode({**prompts, "has_mask_input": flags * 0 + on}) for on in (0, 1)]
        share = {name: flags.reshape(-1, *[1] * (value.ndim - 1)) for name, value in ends[0].items()}
        return {name: ends[0][name] * (1 - share[name]) + ends[1][name] * share[name] for name in share}


def _after(calls: int) -> Kind:
    return _answers(lambda planted, feed, outputs: _wrong(outputs) if planted.calls > calls else outputs)


def _key(feed: Feed) -> bytes:
    return b"".join(feed[name].tobytes() for name in sorted(feed))


def _kept_by_prompts(planted: Planted, feed: Feed, outputs: Outputs) -> Outputs:
    kept = planted.memory.setdefault(_key(feed), outputs)
    return {name: value.copy() for name, value in kept.items()}


def _one_buffer(planted: Planted, feed: Feed, outputs: Outputs) -> Outputs:
    held: Outputs = planted.memory.setdefault(len(outputs[IOU]), outputs)
    for name, value in outputs.items():
        held[name][...] = value
    return held


def _noise(planted: Planted, feed: Feed, outputs: Outputs) -> Outputs:
    outputs[MASKS] *= np.float32(1 + 1e-6 * planted.calls)
    return outputs


def _of_the_call_before(planted: Planted, feed: Feed, outputs: Outputs) -> Outputs:
    before = planted.memory.get("before", np.float32(0))
    planted.memory["before"] = outputs[MASKS].mean()
    outputs[MASKS] += np.float32(1e-2) * before
    return outputs


def _alters_earlier(planted: Planted, feed: Feed, outputs: Outputs) -> Outputs:
    if "first" in planted.memory:
        planted.memory["first"][MASKS][0, 0, 0, 0] += 1
    planted.memory.setdefault("first", outputs)
    return outputs


class FirstImageComesBack(Planted):
    """Take an image that was there before for the one that is there."""

    def set_image(self, image: Feed) -> None:
        if _key(image) not in self.memory or self.images < 3:
            super().set_image(image)
        self.memory[_key(image)] = True


def _coordinates(change: Callable[[Array], Array]) -> Kind:
    return _prompts(lambda feed, rng: {**feed, "point_coords": change(feed["point_coords"]).astype(np.float32)})


def _labels(change: Callable[[Array], Array]) -> Kind:
    return _prompts(lambda feed, rng: {**feed, "point_labels": change(feed["point_labels"]).astype(np.float32)})


def _first_for_all(planted: Planted, feed: Feed, outputs: Outputs) -> Outputs:
    return {name: value[:1].repeat(len(value), axis=0) for name, value in outputs.items()}


def _two_rows_swapped(planted: Planted, feed: Feed, outputs: Outputs) -> Outputs:
    n = len(outputs[IOU])
    order = np.arange(n)
    if n > 8:
        order[[n // 3, n // 2]] = order[[n // 2, n // 3]]
    return {name: value[order] for name, value in outputs.items()}


def _score(change: Callable[[Array], Array]) -> Kind:
    return _answers(lambda planted, feed, outputs: {**outputs, IOU: change(outputs[IOU]).astype(np.float32)})


def _reached(logits: Array) -> Array:
    """Clip at three quarters of the largest logit of a call."""
    limit = 0.75 * np.abs(logits).max()
    return logits.clip(-limit, limit)


KINDS: dict[str, Kind] = {
    "points beyond the 16th ignored": _prompts(lambda feed, rng: _only_first_points(feed, 16)),
    "points beyond the 12th ignored": _prompts(lambda feed, rng: _only_first_points(feed, 12)),
    "wrong for exactly 8 points": _points(lambda points: points == 8),
    "wrong for a drawn number of points": _drawn_points,
    "wrong for 7 to 16 points": _points(lambda points: (points >= 7) & (points <= 16)),
    "wrong for 18 points and more": _points(lambda points: points >= 18),
    "wrong for more than 18 points": _points(lambda points: points > 18),
    "one point without padding": _answers(_bare_point),
    "wrong for 2 prompts": _counts(2, 2),
    "wrong for 3 prompts": _counts(3, 3),
    "wrong for 9 to 15 prompts": _counts(9, 15),
    "wrong for 4 prompts and more": _counts(4),
    "wrong beyond the 16th prompt": _rows(lambda n: slice(16, None)),
    "wrong beyond the 64th prompt": _rows(lambda n: slice(64, None)),
    "wrong beyond a drawn prompt": _beyond_drawn_prompt,
    "last prompt of a call wrong": _rows(lambda n: slice(n - 1, None) if n > 1 else slice(0)),
    "every 16th prompt wrong": _rows(lambda n: slice(15, None, 16)),
    "first prompt's answer for all": _answers(_first_for_all),
    "two prompts' answers swapped": _answers(_two_rows_swapped),
    "logits times 3 off the lattice": _off_lattice(lambda flat: flat * 3),
    "background minus 5 off the lattice": _off_lattice(lambda flat: np.where(flat < 0, flat - 5, flat)),
    "foreground halved off the lattice": _off_lattice(lambda flat: np.where(flat > 0, flat / 2, flat)),
    "one pixel at -99": _one_pixel,
    "one background pixel lowered": _one_background_pixel,
    "logits clipped below the largest": _masks(_reached),
    "logits rounded to eighths": _masks(lambda logits: np.round(logits * 8) / 8),
    "logits in float16": _masks(lambda logits: logits.astype(np.float16)),
    "embeddings clipped at 6": _clipped("image_embeddings", 6),
    "embeddings in steps of a sixteenth": _image(
        lambda feed: {**feed, "image_embeddings": np.round(feed["image_embeddings"] * 16) / np.float32(16)}),
    "mask prompts clipped at 32": _mask_prompts(lambda masks: masks.clip(-32, 32)),
    "mask prompts clipped at 100": _mask_prompts(lambda masks: masks.clip(-100, 100)),
    "mask prompts rounded to eighths": _mask_prompts(lambda masks: np.round(masks * 8) / 8),
    "mask prompts ignored": _prompts(lambda feed, rng: {**feed, "has_mask_input": feed["has_mask_input"] * 0}),
    "flags blended": lambda session, rng: Blending(session),
    "flags taken as true": _prompts(
        lambda feed, rng: {**feed, "has_mask_input": np.ceil(feed["has_mask_input"]).astype(np.float32)}),
    "answers kept by prompts": _answers(_kept_by_prompts),
    "an image of earlier comes back": lambda session, rng: FirstImageComesBack(session),
    "wrong after 20 calls": _after(20),
    "wrong after 100 calls": _after(100),
    "wrong after a drawn number of calls": lambda session, rng: _after(int(rng.integers(1, 101)))(session, rng),
    "wrong in the second call on an image": _answers(
        lambda planted, feed, outputs: _wrong(outputs) if planted.since_image == 2 else outputs),
    "a buffer handed out twice": _answers(_one_buffer),
    "an earlier answer altered": _answers(_alters_earlier),
    "other last bits in every call": _answers(_noise),
    "the call before shows": _answers(_of_the_call_before),
    "coordinates rounded": _coordinates(np.round),
    "coordinates in float16": _coordinates(lambda coords: coords.astype(np.float16)),
    "coordinates clipped at half": _coordinates(lambda coords: coords.clip(0, 64)),
    "background points as foreground": _labels(lambda labels: np.where(labels == 0, 1, labels)),
    "predicted IoU rounded": _score(lambda iou: np.round(iou, 3)),
    "predicted IoU clipped": _score(lambda iou: iou.clip(None, iou.max() - np.float32(1e-3))),
}  # fmt: skip
# In a session with so many threads, and honest in any other.
OF_THREADS: dict[str, tuple[bool, bool]] = {
    "wrong with the threads asked for": (True, False), "wrong with others": (False, True),
}  # fmt: skip
