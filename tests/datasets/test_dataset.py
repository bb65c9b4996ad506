"""samx dataset as a user runs it: what is written, what is gone on with, what is refused."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dataset_toys
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from dataset_fixtures import COUNT, LOOSE, empty_memory, the_pictures, the_pretended, the_request_of, the_whole  # noqa: F401
from dataset_toys import files, rows, scene

import samx
from samx.artifacts.manifest import MANIFEST_NAME
from samx.commands.dataset import DatasetRequest, segment_dataset
from samx.datasets import processes, stores
from samx.datasets.stores import Store
from samx.errors import ArtifactError, InputError, SamxError, WriteError


def test_masks_are_those_of_everything(whole: Path, pictures: Path, all_masks_artifact: Path) -> None:
    found = rows(whole)
    assert [row["picture"] for row in found] == sorted(f"{'ab'[n % 2]}/{n:04}.png" for n in range(COUNT))
    with samx.open(all_masks_artifact, threads=1) as predictor:
        for row in found:
            assert row["uri"] == (pictures / row["picture"]).as_uri()
            if row["error"] is not None:
                assert row["picture"] == "a/0004.png"
                assert "is no picture that samx reads" in row["error"]
                assert (row["width"], row["masks"]) == (None, [])
                continue
            assert (row["width"], row["height"]) == (160, 120)
            records = list(predictor.everything(pictures / row["picture"], **LOOSE))
            assert len(row["masks"]) == len(records)
            for mask, record in zip(row["masks"], records, strict=True):
                segmentation = dataset_toys.decoded(mask)
                assert np.array_equal(segmentation, record["segmentation"])
                assert mask["area"] == record["area"] == segmentation.sum()
                x, y, width, height = mask["bbox"]
                assert segmentation[y : y + height, x : x + width].sum() == mask["area"]
                assert mask["predicted_iou"] == pytest.approx(record["predicted_iou"], abs=1e-6)
                assert mask["stability_score"] == pytest.approx(record["stability_score"], abs=1e-6)
    assert sum(len(row["masks"]) for row in found) > 20


def test_more_workers_and_other_stores_write_the_same_bytes(
    request_of: Callable[..., DatasetRequest], whole: Path, tmp_path: Path
) -> None:
    segment_dataset(request_of(tmp_path / "out", workers=2))
    assert files(tmp_path / "out") == files(whole)
    segment_dataset(request_of("memory://results/out", workers=2))
    store = fsspec.filesystem("memory")
    assert {path.rpartition("/")[2]: store.cat_file(path) for path in store.find("/results/out")} == files(whole)


def test_pictures_of_an_object_store_are_read_by_the_workers(
    request_of: Callable[..., DatasetRequest], whole: Path, pictures: Path, tmp_path: Path
) -> None:
    store = fsspec.filesystem("memory")
    for path in pictures.glob("*/*"):
        store.pipe_file(f"/bucket/{path.parent.name}/{path.name}", path.read_bytes())
    segment_dataset(request_of(tmp_path / "out", source="memory://bucket", workers=2))
    there = [{**row, "uri": None} for row in rows(whole)]
    assert [{**row, "uri": None} for row in rows(tmp_path / "out")] == there
    assert rows(tmp_path / "out")[0]["uri"] == "memory:///bucket/a/0000.png"


def test_a_disk_that_is_full_in_the_middle_costs_what_was_not_written(
    request_of: Callable[..., DatasetRequest], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, asked, write = tmp_path / "out", request_of(tmp_path / "out"), Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.parent == out and len(list(out.glob("part-*"))) == 1:
            write(path, data[:100])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(WriteError, match=r"No space left on device after 5 pictures of this run. What is written"):
            segment_dataset(asked)
    assert files(out) == {name: data for name, data in files(whole).items() if name in files(out)}
    assert len(files(out)) == 2
    facts = segment_dataset(asked)
    assert (facts["done_before"], facts["done_now"]) == (5, COUNT - 5)
    assert files(out) == files(whole)


def test_what_is_written_is_not_done_again(
    request_of: Callable[..., DatasetRequest], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    monkeypatch.setattr(processes, "in_processes", None)  # nobody is asked
    facts = segment_dataset(request_of(out))
    assert (facts["done_before"], facts["done_now"], facts["masks"] > 20) == (COUNT, 0, True)
    assert files(out) == files(whole)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_file_that_is_missing_is_made_again_byte_by_byte(
    lost: int, request_of: Callable[..., DatasetRequest], whole: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    sorted(out.glob("part-*"))[lost].unlink()
    (out / ".part-0.parquet.1234.tmp").write_bytes(b"left by a run that was killed")
    segment_dataset(request_of(out))
    (out / ".part-0.parquet.1234.tmp").unlink()
    assert files(out) == files(whole)


@pytest.mark.usefixtures("pretended")
def test_pictures_that_came_later_are_done(request_of: Callable[..., DatasetRequest], tmp_path: Path) -> None:
    source = dataset_toys.blanks(tmp_path / "in", [f"{n}.png" for n in range(7)])
    asked = request_of(tmp_path / "out", source=str(source), model=request_of("").model)
    assert segment_dataset(asked)["done_now"] == 7
    dataset_toys.blanks(source, ["later.png", "0a.png"])
    assert segment_dataset(asked)["done_now"] == 2
    (source / "3.png").unlink()
    assert segment_dataset(asked)["pictures"] == 9
    assert [row["picture"] for row in rows(tmp_path / "out")] == [
        "0.png", "0a.png", *(f"{n}.png" for n in range(1, 7)), "later.png"
    ]  # fmt: skip


def test_pictures_with_an_error_are_done_again_where_that_is_asked(
    request_of: Callable[..., DatasetRequest], whole: Path, pictures: Path, tmp_path: Path
) -> None:
    source, out = Path(shutil.copytree(pictures, tmp_path / "in")), tmp_path / "out"
    asked = request_of(out, source=str(source))
    segment_dataset(asked)
    (source / "a" / "0004.png").write_bytes(scene(4, (160, 120)))
    assert segment_dataset(asked)["errors"] == 1
    facts = segment_dataset(replace(asked, retry=True))
    assert (facts["again"], facts["done_now"], facts["errors"], facts["pictures"]) == (1, 1, 0, COUNT)
    same = [row["masks"] for row in rows(whole) if row["picture"] != "a/0004.png"]
    assert [row["masks"] for row in rows(out) if row["picture"] != "a/0004.png"] == same


def test_the_results_of_another_request_are_kept(
    request_of: Callable[..., DatasetRequest], whole: Path, pictures: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(request_of("").model, tmp_path / "other"))
    manifest = (other / MANIFEST_NAME).read_text()
    (other / MANIFEST_NAME).write_text(manifest.replace('"precision": "fp32"', '"precision": "fp16"', 1))
    out, before = Path(shutil.copytree(whole, tmp_path / "out")), files(whole)
    others: list[tuple[dict[str, Any], str]] = [
        ({"model": other}, "found model [0-9a-f]{12} there, [0-9a-f]{12} now"),
        ({"everything": {**LOOSE, "pred_iou_thresh": 0.6}}, "found pred_iou_thresh 0.5 there, 0.6 now"),
        ({"source": str(pictures / "a")}, "found source file:.*pictures there, file:.*pictures/a now"),
        ({"levels": (0.0, 9.0)}, r"found range None there, \[0.0, 9.0\] now"),
    ]
    for changes, words in others:
        with pytest.raises(WriteError, match=words):
            segment_dataset(request_of(out, **changes))
    assert files(out) == before


def test_a_folder_of_something_else_is_kept(request_of: Callable[..., DatasetRequest], tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    for out in (tmp_path, tmp_path / "letter.txt"):
        with pytest.raises(WriteError, match=r"is no folder of results|no folder"):
            segment_dataset(request_of(out))
    with pytest.raises(WriteError, match="found no folder"):
        segment_dataset(request_of(tmp_path / "none" / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_two_rows_of_a_picture_and_a_damaged_file_are_told(
    request_of: Callable[..., DatasetRequest], whole: Path, tmp_path: Path
) -> None:
    part = sorted(whole.glob("part-*"))[0]
    doubled = Path(shutil.copytree(whole, tmp_path / "doubled"))
    shutil.copy(part, doubled / "part-copied.parquet")
    with pytest.raises(ArtifactError, match=r"holds a picture twice: found '.*', again in part-copied.parquet"):
        segment_dataset(request_of(doubled))
    cut = Path(shutil.copytree(whole, tmp_path / "cut"))
    (cut / part.name).write_bytes(part.read_bytes()[:-200])
    with pytest.raises(ArtifactError, match=f"{part.name}' cannot be read"):
        segment_dataset(request_of(cut))
    foreign = Path(shutil.copytree(whole, tmp_path / "foreign"))
    parquet.write_table(pa.table({"picture": ["x"]}), foreign / "part-0.parquet")
    with pytest.raises(ArtifactError, match="belongs to another request"):
        segment_dataset(request_of(foreign))


@pytest.mark.usefixtures("pretended")
def test_a_row_that_gets_lost_is_noticed(
    request_of: Callable[..., DatasetRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault is planted: the workers' rows come without one of them."""
    source, real = dataset_toys.blanks(tmp_path / "in", ["a.png", "b.png", "c.png"]), processes.in_processes
    lossy = lambda *given: (row for row in real(*given) if row["picture"] != "b.png")  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(processes, "in_processes", lossy)
        with pytest.raises(SamxError, match=r"pictures have no row: found b.png. Ask again"):
            segment_dataset(request_of(tmp_path / "out", source=str(source)))
    assert segment_dataset(request_of(tmp_path / "out", source=str(source)))["done_now"] == 1


