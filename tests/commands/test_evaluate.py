"""`samx evaluate`: right artifacts pass with their true figures, wrong ones fail with exit code 3, bad input with 6."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from labelled import SIZES, annotation, blank, coco, scenes, square
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from toy_artifact import edit
from typer.testing import CliRunner

import samx
from samx.artifacts.manifest import ENCODER_ROLE
from samx.artifacts.store import Artifact
from samx.cli import app
from samx.commands.evaluate import Asked, evaluate
from samx.commands.export import ExportRequest, export
from samx.commands.references import weights_of
from samx.demo import demo_checkpoint
from samx.demo.scenes import generate_scene
from samx.errors import ArtifactError, Doubt, InputError, SamxError, UsageError, WriteError
from samx.evaluation.report import AccuracyReport, Answer, ObjectRow, grouped
from samx.evaluation.scores import score
from samx.picture_encoder import PictureEncoder
from samx.runtimes.onnxruntime import OnnxRuntimeRuntime

Measured = tuple[AccuracyReport, Path]


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes with their whole objects labelled."""
    return scenes(tmp_path_factory.mktemp("labels"), levels=("whole",))


@pytest.fixture(scope="module")
def measured(
    demo_artifact: Path, labels: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[AccuracyReport, Path]:
    """The demo model on its own scenes, with all files."""
    folder = tmp_path_factory.mktemp("measured")
    steps: list[str] = []

    def note(text: str, done: int = 0, total: int = 0, /) -> None:
        steps.append(text)

    found = evaluate(
        demo_artifact, Asked(labels), output=folder / "page.html", report=folder / "report.json", progress=note
    )
    assert {"Reading labels", "Measuring pictures", "Writing"} <= set(steps)
    return found, folder


def test_the_demo_model_is_good_on_its_scenes(measured: Measured) -> None:
    found, _ = measured
    assert found.passed
    for side in ("pytorch", "artifact"):
        assert found.overall[side]["iou"] > 0.9
        assert found.overall[side]["dice"] > found.overall[side]["iou"]
        assert found.overall[side]["oracle_iou"] >= found.overall[side]["iou"]
        assert 0.5 < found.overall[side]["boundary_iou"] < found.overall[side]["iou"]
    assert abs(found.overall["drop"]["iou"]) < 1e-4
    assert found.overall["agreement"] > 0.9999
    assert found.differs == ""
    assert set(found.by_category) == {"whole"}
    assert len(found.objects) == sum(group["objects"] for group in found.by_size.values()) > 3


@pytest.mark.long
def test_pytorch_fills_the_frame_as_the_export_does(labels: Path, tmp_path: Path) -> None:
    """The checkpoint does not say how: what was chosen at the export holds for both sides."""
    export(ExportRequest(tmp_path / "stretched", frame="stretch"))
    found = evaluate(tmp_path / "stretched", Asked(labels)).overall
    assert found["agreement"] > 0.9999
    assert abs(found["drop"]["iou"]) < 1e-4


def test_the_figures_are_those_of_the_predictor(measured: Measured, demo_artifact: Path) -> None:
    """Asked by hand: the box of the label, the mask of the highest predicted IoU."""
    by_name = {row.object: row for row in measured[0].objects}
    number = 0
    with samx.open(demo_artifact) as predictor:
        for seed in range(2):
            scene = generate_scene(seed, SIZES[seed])
            predictor.set_image(scene.image)
            for truth in scene.masks("whole"):
                number += 1
                rows, columns = np.nonzero(truth)
                box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                masks, scores, _ = predictor.predict(box=box)
                own = by_name[str(number)].artifact
                found = score(truth, masks[scores.argmax()])
                assert (own.iou, own.boundary_iou) == pytest.approx((found.iou, found.boundary_iou))
                assert own.predicted_iou == pytest.approx(float(scores.max()), abs=1e-5)
                assert own.oracle_iou == pytest.approx(max(score(truth, mask).iou for mask in masks))
    assert number == len(by_name)


def test_the_report_reads_back_as_it_was(measured: Measured) -> None:
    found, folder = measured
    data = (folder / "report.json").read_bytes()
    assert AccuracyReport.from_bytes(data, "it") == found
    altered = json.loads(data)
    altered["overall"]["artifact"]["iou"] = 0.99
    with pytest.raises(ArtifactError, match="contradicts itself"):
        AccuracyReport.from_json(altered, "it")


def test_the_page_shows_figures_and_worst_pictures(measured: Measured) -> None:
    found, folder = measured
    page = (folder / "page.html").read_text()
    assert f"{found.overall['artifact']['iou']:.4f}" in page
    assert found.verdict in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    pictures = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)
    assert len(pictures) == 3 * 2  # label, PyTorch, artifact: one object a picture, and nothing was lost
    assert all(base64.b64decode(data).startswith(b"\x89PNG") for data in pictures)
    assert "On no object did the artifact lose" in page


