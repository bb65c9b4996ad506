"""An artifact is there whole or not at all, whatever happens while it is written."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from toy_artifact import MANIFEST, MODEL, PACKAGE, build, fail

from samx.artifacts import commit
from samx.artifacts.commit import seal, staging, write_file
from samx.artifacts.manifest import FileEntry
from samx.artifacts.store import Artifact
from samx.errors import ArtifactError, WriteError

REPOSITORY = Path(__file__).parents[2]


def _content(target: Path) -> bytes:
    return Artifact.open(target).read("decoder.onnx")


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_build_leaves_the_artifact_and_nothing_else(tmp_path: Path) -> None:
    target = build(tmp_path / "toy")
    assert _content(target) == b"model"
    assert _names(tmp_path) == ["toy"]
    assert _names(target) == ["cases.npz", "decoder.onnx", "manifest.json"]


def test_seal_again_adds_evidence_files(tmp_path: Path) -> None:
    with staging(tmp_path / "toy", overwrite=False) as directory:
        (directory / "decoder.onnx").write_bytes(b"model")
        seal(directory, MANIFEST, {"decoder.onnx": "decoder"})
        assert _content(directory) == b"model"
        (directory / "report.json").write_bytes(b"{}")
        seal(directory, MANIFEST, {"decoder.onnx": "decoder", "report.json": "parity_report"})
    assert set(Artifact.open(tmp_path / "toy").manifest.files) == {"decoder.onnx", "report.json"}


def test_what_was_sealed_is_not_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    make = commit._entry

    def entry(path: Path, role: str) -> FileEntry:
        hashed.append(path.name)
        return make(path, role)

    monkeypatch.setattr(commit, "_entry", entry)
    with staging(tmp_path / "toy", overwrite=False) as directory:
        (directory / "decoder.onnx").write_bytes(b"model")
        first = seal(directory, MANIFEST, {"decoder.onnx": "decoder"})
        (directory / "report.json").write_bytes(b"{}")
        roles = {"decoder.onnx": "decoder", "report.json": "parity_report"}
        assert seal(directory, MANIFEST, roles, known=first.files).files["decoder.onnx"] == first.files["decoder.onnx"]
    assert hashed == ["decoder.onnx", "report.json"]
    assert _content(tmp_path / "toy") == b"model"


@pytest.mark.parametrize("fault", ["altered", "missing"])
def test_what_changed_after_it_was_sealed_takes_no_place(fault: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError), staging(tmp_path / "toy", overwrite=False) as directory:  # noqa: PT012
        (directory / "decoder.onnx").write_bytes(b"model")
        first = seal(directory, MANIFEST, {"decoder.onnx": "decoder"})
        (directory / "decoder.onnx").write_bytes(b"nodel")
        if fault == "missing":
            (directory / "decoder.onnx").unlink()
        seal(directory, MANIFEST, {"decoder.onnx": "decoder"}, known=first.files)
    assert _names(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_exception_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error):
        build(tmp_path / "new" / "toy", before_seal=fail(error))
    assert _names(tmp_path) == []


@pytest.mark.parametrize("exchange", [True, False])
def test_overwrite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(commit, "_exchange", lambda staged, target: False)
    target = build(tmp_path / "toy", b"old")
    with pytest.raises(WriteError, match="--force"):
        build(target, b"new")
    assert _content(target) == b"old"
    build(target, b"new", overwrite=True)
    assert _content(target) == b"new"
    assert _names(tmp_path) == ["toy"]


def test_exchange_works_here(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert commit._exchange(tmp_path / "a", tmp_path / "b") == sys.platform.startswith("linux")
    assert _names(tmp_path / "a") == (["b"] if sys.platform.startswith("linux") else ["a"])


def test_failed_overwrite_restores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = build(tmp_path / "toy", b"old")
    monkeypatch.setattr(commit, "_exchange", lambda staged, target: False)
    rename = Path.rename

    def refuse_new(self: Path, to: Path) -> Path:
        if ".samx-new-" in self.name:
            raise OSError(errno.EIO, "device error", str(self))
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(WriteError, match="device error"):
        build(target, b"new", overwrite=True)
    assert _content(target) == b"old"
    assert _names(tmp_path) == ["toy"]


def _random_directory(target: Path) -> None:
    target.mkdir()
    (target / "thesis.txt").write_text("mine")


def _someone_elses_manifest(target: Path) -> None:
    target.mkdir()
    (target / "manifest.json").write_text('{"format": "web-app", "files": {}}')


def _linked(target: Path) -> None:
    target.with_name("real").mkdir()
    target.symlink_to("real")


@pytest.mark.parametrize(
    "occupy", [_random_directory, _someone_elses_manifest, _linked, lambda target: target.write_text("file")]
)
def test_what_is_no_artifact_is_never_replaced(occupy: object, tmp_path: Path) -> None:
    target = tmp_path / "toy"
    assert callable(occupy)
    occupy(target)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(WriteError, match="not replaced"):
        build(target, overwrite=True)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_a_users_file_in_an_artifact_is_never_deleted(tmp_path: Path) -> None:
    target = build(tmp_path / "toy")
    (target / "notes.txt").write_text("mine")
    with pytest.raises(WriteError, match=r"notes\.txt"):
        build(target, b"new", overwrite=True)
    assert (target / "notes.txt").read_text() == "mine"


def test_a_users_file_that_appears_meanwhile_is_never_deleted(tmp_path: Path) -> None:
    target = build(tmp_path / "toy", b"old")
    with pytest.raises(WriteError, match=r"notes\.txt"):
        build(target, b"new", overwrite=True, after_seal=lambda directory: (target / "notes.txt").touch())
    assert _content(target) == b"old"


def test_damaged_artifact_can_be_replaced(tmp_path: Path) -> None:
    target = build(tmp_path / "toy", b"old")
    (target / "decoder.onnx").unlink()
    assert _content(build(target, b"new", overwrite=True)) == b"new"


def test_target_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "toy"
    with pytest.raises(WriteError, match="exists already"):
        build(target, b"late", after_seal=lambda directory: build(target, b"early"))
    assert _content(target) == b"early"


def test_parent_is_made_one_level_deep(tmp_path: Path) -> None:
    assert _content(build(tmp_path / "out" / "toy")) == b"model"
    with pytest.raises(WriteError, match="No such file"):
        build(tmp_path / "a" / "b" / "toy")


def test_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteError):
        build(tmp_path / "file" / "toy")
    assert _names(tmp_path) == ["file"]


def test_parent_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # root may write everywhere, so the refusal itself is played
    def refuse(self: Path, *rest: object, **more: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(WriteError, match="Permission denied"):
        build(tmp_path / "toy")


def test_errors_of_others_stay_theirs(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), staging(tmp_path / "toy", overwrite=False):
        (tmp_path / "checkpoint.pth").read_bytes()
    assert _names(tmp_path) == []


def test_unsealed_and_badly_sealed(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"manifest\.json"), staging(tmp_path / "toy", overwrite=False):
        pass
    with pytest.raises(WriteError, match="roles and files differ"):
        build(tmp_path / "toy", before_seal=lambda directory: (directory / "scratch").touch())
    with pytest.raises(WriteError, match="after sealing"):
        build(tmp_path / "toy", after_seal=lambda directory: (directory / "late").touch())
    with pytest.raises(ArtifactError, match="another size"):
        build(tmp_path / "toy", after_seal=lambda directory: (directory / "cases.npz").write_bytes(b""))
    assert _names(tmp_path) == []


def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = build(tmp_path / "toy", b"old")

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WriteError, match=r"No space left on device.*MiB free") as caught:
        build(target, b"new", overwrite=True)
    assert caught.value.exit_code == 7
    monkeypatch.undo()
    assert _content(target) == b"old"
    assert _names(tmp_path) == ["toy"]


def test_file_size_limit_of_the_system(tmp_path: Path) -> None:
    """A real refusal in the middle of a write, by the kernel."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, old[1]))
    try:
        with pytest.raises(WriteError, match="File too large"):
            build(tmp_path / "toy", bytes(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert _names(tmp_path) == []


def test_write_file_keeps_the_old_one_on_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "report.json"
    write_file(file, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError):
        write_file(file, b"new")
    assert file.read_bytes() == b"old"
    assert _names(tmp_path) == ["report.json"]


# Runs killed by SIGKILL at every stage. The child overwrites `target` and dies where it is told.
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
import samx.artifacts.commit as commit
from samx.artifacts.manifest import CheckpointEntry, Manifest
from samx.models.spec import DecoderSpec

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

stage, target, exchange = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "exchange"
if not exchange:
    commit._exchange = lambda staged, target: False
rename = Path.rename
if stage == "between renames":
    Path.rename = lambda self, to: die() if ".samx-new-" in self.name else rename(self, to)
if stage == "after commit":
    commit.shutil.rmtree = die
with commit.staging(target, overwrite=True) as directory:
    (directory / "decoder.onnx").write_bytes(b"new")
    model = directory / sys.argv[5]
    model.parent.mkdir(parents=True)
    model.write_bytes(b"new")
    if stage == "before seal":
        die()
    commit.seal(directory, Manifest("onnx", "fp32", DecoderSpec(), CheckpointEntry("t", "sam1", "0" * 64, 1)),
                {"decoder.onnx": "decoder", sys.argv[5]: "package"})
    if stage == "after seal":
        die()
raise SystemExit("was not killed")
"""


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("how", ["exchange", "two renames"])
@pytest.mark.parametrize("stage", ["before seal", "after seal", "between renames", "after commit"])
def test_killed_run(tmp_path: Path, stage: str, how: str, old: bool) -> None:
    target = tmp_path / "toy"
    if old:
        build(target, b"old", more=PACKAGE)
    arguments = [stage, str(target), how, str(REPOSITORY), MODEL]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
    reaches = stage != "between renames" or how == "two renames" or not old
    assert done.returncode == (-signal.SIGKILL if reaches else 1)

    if target.exists():  # the old or the new one, whole
        assert _content(target) in (b"old", b"new")
    else:
        assert not old or (stage, how) == ("between renames", "two renames")
    with pytest.raises(ValueError, match="stop"):  # the next run clears up
        build(target, overwrite=True, before_seal=fail(ValueError))
    assert _names(tmp_path) == (["toy"] if target.exists() else [])
    assert target.exists() or not old
    if old and stage != "after commit" and reaches:
        assert _content(target) == b"old"


def test_a_living_runs_directory_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "toy"

    def another_run(directory: Path) -> None:
        build(target, b"second", overwrite=True)
        assert directory.is_dir()

    build(target, b"first", overwrite=True, before_seal=another_run)
    assert _content(target) == b"first"
    assert _names(tmp_path) == ["toy"]


def test_other_targets_leftovers_are_left_alone(tmp_path: Path) -> None:
    other = tmp_path / ".toy2.samx-new-1-aa"
    other.mkdir()
    build(tmp_path / "toy")
    build(tmp_path / "toy[1]")
    assert other.is_dir()
    shutil.rmtree(other)
    assert _names(tmp_path) == ["toy", "toy[1]"]
