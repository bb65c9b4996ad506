"""Whatever fails around samx, a command ends in one line with the right code, and leaves nothing half done."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from toy_artifact import build

from samx import console
from samx.artifacts import trust
from samx.artifacts.commit import write_file
from samx.artifacts.store import Artifact
from samx.errors import UnavailableError, WriteError

pytestmark = pytest.mark.timeout(120)
HERE = Path(__file__).parents[1]
ARCHIVE = HERE / "data" / "artifact-0.1.0.tar.xz"
SAMX = [sys.executable, "-m", "samx"]
NARROW = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "COLUMNS": "20"}
FULL = Path("/dev/full")
CALLS = ("os.fsync", "pathlib.Path.write_bytes", "pathlib.Path.rename", "pathlib.Path.replace")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.iterdir())


def run(arguments: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command of samx."""
    given: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([*SAMX, *map(str, arguments)], text=True, check=False, timeout=100, **given)


@pytest.mark.parametrize("arguments", [["--help"], ["inspect", "artifact"], ["inspect", "artifact", "--json"]])
def test_a_reader_that_went_away_is_no_error(arguments: list[str], artifact: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    ended = run([artifact if word == "artifact" else word for word in arguments], stdout=write)
    os.close(write)
    assert ended.stderr == ""
    assert ended.returncode in (1, console.NOBODY_READS)  # 1: typer's own, of help


@pytest.mark.skipif(not FULL.exists(), reason="needs Linux")
@pytest.mark.parametrize("arguments", [["--help"], ["inspect", "artifact"], ["inspect", "artifact", "--json"]])
def test_output_that_does_not_fit_is_one_line(arguments: list[str], artifact: Path) -> None:
    with FULL.open("w") as full:
        ended = run([artifact if word == "artifact" else word for word in arguments], stdout=full)
    assert ended.returncode == WriteError.exit_code
    assert len(ended.stderr.splitlines()) == 1
    assert "No space left on device" in ended.stderr


@pytest.mark.skipif(not FULL.exists(), reason="needs Linux")
def test_errors_that_nobody_can_read_keep_their_code() -> None:
    with FULL.open("w") as full:
        assert run(["inspect", "nothing"], stdout=full, stderr=full).returncode == 6


@pytest.mark.parametrize("arguments", [["--help"], ["export", "--help"], ["inspect", "artifact"], ["doctor"]])
def test_a_narrow_terminal_without_letters_shows_everything(arguments: list[str], artifact: Path) -> None:
    ended = run([artifact if word == "artifact" else word for word in arguments], env={**os.environ, **NARROW})
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.isascii()


def test_a_name_that_is_no_text_is_shown() -> None:
    ended = run(["inspect", os.fsdecode(b"\xff\xc3\xa4")], env={**os.environ, **NARROW})
    assert ended.returncode == 6
    assert r"'\udcff\xe4'" in ended.stderr


def test_a_user_without_home_and_name_keeps_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as of a user whom the system does not know
    assert trust.cache_path("kernels", "toy") is None
    assert trust.read_cached(None) is None
    assert trust.write_cached(None, b"") == "this user has no home directory to keep it in"
    with pytest.raises(UnavailableError, match=r"no home directory.*XDG_STATE_HOME"):
        trust.is_trusted("0" * 64)


def test_little_memory_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.run(lambda: bytearray(1 << 60), as_json=False) == 8
    assert capsys.readouterr().err.startswith("error: there is not enough memory for this: found MemoryError")
    refused = RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")
    assert console.run(lambda: fail(refused), as_json=True) == 8
    assert json.loads(capsys.readouterr().out)["error"] == "NoMemoryError"


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_a_command_that_may_take_little_memory_ends_in_one_line(artifact: Path) -> None:
    program = (
        "import resource; from samx import cli; import samx.commands.inspect\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 20, 1 << 20))\ncli.main()"
    )
    command = [sys.executable, "-c", program, "inspect", str(artifact)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert "Traceback" not in ended.stderr
    assert ended.returncode in (0, 8)


@pytest.mark.parametrize("as_json", [True, False])
def test_what_nobody_foresaw_is_one_line_and_a_file(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.run(lambda: fail(ZeroDivisionError("by chance")), as_json=as_json) == 1
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith("error: samx met what it did not foresee: found ZeroDivisionError: by chance. Please")
    file = Path(lines[0].split()[-1].rstrip("."))
    assert "by chance" in file.read_text()
    file.unlink()
    assert bool(shown.out) is as_json


def test_stopping_is_no_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.run(lambda: fail(KeyboardInterrupt()), as_json=False) == console.STOPPED
    assert "samx-fault" not in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EACCES])
def test_a_failing_disk_is_no_fault_of_samx(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    code = console.run(lambda: fail(OSError(number, os.strerror(number), "/there")), as_json=False)
    assert code == (7 if number == errno.EROFS else 6)
    assert "/there: found" in capsys.readouterr().err


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_takes_nothing_is_a_write_error(
    call: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call, lambda *_, **__: fail(OSError(number, os.strerror(number))))
    if call != "pathlib.Path.rename":
        with pytest.raises(WriteError):
            write_file(tmp_path / "file", b"data")
    with pytest.raises(WriteError):
        build(tmp_path / "artifact")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


SLOW = """
import signal, sys, time
from pathlib import Path
from toy_artifact import build
from samx import console, last_resort
last_resort.prepare()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
def wait(folder):
    (Path(sys.argv[1]).parent / "started").touch()
    time.sleep(60)
sys.exit(console.run(lambda: build(Path(sys.argv[1]), after_seal=wait), as_json=False))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_what_a_stopped_export_leaves_is_cleaned_by_the_next(number: int, tmp_path: Path) -> None:
    target, started = tmp_path / "artifact", tmp_path / "started"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    child = subprocess.Popen([sys.executable, "-c", SLOW, str(target)], env=environment, stderr=subprocess.DEVNULL)
    while not started.exists():
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(number)
    code = child.wait(30)
    started.unlink()
    left = list(tmp_path.iterdir())
    expected = {signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: console.STOPPED}
    assert (code, bool(left)) == (expected[signal.Signals(number)], number == signal.SIGKILL)
    build(target)
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


RACE = """
import sys
from pathlib import Path
from toy_artifact import build
from samx import console
for i in range(4):
    code = console.run(lambda: build(Path(sys.argv[1]), sys.argv[2].encode() * 1000, overwrite=True), as_json=False)
    assert code in (0, 7), code
"""


def test_five_exporters_at_once_leave_one_whole_artifact(tmp_path: Path) -> None:
    target = tmp_path / "artifact"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    children = [
        subprocess.Popen([sys.executable, "-c", RACE, str(target), letter], env=environment, stderr=subprocess.PIPE)
        for letter in "abcde"
    ]
    words = [child.communicate(timeout=100)[1].decode() for child in children]
    assert [child.returncode for child in children] == [0] * 5, words
    assert "Traceback" not in "".join(words)
    content = Artifact.open(target).read("decoder.onnx")
    assert content == content[:1] * 1000
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
