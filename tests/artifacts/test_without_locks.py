"""Where the system has no fcntl and no resource, as on Windows, light modules import and artifacts are written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from engine_toys import home as home
from engine_toys import named_at_once

import samx
from samx.artifacts import commit, trust
from samx.errors import WriteError

CODE = """
import sys
sys.modules["fcntl"] = sys.modules["resource"] = None
from pathlib import Path
import samx.cli, samx.commands.validate, samx.commands.bench, samx.commands.build, samx.commands.segment
from samx.artifacts import commit, trust
from samx.artifacts.manifest import CheckpointEntry, Manifest
from samx.artifacts.store import Artifact
from samx.models.spec import DecoderSpec
assert commit.fcntl is None
target = Path(sys.argv[1])
for words in (b"one", b"two"):
    with commit.staging(target, overwrite=True) as directory:
        (directory / "decoder.onnx").write_bytes(words)
        manifest = Manifest("onnx", "fp32", DecoderSpec(), CheckpointEntry("toy", "toy", "0" * 64, 1))
        commit.seal(directory, manifest, {"decoder.onnx": "decoder"})
    assert Artifact.open(target).read("decoder.onnx") == words
trust.remember("a" * 64, "built here")
assert trust.is_trusted("a" * 64)
assert [path.name for path in target.parent.iterdir()] == ["toy"], list(target.parent.iterdir())
print("done")
"""


def test_artifacts_are_written_and_engines_named(tmp_path: Path, home: Path) -> None:
    (tmp_path / "made").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "made" / "toy")], capture_output=True, text=True, check=False,
        cwd=Path(samx.__file__).parents[1], timeout=120,
    )  # fmt: skip
    assert done.stdout.strip() == "done", done.stderr
    assert not list((home / "state").rglob("*.lock"))


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(commit, "fcntl", None)
    monkeypatch.setattr(trust, "fcntl", None)


@pytest.mark.usefixtures("no_locks")
def test_engines_named_at_the_same_time_are_all_kept() -> None:
    assert all(map(trust.is_trusted, named_at_once(6)))


@pytest.mark.usefixtures("no_locks")
def test_a_lock_that_a_killed_process_left_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "LOCK_TRIES", 2)
    lock = trust.trust_file().with_name("trusted-engines.json.lock")
    lock.parent.mkdir(parents=True)
    lock.write_text("")
    with pytest.raises(WriteError, match=r"trusted-engines.json.lock stays locked.*remove it"):
        trust.remember("a" * 64, "built here")
    lock.unlink()
    trust.remember("a" * 64, "built here")
    assert trust.is_trusted("a" * 64)


@pytest.mark.usefixtures("no_locks")
def test_what_another_run_may_be_writing_is_left_alone(tmp_path: Path) -> None:
    left = tmp_path / ".toy.samx-new-1-abcdef01"
    left.mkdir()
    commit._recover(tmp_path / "toy")
    assert left.is_dir()
