"""Artifacts that many tests look at: exported once by the real command, never changed."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path

import exports
import pytest

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


def pytest_collection_finish() -> None:
    """Let torch compute on one thread in this process, where it is here at all.

    On tensors as small as these several threads wait for each other, and on a busy machine twenty times as long as
    they compute. Processes that tests start are left as users have them.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def demo_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the SAM 1 demo model with its gate, as `samx export` does."""
    out = tmp_path_factory.mktemp("demo") / "sam1"
    export(ExportRequest(out=out))
    return out


@pytest.fixture(scope="session")
def sam2_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the SAM 2 demo model for small frames, split in two graphs, with mask prompts and Attention operators."""
    out = tmp_path_factory.mktemp("demo") / "sam2"
    options: dict[str, object] = {"split": True, "opset": 23}
    export(ExportRequest(out=out, family="sam2", mask_input=True, image_size=256, options=options))
    return out


@pytest.fixture(scope="session")
def all_masks_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the SAM 1 demo model for small frames, with all masks and mask prompts, through the front door."""
    out = tmp_path_factory.mktemp("demo") / "all"
    return samx.export(None, out, masks="all", mask_input=True, image_size=256).path


@pytest.fixture(scope="session")
def float_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an image encoder as somebody else would, for the frame of demo_artifact."""
    return exports.float_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def artifact_copy(demo_artifact: Path, tmp_path: Path) -> Path:
    """Give a copy to damage."""
    return Path(shutil.copytree(demo_artifact, tmp_path / "artifact"))
