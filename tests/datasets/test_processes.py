"""Workers in processes: rows in order, none lost and none twice, whoever is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import dataset_toys
import pytest

from samx.datasets import processes
from samx.datasets.pictures import Picture, Reader
from samx.datasets.processes import AHEAD, Team, in_processes
from samx.datasets.segmenter import How
from samx.errors import ImageError, SamxError, UsageError


@pytest.fixture(autouse=True)
def pretenders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "COMMAND", dataset_toys.COMMAND)


def how(folder: Path) -> How:
    return How(str(folder), "cpu", 1, {})


def pictures(folder: Path, names: list[str]) -> list[Picture]:
    dataset_toys.blanks(folder, names)
    return [Picture(name, (folder / name).as_uri()) for name in names]


def test_rows_come_in_order_from_several_processes(tmp_path: Path) -> None:
    asked = pictures(tmp_path, [f"{'slow' if n % 5 == 0 else ''}pid{n:03}.png" for n in range(60)])
    found = list(in_processes(how(tmp_path), 3, Reader(), iter(asked)))
    assert [row["picture"] for row in found] == [picture.name for picture in asked]
    assert [row["width"] for row in found] == [1 + n % 9 for n in range(60)]
    assert 2 <= len({row["height"] for row in found}) <= 3


def test_few_pictures_are_under_way_however_many_there_are(tmp_path: Path) -> None:
    taken = 0

    def endless() -> Iterator[Picture]:
        nonlocal taken
        (picture,) = pictures(tmp_path, ["a.png"])
        while True:
            taken += 1
            yield picture

    found = in_processes(how(tmp_path), 2, Reader(), endless())
    for number in range(1, 100):
        next(found)
        assert taken <= number + 2 * AHEAD
    found.close()


def test_a_picture_whose_process_was_killed_is_done_by_another(tmp_path: Path) -> None:
    names = [f"{'once' if n in (3, 17) else 'a'}{n:03}.png" for n in range(40)]
    found = list(in_processes(how(tmp_path), 2, Reader(), iter(pictures(tmp_path, names))))
    assert [row["picture"] for row in found] == names
    assert all(row["error"] is None for row in found)
    assert len(list(tmp_path.glob("*.died"))) == 2


def test_a_picture_that_kills_every_process_is_told_and_stops_nothing(tmp_path: Path) -> None:
    names = ["a.png", "die.png", *(f"b{n}.png" for n in range(10))]
    found = list(in_processes(how(tmp_path), 1, Reader(), iter(pictures(tmp_path, names))))
    assert [row["picture"] for row in found] == names
    wrong = [row for row in found if row["error"] is not None]
    assert [row["picture"] for row in wrong] == ["die.png"]
    assert "died 2 times, at last so: it was killed by SIGKILL" in wrong[0]["error"]


def test_processes_killed_from_outside_again_and_again_lose_nothing(tmp_path: Path) -> None:
    names = [f"slow{n:03}.png" for n in range(24)]
    team, done = Team(how(tmp_path), 2, Reader()), threading.Event()
    killed: list[int] = []

    def kill() -> None:
        while not done.wait(0.9):
            process = team.workers[0].process
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)

    killer = threading.Thread(target=kill)
    try:
        team.start()
        killer.start()
        found = [team.row(picture) for picture in pictures(tmp_path, names)]
    finally:
        done.set()
        killer.join()
        team.stop()
    assert [row["picture"] for row in found] == names
    assert [row["error"] for row in found] == [None] * len(names)
    assert len(set(killed)) >= 2
    assert len(team.workers) == 2


def test_no_process_is_left(tmp_path: Path) -> None:
    found = in_processes(how(tmp_path), 2, Reader(), iter(pictures(tmp_path, [f"slow{n}.png" for n in range(9)])))
    team: list[Team] = []

    class Watched(Team):
        def __init__(self, *given: object) -> None:
            super().__init__(*given)  # type: ignore[arg-type]
            team.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "Team", Watched)
        next(found)
    started = time.monotonic()
    found.close()
    assert time.monotonic() - started < 10
    assert [worker.process.poll() for worker in team[0].workers] == [-signal.SIGKILL] * 2


def test_workers_end_with_the_command_that_started_them(tmp_path: Path) -> None:
    code = (
        "import sys, dataset_toys; from pathlib import Path; from samx.datasets import processes as p;"
        "from samx.datasets.segmenter import How; from samx.datasets.pictures import Reader;"
        "p.COMMAND = dataset_toys.COMMAND; t = p.Team(How(sys.argv[1], 'cpu', 1, {}), 2, Reader()); t.start();"
        "print([w.process.pid for w in t.workers], flush=True); import os; os.kill(os.getpid(), 9)"
    )
    paths = os.pathsep.join([str(Path(dataset_toys.__file__).parent), os.environ.get("PYTHONPATH", ""), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "PYTHONPATH": paths}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    left, deadline = json.loads(done.stdout), time.monotonic() + 20
    while left and time.monotonic() < deadline:
        left = [pid for pid in left if _lives(pid)]
        time.sleep(0.05)
    assert left == []


def _lives(pid: int) -> bool:
    try:
        return "Z (zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_picture_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    asked = pictures(tmp_path, ["a.png", "b.png", "c.png"])
    (tmp_path / "b.png").unlink()
    (tmp_path / "c.png").unlink()
    os.mkfifo(tmp_path / "c.png")
    found = list(in_processes(how(tmp_path), 1, Reader(), iter(asked)))
    assert found[0]["error"] is None
    assert found[1]["error"] == "picture 'b.png' does not exist. Check the path."
    assert "found a pipe, expected a regular file" in found[2]["error"]


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samx.datasets.pictures.PICTURE_CAP_BYTES", 3)
    asked = pictures(tmp_path, ["a.png", "b.png", "c.png", "d.png"])
    found = list(in_processes(how(tmp_path), 1, Reader(), iter(asked)))
    assert [row["error"] is None for row in found] == [True, True, True, False]
    assert "is too large: found 4 bytes, expected at most 3 bytes" in found[3]["error"]


def test_workers_that_cannot_start_end_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuses = tmp_path / "refuses.py"
    for words, error, message in [
        ("raise UsageError('no such model')", UsageError, "no such model"),
        ("raise ValueError('odd')", SamxError, "a worker cannot start: found ValueError"),
        ("import os; os._exit(3)", SamxError, "a worker cannot start: found exit code 3"),
    ]:
        body = f"def refuse(how):\n    {words}\n"
        refuses.write_text(
            "import sys\nfrom samx.errors import UsageError\nfrom samx.datasets import child\n"
            f"{body}child.Segmenter = refuse\nsys.exit(child.main())\n"
        )
        monkeypatch.setattr(processes, "COMMAND", (sys.executable, str(refuses)))
        with pytest.raises(error, match=message):
            list(in_processes(how(tmp_path), 2, Reader(), iter(pictures(tmp_path, ["a.png"]))))


def test_what_a_library_prints_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prints = tmp_path / "prints.py"
    prints.write_text(
        "import os, sys\nimport dataset_toys\nfrom samx.datasets import child\n"
        "class Loud(dataset_toys.Pretender):\n    def __call__(self, *given):\n"
        "        print('loading...', flush=True)\n        os.write(1, b'more\\n')\n"
        "        return super().__call__(*given)\n"
        "child.Segmenter = Loud\nsys.exit(child.main())\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(Path(dataset_toys.__file__).parent))
    monkeypatch.setattr(processes, "COMMAND", (sys.executable, str(prints)))
    (row,) = in_processes(how(tmp_path), 1, Reader(), iter(pictures(tmp_path, ["a.png"])))
    assert (row["width"], row["error"]) == (1, None)


def test_each_worker_keeps_to_its_threads(tmp_path: Path) -> None:
    team = Team(How(str(tmp_path), "cpu", 3, {}), 1, Reader())
    try:
        team.start()
        environment = Path(f"/proc/{team.workers[0].process.pid}/environ").read_bytes().split(b"\0")
    finally:
        team.stop()
    assert {f"{name}=3".encode() for name in processes.THREADS} <= set(environment)


def test_a_reader_says_what_a_cell_lacks(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    parquet.write_table(pa.table({"image": [b"abc", None, b""]}), tmp_path / "a.parquet")
    read, uri = Reader(), (tmp_path / "a.parquet").as_uri()
    assert read(Picture("a", uri, "image", 0, 0)) == b"abc"
    for place in (1, 2):
        with pytest.raises(ImageError, match="has no bytes: found an empty cell"):
            read(Picture("a", uri, "image", 0, place))
