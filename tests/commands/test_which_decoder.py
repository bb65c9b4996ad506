"""Every command that reads a checkpoint reads the decoder that was named, in a file of several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from samx.commands import bench
from samx.commands.bisect import bisect
from samx.commands.calibrate import calibrate
from samx.models import checkpoint


class StopHereError(Exception):
    """End a command once it has read its checkpoint."""


@pytest.mark.parametrize("command", ["calibrate", "bisect", "bench"])
def test_it_is_the_one_that_was_named(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[str | None] = []

    def load(path: Path, decoder: str | None = None, **rest: Any) -> Any:
        named.append(decoder)
        raise StopHereError

    monkeypatch.setattr(checkpoint, "load_checkpoint", load)
    file, spec = tmp_path / "two.pt", SimpleNamespace(image_size=64, family="sam3", object_pointer=False)
    artifact: Any = SimpleNamespace(
        manifest=SimpleNamespace(checkpoint=None, spec=spec, options={"decoder": "tracker"})
    )
    calls: dict[str, Callable[[], Any]] = {
        "calibrate": lambda: calibrate(tmp_path / "set.npz", file, decoder="tracker"),
        "bisect": lambda: bisect(file, decoder="tracker"),
        "bench": lambda: bench._setting(artifact, file, "cpu", None),
    }
    with pytest.raises(StopHereError):
        calls[command]()
    assert named == ["tracker"]
