"""Two actors of Ray Data on 200 pictures: nothing lost and nothing twice, also when one is killed in the middle.

Ray and what it asks for are 300 MB, so that no developer's environment has it: these tests are slow ones, and fail
where it is missing. `make ray` brings Ray 2.60 into an environment of its own and runs them.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import dataset_toys
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PICTURES = 200
MARK = "SAMX_TEST_RUN"


def environment(mark: str) -> dict[str, str]:
    """Mark what comes of a command, so that its actors are told from anybody else's."""
    return {**os.environ, MARK: mark, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def actors(mark: str) -> set[int]:
    """List the processes of actors that work for a command."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_actor = b"MapBatches(Actor)" in (folder / "cmdline").read_bytes()
            if is_actor and f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found.add(int(folder.name))
        except OSError:
            continue
    return found


def command(*arguments: object) -> list[str]:
    asked = ["dataset", *map(str, arguments), *dataset_toys.LOOSE, "--per-file", "20", "--json"]
    return [sys.executable, "-m", "samx", *asked]


def run(*arguments: object) -> None:
    done = subprocess.run(command(*arguments), env=environment("none"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = dataset_toys.scenes(tmp_path_factory.mktemp("ray") / "pictures", PICTURES)
    (folder / "a" / "0100.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def in_processes(pictures: Path, all_masks_artifact: Path) -> dict[str, bytes]:
    out = pictures.parent / "in-processes"
    run(pictures, "-o", out, "--model", all_masks_artifact)
    return dataset_toys.files(out)


def test_two_actors_write_what_processes_write(
    pictures: Path, all_masks_artifact: Path, in_processes: dict[str, bytes], tmp_path: Path
) -> None:
    run(pictures, "-o", tmp_path / "out", "--model", all_masks_artifact, "--engine", "ray", "--workers", "2")
    assert dataset_toys.files(tmp_path / "out") == in_processes
    rows = dataset_toys.rows(tmp_path / "out")
    assert len({row["picture"] for row in rows}) == len(rows) == PICTURES
    assert [row["picture"] for row in rows if row["error"]] == ["a/0100.png"]
    assert sum(len(row["masks"]) for row in rows) > PICTURES


def test_an_actor_that_is_killed_loses_nothing_and_doubles_nothing(
    pictures: Path, all_masks_artifact: Path, in_processes: dict[str, bytes], tmp_path: Path
) -> None:
    mark, out = secrets.token_hex(8), tmp_path / "out"
    asked = command(pictures, "-o", out, "--model", all_masks_artifact, "--engine", "ray", "--workers", "2")
    with (tmp_path / "words.txt").open("w+") as words:
        process = subprocess.Popen(asked, env=environment(mark), stdout=words, stderr=words)
        while process.poll() is None and not list(out.glob("part-*")):
            time.sleep(0.02)
        before = actors(mark)
        for victim in sorted(before)[:1]:
            os.kill(victim, signal.SIGKILL)
        written, seen = len(list(out.glob("part-*"))), set(before)
        while process.poll() is None:
            seen |= actors(mark)
            time.sleep(0.1)
        words.seek(0)
        assert process.returncode == 0, words.read()
    assert len(before) == 2
    assert 1 <= written < PICTURES // 20  # it was in the middle
    assert len(seen) > 2  # another took its place
    assert dataset_toys.files(out) == in_processes
    assert len({row["picture"] for row in dataset_toys.rows(out)}) == PICTURES


def test_a_command_that_is_killed_is_gone_on_with(
    pictures: Path, all_masks_artifact: Path, in_processes: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    asked = pictures, "-o", out, "--model", all_masks_artifact, "--engine", "ray", "--workers", "2"
    with (tmp_path / "words.txt").open("w") as words:
        process = subprocess.Popen(command(*asked), env=environment("killed"), stdout=words, stderr=words)
        while process.poll() is None and not list(out.glob("part-*")):
            time.sleep(0.02)
        process.kill()
        process.wait()
    assert 1 <= len(list(out.glob("part-*"))) < PICTURES // 20
    run(*asked)
    assert {name: data for name, data in dataset_toys.files(out).items() if not name.startswith(".")} == in_processes


POISON = """
import os, sys
from samx.datasets import on_ray
from samx.datasets.pictures import Picture, row_of
from samx.datasets.segmenter import How

class Pretender:
    def __init__(self, how):
        pass
    def __call__(self, picture, read):
        if picture.name == "poison":
            os.kill(os.getpid(), 9)
        return row_of(picture, 1, 1)

class Actor(on_ray.Actor):
    def __init__(self, how):
        self._segmenter, self._reader = Pretender(how), None

on_ray.Actor, on_ray._try_out = Actor, lambda ray, how: None
pictures = [Picture("poison" if n == 13 else str(n), "file:///none") for n in range(30)]
for row in on_ray.on_ray(How("none", "cpu", 1, {}), 2, iter(pictures)):
    print("ROW", row["picture"], row["error"])
"""


def test_a_picture_that_kills_every_actor_is_told_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "poison.py").write_text(POISON)
    done = subprocess.run(
        [sys.executable, tmp_path / "poison.py"], env=environment("poison"), capture_output=True, text=True,
        check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.split(" ", 2)[1:] for line in done.stdout.splitlines() if line.startswith("ROW")]
    assert sorted(name for name, _ in rows) == sorted(["poison", *(str(n) for n in range(30) if n != 13)])
    assert {name: error for name, error in rows if error != "None"} == {
        "poison": "each of the 3 actors that worked on it died"
    }


def test_an_actor_that_cannot_open_the_model_ends_the_command(
    pictures: Path, all_masks_artifact: Path, tmp_path: Path
) -> None:
    asked = command(pictures, "-o", tmp_path / "out", "--model", all_masks_artifact, "--engine", "ray")
    done = subprocess.run(
        [*asked, "--pixels", "half", "--workers", "1"], env=environment("refused"), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "this artifact's encoder normalises pixels itself" in done.stderr
    assert not (tmp_path / "out").exists()


def test_nobody_is_told_that_ray_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own switch, as Ray reads it."""
    code = (
        "from samx.datasets.on_ray import start; start();"
        "from ray._common.usage import usage_lib; print('enabled', usage_lib.usage_stats_enabled())"
    )
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment("quiet"), capture_output=True, text=True, check=False
    )
    assert "enabled False" in done.stdout, done.stderr