def test_a_store_that_takes_half_a_file_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.of("memory://half/part.parquet")
    real = type(store.fs).pipe_file

    def failing(self: Any, path: str, value: bytes, **given: Any) -> None:
        real(self, path, value[:3], **given)
        raise OSError(errno.EIO, "connection lost")

    with monkeypatch.context() as patch:
        patch.setattr(type(store.fs), "pipe_file", failing)
        with pytest.raises(WriteError, match=r"cannot write 'memory://.*half/part.parquet': found OSError: connection"):
            store.write(b"whole file")
    assert store.fs.find("/half") == []
    store.write(b"whole file")
    assert store.fs.cat_file("/half/part.parquet") == b"whole file"


def test_prompts_of_a_json_file(
    request_of: Callable[..., DatasetRequest], pictures: Path, all_masks_artifact: Path, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {
        "a/0000.png": [[20, 10, 120, 100], "point=30,40 background=5,5", [50, 60]],
        "a/0002.png": [],
        "b/0001.png": [400, 10, 420, 100],
        "b/0003.png": "box=1,2",
    }
    (tmp_path / "prompts.json").write_text(json.dumps(asked))
    changes: dict[str, Any] = {"everything": None, "prompts": str(tmp_path / "prompts.json")}
    segment_dataset(request_of(tmp_path / "out", **changes))
    found = {row["picture"]: row for row in rows(tmp_path / "out")}
    with samx.open(all_masks_artifact, threads=1) as predictor:
        predictor.set_image(pictures / "a/0000.png")
        best = predictor.segment([
            samx.Prompt(box=(20, 10, 120, 100)), samx.Prompt([(30, 40), (5, 5)], [1, 0]), samx.Prompt([(50, 60)], [1])
        ])  # fmt: skip
    masks = found["a/0000.png"]["masks"]
    assert [mask["prompt"] for mask in masks] == [0, 1, 2]
    assert [mask["mask"] for mask in masks] == [one.index for one in best]
    assert all(np.array_equal(dataset_toys.decoded(m), one.mask) for m, one in zip(masks, best, strict=True))
    assert (found["a/0002.png"]["masks"], found["a/0002.png"]["error"]) == ([], None)
    assert "box corner 0 of prompt 0 is outside the picture" in found["b/0001.png"]["error"]
    assert "box cannot be read" in found["b/0003.png"]["error"]
    assert "there are no prompts for 'b/0005.png'" in found["b/0005.png"]["error"]
    (tmp_path / "prompts.json").write_text(json.dumps({**asked, "b/0005.png": [[1, 2, 30, 40]]}))
    with pytest.raises(WriteError, match=r"found prompts [0-9a-f]{64} there, "):
        segment_dataset(request_of(tmp_path / "out", **changes))
    for text, words in (('{"c.png": []}', "name pictures that are not there: found 1, the first 'c.png'"),
                        ("[]", r'are no object: expected JSON such as {"a.jpg": '),
                        ("{", r"is not valid JSON: found Expecting .*expected JSON such as .* Write the file again\.$"),
                        ('{"a": 1, "a": 2}', r"found a key occurs twice, .*Write the file again\.$")):  # fmt: skip
        (tmp_path / "prompts.json").write_text(text)
        with pytest.raises(InputError, match=words):
            segment_dataset(request_of(tmp_path / "other", **changes))


def test_a_prompt_that_cannot_be_read_costs_its_picture_alone_and_is_shown_whole(
    request_of: Callable[..., DatasetRequest], tmp_path: Path
) -> None:
    bad: dict[Any, str] = {
        "": "''", "  ": "' '", "cat": "cat", "pont=1,2 box=3,4,5,6": "pont=1,2 box=3,4,5,6",
        (1, 2, 3): "[1, 2, 3]", ("",): "''", ((1, 2, 3), (4, 5)): "[1, 2, 3]",
    }  # fmt: skip
    source = tmp_path / "in"
    source.mkdir()
    (tmp_path / "prompts.json").write_text(json.dumps({f"{n}.png": cell for n, cell in enumerate(bad)} | {"9.png": []}))
    for name in (*(f"{n}.png" for n in range(len(bad))), "9.png"):
        (source / name).write_bytes(scene(0))
    changes: dict[str, Any] = {"everything": None, "prompts": str(tmp_path / "prompts.json"), "source": str(source)}
    segment_dataset(request_of(tmp_path / "out", **changes))
    expected = "expected a box [x0, y0, x1, y1], a point [x, y], or a text such as 'box=1,2,3,4 point=5,6'"
    assert [row["error"] for row in rows(tmp_path / "out")] == [
        *(f"a prompt cannot be read: found {words}, {expected}" for words in bad.values()), None
    ]  # fmt: skip


def test_stores_know_their_kind() -> None:
    assert (Store.of("here").is_local, Store.of("here").is_own_memory) == (True, False)
    assert (Store.of("memory://here").is_local, Store.of("memory://here").is_own_memory) == (False, True)
    kept = Store(fsspec.filesystem("filecache", target_protocol="memory"), "here")
    assert (kept.is_local, kept.is_own_memory) == (False, False)
    assert stores.words_of(ValueError()) == "ValueError"
