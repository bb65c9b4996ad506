"""Prompts in parts, filled up: no more at a time than the library takes, filled up to the numbers that it takes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from samx.kits.runner.kit import RUNTIMES, UNAVAILABLE, Arrays, Json, Kit, KitError, message


class Decoder:
    """Give a library no more prompts than it takes at a time, filled up to the numbers that it takes."""

    def __init__(self, kit: Kit, place: Json) -> None:
        self.place = place
        try:
            self.runs = RUNTIMES[place["runtime"]](kit, place)
        except KitError:
            raise
        except Exception as error:  # these libraries share no class of errors
            line = f"{place['library']} does not open the decoder on '{place['device']}': {message(error)}"
            raise KitError(UNAVAILABLE, line) from error

    def set_image(self, image: Arrays) -> None:
        """Take one image."""
        self.runs.set_image(image)

    def decode(self, prompts: Arrays) -> Arrays:
        """Decode N prompts in even parts: nine in parts of at most eight are five and four."""
        n = len(prompts["point_labels"])
        count = -(-n // self.place["chunk"])
        ends = [n * i // count for i in range(count + 1)]
        parts = [{name: value[a:b] for name, value in prompts.items()} for a, b in pairwise(ends)]
        found = [self._decode(part) for part in parts]
        return found[0] if count == 1 else {name: np.concatenate([part[name] for part in found]) for name in found[0]}

    def _decode(self, prompts: Arrays) -> Arrays:
        padded, (n, points) = self.place["slots"], prompts["point_labels"].shape
        if padded is None:
            return dict(self.runs.decode(prompts))
        rows = min((size for size in padded["sizes"] if size >= points), default=max(padded["points"], points))
        more, missing = ((0, 0), (0, rows - points)), max(padded["prompts"] - n, 0)
        coords = np.pad(prompts["point_coords"], (*more, (0, 0)))
        labels = np.pad(prompts["point_labels"], more, constant_values=padded["empty"])
        feed = {**prompts, "point_coords": coords, "point_labels": labels}
        full = {name: np.pad(x, [(0, missing), *[(0, 0)] * (x.ndim - 1)], "edge") for name, x in feed.items()}
        return {name: value[:n] for name, value in self.runs.decode(full).items()}
