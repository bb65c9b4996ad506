"""A small data set, what is asked of it, and what a run writes that nothing disturbs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dataset_toys
import fsspec
import pytest

from samx.commands.dataset import DatasetRequest, segment_dataset
from samx.datasets import processes

LOOSE: dict[str, Any] = {"points_per_side": 4, "pred_iou_thresh": 0.5, "stability_score_thresh": 0.5}
COUNT = 12


@pytest.fixture(scope="module", name="pictures")
def the_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures, of which one is none, beside a file that is not looked at."""
    folder = dataset_toys.scenes(tmp_path_factory.mktemp("dataset") / "pictures", COUNT)
    (folder / "a" / "0004.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not looked at")
    return folder


@pytest.fixture(scope="module", name="request_of")
def the_request_of(all_masks_artifact: Path, pictures: Path) -> Callable[..., DatasetRequest]:
    def make(out: Path | str, **changes: Any) -> DatasetRequest:
        asked = DatasetRequest(str(pictures), str(out), all_masks_artifact, LOOSE, per_file=5, workers=1, threads=1)
        return replace(asked, **changes)

    return make


@pytest.fixture(scope="module", name="whole")
def the_whole(request_of: Callable[..., DatasetRequest], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run writes that nothing disturbs."""
    out = tmp_path_factory.mktemp("whole") / "out"
    facts = segment_dataset(request_of(out))
    assert (facts["pictures"], facts["errors"], facts["done_now"], facts["files"]) == (COUNT, 1, COUNT, 3)
    return out


@pytest.fixture(name="pretended")
def the_pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let workers answer without a model."""
    monkeypatch.setattr(processes, "COMMAND", dataset_toys.COMMAND)


@pytest.fixture(autouse=True)
def empty_memory() -> Iterator[None]:
    """Empty the store in memory: a process has only one, and what a test leaves there is found by the next."""
    yield
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
