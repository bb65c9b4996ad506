"""Artifacts that many tests look at: exported once by the real command, never changed."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from samx.commands.export import ExportRequest, export


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


@pytest.fixture
def artifact_copy(demo_artifact: Path, tmp_path: Path) -> Path:
    """Give a copy to damage."""
    return Path(shutil.copytree(demo_artifact, tmp_path / "artifact"))
