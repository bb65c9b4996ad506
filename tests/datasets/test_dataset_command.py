"""samx dataset as it is started, stopped, and refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dataset_toys
import fsspec
import pytest
from dataset_fixtures import COUNT, empty_memory, the_pictures, the_request_of, the_whole  # noqa: F401
from dataset_toys import files
from fsspec.implementations.memory import MemoryFileSystem
from typer.testing import CliRunner

from samx import cli
from samx.commands.dataset import DatasetRequest, segment_dataset
from samx.errors import ArtifactError, InputError, SamxError, UsageError


class Twice(MemoryFileSystem):  # type: ignore[misc, unused-ignore]
    """A store that lists a name twice."""

    protocol = "twice"

    def find(self, path: str, **given: Any) -> list[str]:
        return [f"{path}/{name}" for name in ("a.png", "b.png", "a.png")]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"source": "nowhere"}, InputError, "there are no pictures in 'file:.*nowhere': expected a folder with"),
        (
            {"source": ""},
            UsageError,
            r"the source is empty: found '', expected a folder, .*; '\.' is the current folder",
        ),
        ({"source": " "}, UsageError, "the source is empty: found ' '"),
        ({"out": ""}, UsageError, "--output is empty: found ''"),
        ({"source": "s4://bucket"}, UsageError, "is no place that can be read: found Protocol not known: s4"),
        ({"source": "zip://*.png::photos.zip"}, UsageError, "is a chain of places: expected a path or a plain URL"),
        ({"source": "twice://bucket"}, InputError, "a picture is there twice in 'twice://.*: found 'a.png'"),
        ({"column": "image"}, UsageError, "--column is of Parquet files"),
        ({"engine": "spark"}, UsageError, "unknown engine: found 'spark', expected processes or ray"),
        ({"engine": "ray", "source": "memory://bucket"}, UsageError, "Ray's actors do not see the memory"),
        ({"everything": {"points_per_side": 0}}, UsageError, "points_per_side is out of range"),
        ({"everything": {"use_m2m": True}}, UsageError, "use_m2m"),
        ({"prompts": "boxes.json"}, UsageError, "prompts and their options are not for --everything"),
        ({"everything": None, "prompts": "none.json"}, InputError, "prompts 'none.json' does not exist"),
        ({"everything": None, "prompts": "none.json", "masks": "7"}, UsageError, "no such mask: found '7'"),
        ({"everything": None, "max_hole_area_px": -1}, UsageError, "an area is below 0"),
        ({"encoder": Path("encoder.onnx")}, UsageError, "nothing says which pixels the encoder"),
        ({"pixels": "half"}, UsageError, "this artifact's encoder normalises pixels itself"),
        ({"device": "cuda"}, SamxError, "cannot run on 'cuda' here"),
        ({"model": Path("nothing")}, ArtifactError, "there is no artifact at nothing"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused_and_nothing_is_left(
    changes: dict[str, Any], error: type[SamxError], words: str, request_of: Callable[..., DatasetRequest],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    fsspec.register_implementation("twice", Twice, clobber=True)
    fsspec.filesystem("memory").pipe_file("/bucket/a.png", b"x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        segment_dataset(request_of(**{"out": tmp_path / "out", **changes}))
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_is_missing_is_named(
    request_of: Callable[..., DatasetRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library, extra in (("fsspec.core", "dataset"), ("pyarrow.parquet", "dataset"), ("pycocotools.mask", "results")):
        with monkeypatch.context() as patch:
            patch.setitem(__import__("sys").modules, library, None)
            with pytest.raises(SamxError, match=rf"{library.partition('.')[0]}.*samx\[{extra}\]"):
                segment_dataset(request_of(tmp_path / "out"))


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "samx", "dataset", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def test_the_command_tells_how_far_it_is_and_what_there_is(
    pictures: Path, all_masks_artifact: Path, whole: Path, tmp_path: Path
) -> None:
    asked = command(pictures, "-o", tmp_path / "out", "--model", all_masks_artifact, *dataset_toys.LOOSE)
    done = subprocess.run(
        [*asked, "--per-file", "5", "--threads", "1", "--json"], env=environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["pictures"], facts["errors"], facts["done_now"]) == (COUNT, 1, COUNT)
    assert "Starting workers" in done.stderr
    assert "a/0004.png: file 'a/0004.png' is no picture" in facts["warnings"][0]
    assert files(tmp_path / "out") == files(whole)
    refused = subprocess.run(
        [*asked, "--prompts", "boxes.json"], env=environment(), capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "--points-per-side is a setting of --everything" in refused.stderr


def test_results_that_would_be_lost_are_refused_before_the_work(
    pictures: Path, all_masks_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samx.commands.dataset.segment_dataset", lambda *_: pytest.fail("worked"))
    asked = ["dataset", str(pictures), "-o", "memory://results", "--model", str(all_masks_artifact)]
    ended = CliRunner().invoke(cli.app, asked)
    assert isinstance(ended.exception, UsageError)
    words = "the results would be lost as the command ends: found --output memory://results. Name a folder"
    assert words in str(ended.exception)


# A shell's background jobs inherit that SIGINT is ignored, and Python leaves it so.
STOPPABLE = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "runpy.run_module('samx', run_name='__main__')"
)


def test_a_command_that_is_stopped_keeps_what_is_written(all_masks_artifact: Path, tmp_path: Path) -> None:
    pictures, out = dataset_toys.scenes(tmp_path / "pictures", 80), tmp_path / "out"

    def asked(out: Path) -> list[str]:
        settings = (*dataset_toys.LOOSE, "--per-file", "5", "--workers", "1", "--threads", "1")
        given = map(str, (pictures, "-o", out, "--model", all_masks_artifact, *settings))
        return [sys.executable, "-c", STOPPABLE, "dataset", *given]

    with subprocess.Popen(asked(out), env=environment(), stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list(out.glob("part-*")):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, words = process.communicate()
    assert process.returncode == 130
    assert words.splitlines()[-1] == "stopped; what is written stays, and the same command goes on with the rest"
    assert 1 <= len(list(out.glob("part-*"))) < 16
    for folder in (out, tmp_path / "whole"):
        assert subprocess.run(asked(folder), env=environment(), capture_output=True, check=False).returncode == 0
    assert files(out) == files(tmp_path / "whole")