Plant = Callable[[pytest.MonkeyPatch, Path], object]


def shifted(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Let the artifact's runtime move prompts by 60 px of the frame."""
    decode = OnnxRuntimeRuntime.decode
    monkeypatch.setattr(
        OnnxRuntimeRuntime,
        "decode",
        lambda self, feed: decode(self, {**feed, "point_coords": feed["point_coords"] + 60}),
    )


def repainted(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    """Let the artifact's encoder see other pictures."""
    encode = PictureEncoder.__call__

    def turned(self: PictureEncoder, pictures: Iterable[Any]) -> Iterable[Any]:
        return encode(self, (np.ascontiguousarray(change(picture)) for picture in pictures))

    monkeypatch.setattr(PictureEncoder, "__call__", turned)


def too_dark(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Let the artifact's encoder take levels as if they reached to 8 times as much."""
    repainted(monkeypatch, lambda picture: picture // 8)


def mirrored(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Let the artifact's encoder see pictures from the other side."""
    repainted(monkeypatch, lambda picture: picture[:, ::-1])


def other_weights(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Move the decoder's weights, and let the manifest say that this is how it was written."""
    file = path / "decoder.onnx"
    model, rng = onnx.load(file), np.random.default_rng(0)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size > 4096:
            moved = values + 0.5 * values.std() * rng.normal(size=values.shape)
            tensor.CopyFrom(numpy_helper.from_array(moved.astype(np.float32), tensor.name))
    onnx.save(model, file)
    data = file.read_bytes()
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    edit(path, lambda manifest: manifest["files"]["decoder.onnx"].update(entry))


@pytest.mark.parametrize("plant", [shifted, too_dark, mirrored, other_weights])
def test_a_wrong_artifact_fails_and_is_shown(
    plant: Plant, artifact_copy: Path, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, artifact_copy)
    line = ["evaluate", str(artifact_copy), "--data", str(labels), "-o", str(tmp_path / "page.html"), "--json"]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 3, done.output
    found = json.loads(done.stdout)
    assert not found["passed"]
    assert found["overall"]["drop"]["iou"] > 0.01
    assert found["overall"]["pytorch"]["iou"] > 0.9  # the reference stands
    assert "objects" not in found
    page = (tmp_path / "page.html").read_text()
    assert "FAILED" in page
    assert "Where the artifact lost most" in page


def test_other_masks_that_are_as_good_are_told(
    demo_artifact: Path, labels: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The scenes' colours are random, so that labels alone do not tell BGR from RGB; PyTorch's masks do."""
    repainted(monkeypatch, lambda picture: picture[..., ::-1])
    found = evaluate(demo_artifact, Asked(labels, max_drop=0.2), output=tmp_path / "page.html")
    assert found.passed
    assert found.overall["agreement"] < 0.97
    assert "its masks are others than PyTorch's" in found.summary()
    assert "its masks are others than PyTorch" in (tmp_path / "page.html").read_text()


def test_the_bound_decides(artifact_copy: Path, labels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shifted(monkeypatch, artifact_copy)
    done = CliRunner().invoke(app, ["evaluate", str(artifact_copy), "--data", str(labels), "--max-drop", "1"])
    assert done.exit_code == 0, done.output
    assert "passed" in done.output


def test_people_read_the_means_and_what_was_left_out(demo_artifact: Path, tmp_path: Path) -> None:
    file = scenes(tmp_path, range(1))
    document = json.loads(file.read_text())
    mask = square((320, 240), side=1)
    document["annotations"] += [annotation(900, 0, 0, mask, iscrowd=1), annotation(901, 0, 0, mask)]
    file.write_text(json.dumps(document))
    done = CliRunner().invoke(app, ["evaluate", str(demo_artifact), "--data", str(file), "--prompt", "points:2"])
    assert done.exit_code == 0, done.output
    words = " ".join(done.output.split())
    assert "boundary IoU" in words
    assert "subpart" in words
    assert "1 labels of crowds (iscrowd), which are no single object" in words
    assert "1 objects that are too small for the prompt" in words


def test_without_an_encoder_pytorch_s_serves_both(artifact_copy: Path, labels: Path) -> None:
    encoder = [
        name for name, entry in Artifact.open(artifact_copy).manifest.files.items() if entry.role == ENCODER_ROLE
    ]

    def without(manifest: dict[str, Any]) -> None:
        for name in encoder:
            del manifest["files"][name]
        del manifest["options"]["encoder"]

    edit(artifact_copy, without)
    with pytest.warns(Doubt, match="PyTorch's makes the features for both"):
        found = evaluate(artifact_copy, Asked(labels, limit=1))
    assert found.artifact["image_encoder"] == "PyTorch's"
    assert abs(found.overall["drop"]["iou"]) < 1e-4


def test_another_checkpoint_is_refused(demo_artifact: Path, labels: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    weights = load_file(demo_checkpoint("sam1"))
    save_file({name: torch.roll(value, 1) for name, value in weights.items()}, other)
    with pytest.raises(SamxError) as caught:
        evaluate(demo_artifact, Asked(labels), checkpoint=other)
    assert caught.value.exit_code == 6
    assert "another checkpoint" in str(caught.value)


def test_a_checkpoint_that_nobody_knows_has_to_be_named(artifact_copy: Path, labels: Path) -> None:
    edit(artifact_copy, lambda manifest: manifest["checkpoint"].update(sha256="0" * 64, name="mine.pth"))
    with pytest.raises(UsageError, match=r"has to be named.*Add --checkpoint mine\.pth"):
        evaluate(artifact_copy, Asked(labels))


def test_the_demo_s_weights_are_found(demo_artifact: Path) -> None:
    artifact = Artifact.open(demo_artifact)
    assert weights_of(artifact, None) == demo_checkpoint("sam1")
    assert weights_of(artifact, Path("mine")) == Path("mine")


class TestRefusals:
    """Before the work, and nothing is written."""

    @pytest.mark.parametrize(
        ("changes", "error", "words"),
        [
            ({"prompt": "circle"}, UsageError, "no such prompt"), ({"max_drop": -0.1}, UsageError, "no share"),
            ({"max_drop": float("nan")}, UsageError, "no share"), ({"limit": 0}, UsageError, "no picture"),
            ({"pictures": Path("nowhere")}, UsageError, "is no folder"),
            ({"data": Path("nowhere.json")}, InputError, "does not exist"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_asked(
        self, changes: dict[str, Any], error: type[SamxError], words: str, demo_artifact: Path, labels: Path,
        tmp_path: Path,
    ) -> None:  # fmt: skip
        with pytest.raises(error, match=words):
            evaluate(demo_artifact, replace(Asked(labels), **changes), output=tmp_path / "page.html")
        assert list(tmp_path.iterdir()) == []

    def test_labels_are_not_written_over_and_a_folder_is_no_file(
        self, demo_artifact: Path, labels: Path, tmp_path: Path
    ) -> None:
        before = labels.read_bytes()
        with pytest.raises(UsageError, match="named twice"):
            evaluate(demo_artifact, Asked(labels), report=labels, overwrite=True)
        assert labels.read_bytes() == before
        with pytest.raises(WriteError, match="a folder of that name"):
            evaluate(demo_artifact, Asked(labels), report=tmp_path, overwrite=True)

    @pytest.mark.parametrize("name", ["a.png", "b.png", "a.labels.png", "b/one.png"])
    def test_pictures_and_masks_of_a_folder_are_not_written_over(
        self, name: str, demo_artifact: Path, tmp_path: Path
    ) -> None:
        for picture, mask in (("a.png", "a.labels.png"), ("b.png", "b/one.png")):
            blank(tmp_path, picture)
            (tmp_path / mask).parent.mkdir(exist_ok=True)
            (tmp_path / mask).write_bytes((tmp_path / picture).read_bytes())
        (tmp_path / "report.json").symlink_to(tmp_path / name)
        before = (tmp_path / name).read_bytes()
        for there in (tmp_path / name, tmp_path / "report.json"):
            with pytest.raises(UsageError, match="named twice"):
                evaluate(demo_artifact, Asked(tmp_path, limit=1), report=there, overwrite=True)
        assert (tmp_path / name).read_bytes() == before

    def test_an_earlier_report_in_the_folder_is_replaced(self, demo_artifact: Path, tmp_path: Path) -> None:
        folder = scenes(tmp_path, range(1), ("whole",)).parent
        (folder / "report.json").write_text("{}")
        found = evaluate(demo_artifact, Asked(folder / "labels.json"), report=folder / "report.json", overwrite=True)
        assert AccuracyReport.from_bytes((folder / "report.json").read_bytes(), "it") == found

    def test_objects_too_small_for_the_prompt(self, demo_artifact: Path, tmp_path: Path) -> None:
        folder = scenes(tmp_path, range(1), ()).parent
        image = {"id": 0, "file_name": "scene0.png", "width": 320, "height": 240}
        rows = [annotation(1, 0, 0, square((320, 240), side=2))]
        file = coco(folder / "small.json", [image], rows, [{"id": 0, "name": "dot"}])
        with pytest.raises(UsageError, match="no object can be asked for with 'points:5': found 1 objects that"):
            evaluate(demo_artifact, Asked(file, prompt="points:5"))

    def test_files_that_are_there_or_have_no_folder(self, demo_artifact: Path, labels: Path, tmp_path: Path) -> None:
        there = tmp_path / "page.html"
        there.write_text("mine")
        with pytest.raises(WriteError, match="exists already"):
            evaluate(demo_artifact, Asked(labels), output=there)
        assert there.read_text() == "mine"
        with pytest.raises(WriteError, match="no folder"):
            evaluate(demo_artifact, Asked(labels), report=tmp_path / "none" / "a.json")
        with pytest.raises(UsageError, match="named twice"):
            evaluate(demo_artifact, Asked(labels), report=tmp_path / "a", output=tmp_path / "a")

    def test_no_artifact(self, labels: Path, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match="there is no artifact"):
            evaluate(tmp_path / "nothing", Asked(labels))

    def test_a_damaged_picture(self, demo_artifact: Path, labels: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(labels.parent, tmp_path / "copy"))
        picture = folder / "scene0.png"
        picture.write_bytes(picture.read_bytes()[:-200])
        line = ["evaluate", str(demo_artifact), "--data", str(folder / labels.name), "-o", str(tmp_path / "a.html")]
        done = CliRunner().invoke(app, line)
        assert isinstance(done.exception, SamxError)
        assert done.exception.exit_code == 6
        assert not (tmp_path / "a.html").exists()


class TestVerdict:
    """On figures made by hand."""

    @staticmethod
    def report(*drops: float, max_drop: float = 0.01) -> AccuracyReport:
        rows = []
        for place, drop in enumerate(drops):
            good, own = (Answer(value, value, value, value, value) for value in (0.8, 0.8 - drop))
            rows.append(ObjectRow("a.png", str(place), "cat", 100, 1.0, good, own))
        return AccuracyReport({"name": "x"}, {"pictures": 1}, "box", 0, max_drop, {}, tuple(rows))

    @pytest.mark.parametrize(
        ("drops", "passed"),
        [((0.0,), True), ((-0.3,), True), ((0.009,), True), ((0.011,), False), ((0.03, 0.0), False), ((), False),
         ((0.02, -0.02), True), ((float("nan"),), False)],
    )  # fmt: skip
    def test_a_mean_may_fall_so_far(self, drops: tuple[float, ...], passed: bool) -> None:
        assert self.report(*drops).passed is passed

    def test_one_metric_alone_fails_it(self) -> None:
        good = Answer(0.8, 0.8, 0.8, 0.8, 0.8)
        row = ObjectRow("a.png", "1", "cat", 100, 1.0, good, replace(good, boundary_iou=0.7))
        found = replace(self.report(0.0), objects=(row,))
        assert not found.passed
        assert "boundary IoU fell by 0.1000" in found.verdict

    def test_groups_are_means_over_objects(self) -> None:
        found = grouped(self.report(0.1, 0.3).objects)
        assert found["objects"] == 2
        assert found["drop"]["iou"] == pytest.approx(0.2)

    @pytest.mark.parametrize(("area", "size"), [(1023, "small"), (1024, "medium"), (9215, "medium"), (9216, "large")])
    def test_sizes_are_coco_s(self, area: int, size: str) -> None:
        assert replace(self.report(0.0).objects[0], area_px=area).size == size
