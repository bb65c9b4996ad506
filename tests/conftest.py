"""Artifacts that many tests look at: exported once by the real command, never changed."""

from __future__ import annotations

import fcntl
import importlib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import exports
import pytest
import video_upstream

import samx
from samx.commands.export import ExportRequest, export


class OperatorsFirst(MetaPathFinder):
    """Define torchvision's operators before anything imports torchvision, whose compiled ones may not load.

    Hugging Face's models import it where it is installed.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> None:
        """Find nothing; the finders after this one do."""
        if name == "torchvision":
            importlib.import_module("torchvision_operators").define()


sys.meta_path.insert(0, OperatorsFirst())

Once = Callable[[str, Callable[[Path], object]], Path]


def pytest_collection_finish() -> None:
    """Let torch compute on one thread in this process, where it is here at all.

    On tensors as small as these several threads wait for each other, and on a busy machine twenty times as long as
    they compute. Processes that tests start are left as users have them.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Return what makes a folder once for all of pytest-xdist's workers, whose own folders lie side by side."""
    own = tmp_path_factory.getbasetemp()
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "made-once"
    shared.mkdir(exist_ok=True)

    def make(name: str, write: Callable[[Path], object]) -> Path:
        path, part = shared / name, shared / f"{name}.part"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                shutil.rmtree(part, ignore_errors=True)
                write(part)
                part.rename(path)
        return path

    return make


@pytest.fixture(scope="session")
def demo_artifact(made_once: Once) -> Path:
    """Export the SAM 1 demo model with its gate, as `samx export` does."""
    return made_once("sam1", lambda out: export(ExportRequest(out=out)))


@pytest.fixture(scope="session")
def sam2_artifact(made_once: Once) -> Path:
    """Export the SAM 2 demo model for small frames, split in two graphs, with mask prompts and Attention operators."""
    asked: dict[str, Any] = {"family": "sam2", "mask_input": True, "image_size": 256}
    options: dict[str, object] = {"split": True, "opset": 23}
    return made_once("sam2", lambda out: export(ExportRequest(out=out, options=options, **asked)))


@pytest.fixture(scope="session")
def video_export(made_once: Once) -> Path:
    """Export Meta's SAM 2.1, small frames and random weights, with the pieces of a video's loop; beside its weights."""

    def write(folder: Path) -> None:
        folder.mkdir()
        file = video_upstream.meta_file(video_upstream.meta_video(), folder / "video.pt")
        asked: dict[str, Any] = {"image_size": video_upstream.SIZE_PX, "encoder": False}
        pieces: dict[str, Any] = {"object_pointer": True, "memory_encoder": True, "object_embeddings": True}
        export(ExportRequest(folder / "artifact", checkpoint=file, **pieces, **asked))

    return made_once("video", write)


@pytest.fixture(scope="session")
def all_masks_artifact(made_once: Once) -> Path:
    """Export the SAM 1 demo model for small frames, with all masks and mask prompts, through the front door."""
    return made_once("all", lambda out: samx.export(None, out, masks="all", mask_input=True, image_size=256))


@pytest.fixture(scope="session")
def float_encoder(made_once: Once) -> Path:
    """Write an image encoder as somebody else would, for the frame of demo_artifact."""

    def write(folder: Path) -> None:
        folder.mkdir()
        exports.float_encoder(folder)

    return made_once("encoder", write) / "encoder.onnx"


@pytest.fixture
def artifact_copy(demo_artifact: Path, tmp_path: Path) -> Path:
    """Give a copy to damage."""
    return Path(shutil.copytree(demo_artifact, tmp_path / "artifact"))
