"""No command opens a connection, and no library that samx runs leaves an id of this device.

The commands run in processes that the kernel ends at the first internet socket: a filter of system calls, which threads
and children inherit.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from samx.registry import BACKENDS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="filters of system calls are Linux's")

ARCHIVE = Path(__file__).parent / "data" / "artifact-0.1.0.tar.xz"
SOCKET = {"x86_64": 41, "aarch64": 198}  # number of the system call
INTERNET = (2, 10)  # AF_INET, AF_INET6
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
KILL, ALLOW = 0x80000000, 0x7FFF0000
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # of classic BPF
NUMBER_AT, FIRST_ARGUMENT_AT = 0, 16  # bytes, in seccomp_data


def forbid_internet() -> None:
    """End this process and all that come from it at their first internet socket."""
    program = [
        (LOAD, 0, 0, NUMBER_AT),
        (EQUAL, 0, 3, SOCKET[platform.machine()]),
        (LOAD, 0, 0, FIRST_ARGUMENT_AT),
        *((EQUAL, 3 - i, 0, family) for i, family in enumerate(INTERNET, 1)),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, KILL),
    ]
    filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    head = struct.pack("HxxxxxxP", len(program), ctypes.addressof(filters))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, head):
        raise OSError(ctypes.get_errno(), "no filter of system calls")


def run(*arguments: str | Path, home: Path) -> subprocess.CompletedProcess[str]:
    """Run Python without the internet, as a user outside CI would."""
    hidden = ("CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], env={**environment, "HOME": str(home)}, preexec_fn=forbid_internet,
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6"])
@pytest.mark.parametrize("place", ["here", "in a thread", "in a child"])
def test_a_socket_ends_the_process(family: str, place: str, tmp_path: Path) -> None:
    opens = f"import socket; socket.socket(socket.{family})"
    program = {
        "here": opens,
        "in a thread": f"import threading; t = threading.Thread(target=exec, args=({opens!r},)); t.start(); t.join()",
        "in a child": f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {opens!r}]).returncode)",
    }[place]
    ended = run("-c", program, home=tmp_path)
    assert ended.returncode in (-signal.SIGSYS, 256 - signal.SIGSYS)


def test_other_sockets_do_not(tmp_path: Path) -> None:
    assert run("-c", "import socket; socket.socket(socket.AF_UNIX)", home=tmp_path).returncode == 0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def check(commands: Sequence[Sequence[str | Path]], home: Path) -> None:
    for command in commands:
        ended = run(*command, home=home)
        assert ended.returncode == 0, (command, ended.stderr[-2000:])
    assert not [path for path in home.rglob("*") if "deviceid" in path.name.lower()]


def test_running_an_artifact_opens_none_and_leaves_no_id(home: Path, tmp_path: Path) -> None:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    artifact, report = next(tmp_path.iterdir()), tmp_path / "bench.json"
    commands: list[list[str | Path]] = [
        ["-m", "samx", "validate", artifact],
        ["-m", "samx", "bench", artifact, "--quick", "--scenario", "click", "--output", report],
        ["-m", "samx", "doctor"],
    ]
    check(commands, home)


@pytest.mark.slow
@pytest.mark.parametrize("target", [entry.target for entry in BACKENDS if entry.device == "cpu" and entry.kit])
def test_no_command_opens_one_and_leaves_no_id(target: str, home: Path, tmp_path: Path) -> None:
    out, png = tmp_path / "artifact", tmp_path / "scene.png"
    commands: list[list[str | Path]] = [
        ["-m", "samx", "export", "--target", target, "--output", out],
        ["-m", "samx", "validate", out],
        ["-m", "samx.demo.picture", png],
        ["-m", "samx", "segment", png, "--point", "700,290", "--model", out, "--output", tmp_path / "overlay.png"],
        ["-m", "samx", "bench", out, "--quick", "--scenario", "click", "--output", tmp_path / "bench.json"],
        ["-m", "samx", "inspect", out],
        ["-m", "samx", "doctor"],
    ]
    check(commands, home)


def test_the_variable_is_what_keeps_the_id_away(tmp_path: Path) -> None:
    ended = run("-c", "import samx, os; print(os.environ['ORT_DISABLE_TELEMETRY'])", home=tmp_path)
    assert ended.stdout == "1\n"
