"""`samx export --int8` from a checkpoint and embeddings to a proven artifact, and everything that it refuses."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calibration_toys import features
from int8_jobs import ALL_BUT_BIG, SPARED, SPECS, calibration, counted, exported_once
from rich.console import Console
from saturation import saturates
from toys import toy_decoder

from samx import console
from samx.artifacts.store import Artifact
from samx.benchmarks.summary import speed_facts
from samx.commands.calibrate import calibrate
from samx.commands.export import ExportRequest, ExportResult, export
from samx.commands.validate import validate
from samx.errors import ArtifactError, InputError, ParityError, SamxError, UsageError
from samx.models.spec import sam1_spec, sam2_spec
from samx.quantization import int8 as module
from samx.quantization import verdict
from samx.quantization.calibration import CalibrationSet
from samx.quantization.onnx import OnnxTrial
from samx.registry import backend
from samx.validators.suite import ParitySuite

SPEC = SPECS["whole"]
SIZE_PX = SPEC.image_size
JUDGING = "Comparing INT8 with PyTorch on held-out prompts"
CACHE = f"out{module.CACHE_SUFFIX}"


@dataclass(frozen=True)
class Mine:
    """Hold what a user with a model of his own has: a checkpoint, embeddings, and the set made of them."""

    checkpoint: Path
    embeddings: Path
    calibration: Path

    def request(self, folder: Path, **changes: Any) -> ExportRequest:
        fields: dict[str, Any] = {
            "checkpoint": self.checkpoint, "precision": "int8", "image_size": SIZE_PX, "calibration": self.calibration,
            "exclude": SPARED,
        }  # fmt: skip
        return ExportRequest(folder / "out", **{**fields, **changes})


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Mine:
    folder = tmp_path_factory.mktemp("mine")
    found = Mine(folder / "tuned.pth", folder / "embeddings", folder / "set.npz")
    torch.save(toy_decoder(SPEC).state_dict(), found.checkpoint)
    found.embeddings.mkdir()
    for i in range(6):
        np.save(found.embeddings / f"{i}.npy", features(SPEC, i)["image_embeddings"])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("samx.quantization.rollout.HELD_OUT_SAMPLES", 16)
        calibrate(found.calibration, found.checkpoint, image_size=SIZE_PX, embeddings=found.embeddings, samples=24)
    return found


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Trace each decoder once, search with fewer prompts, and measure speed for no longer than that takes."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("samx.exporters.base.export_decoder", exported_once)
        patched.setattr("samx.quantization.search.JUDGED_EVERY", 4)
        patched.setattr(module, "SPEED_SECONDS", 0.01)
        patched.setattr(module, "SPEED_PROMPTS", (1, 2))
        yield


@dataclass(frozen=True)
class Exported:
    """Hold an export's result, what it said on its way, and its search cache just before it was judged."""

    result: ExportResult
    said: list[str]
    notes: bytes
    folder: Path

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.result.path / module.REPORT_FILE).read_text())
        return found


@pytest.fixture(scope="module")
def exported(mine: Mine, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("exported")
    said: list[str] = []
    notes = io.BytesIO()

    def progress(text: str, done: int = 0, total: int = 0, /) -> None:
        said.append(text)
        if text == JUDGING:
            notes.write((folder / CACHE).read_bytes())

    result = export(mine.request(folder), progress)
    return Exported(result, said, notes.getvalue(), folder)


# what is left


def test_the_report_is_a_file_of_the_artifact(exported: Exported) -> None:
    manifest = Artifact.open(exported.result.path).manifest
    assert {name: entry.role for name, entry in manifest.files.items()} == {
        "decoder.onnx": "decoder", "parity_cases.npz": "parity_cases", "parity_report.json": "parity_report",
        "int8_report.json": "int8_report",
    }  # fmt: skip
    data = (exported.result.path / module.REPORT_FILE).read_bytes()
    assert manifest.files[module.REPORT_FILE].sha256 == hashlib.sha256(data).hexdigest()
    assert exported.report["held_out"]["passed"] is True
    assert exported.report["held_out"]["parity"]["level"] == "graph"
    assert manifest.to_json() == json.loads(json.dumps(exported.result.manifest.to_json()))


def test_an_altered_report_is_noticed(exported: Exported, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(exported.result.path, tmp_path / "copy"))
    report = copy / module.REPORT_FILE
    report.write_bytes(report.read_bytes().replace(b"SLOWER", b"faster").replace(b'"seed": 0', b'"seed": 1'))
    with pytest.raises(ArtifactError, match="was altered"):
        Artifact.open(copy).read(module.REPORT_FILE)


def test_the_manifest_says_what_calibrated_it_and_what_is_integer(mine: Mine, exported: Exported) -> None:
    manifest = exported.result.manifest
    facts = manifest.options["int8"]
    sha256 = hashlib.sha256(mine.calibration.read_bytes()).hexdigest()
    assert manifest.precision == "int8"
    assert facts["calibration"]["sha256"] == sha256 == exported.report["calibration"]["sha256"]
    assert facts["calibration"]["checkpoint_sha256"] == manifest.checkpoint.sha256
    assert facts["integer"] == exported.report["search"]["plan"]["integer"] == ([] if saturates() else ["upscaling 1"])
    assert facts["stored"] == exported.report["search"]["plan"]["stored"]
    assert facts["min_iou"] == 0.98
    assert "--exclude" in facts["remedy"]


def test_the_artifact_is_compared_again_on_prompts_that_did_not_calibrate(mine: Mine, exported: Exported) -> None:
    report = validate(exported.result.path)
    assert report.passed
    assert report.precision == "int8"
    assert report.suite["image_source"].startswith("held out of 6 of 6 embeddings")
    made_of = CalibrationSet.load(mine.calibration)
    suite = ParitySuite.load((exported.result.path / "parity_cases.npz").read_bytes())
    images = [image["image_embeddings"].tobytes() for image in made_of.images]
    asked = {image["image_embeddings"].tobytes() for image in suite.images}
    assert asked == {images[sample.image] for sample in made_of.held_out}
    assert not asked & {images[sample.image] for sample in made_of.samples}
    assert len(suite.cases) >= len(made_of.held_out) > 0


def test_the_weights_are_a_fraction_of_the_size(exported: Exported) -> None:
    found = exported.report["search"]
    size = exported.result.manifest.files["decoder.onnx"].bytes
    assert size == found["judged"]["bytes"]
    assert size <= 0.45 * found["float_bytes"]


def of_int8(notes: Sequence[str]) -> list[str]:
    """Leave out what is said of every checkpoint that states no frame, and of one without an image encoder."""
    return [note for note in notes if not note.startswith(("The checkpoint does not state", "NO IMAGE ENCODER"))]


def test_people_are_told_masks_size_accuracy_and_speed(exported: Exported) -> None:
    masks, size, accuracy, one, several = of_int8(exported.result.notes)
    assert masks.startswith("INT8: mean mask IoU 0.9")
    assert size.startswith("Size: ")
    assert accuracy.startswith("Accuracy was not measured: these images come without regions")
    assert ("1 prompt a call" in one, "2 prompts a call" in several) == (True, True)
    assert all(line.startswith("INT8 is ") and "float here" in line for line in (one, several))
    assert exported.report["sentences"] == [masks, size, accuracy, one, several]


def test_nothing_else_is_left(exported: Exported) -> None:
    assert json.loads(exported.notes)["judged"]  # it was there while the search went on
    assert [path.name for path in exported.folder.iterdir()] == ["out"]


def test_the_steps_are_told_in_their_order(exported: Exported) -> None:
    steps = ["Reading tuned.pth", "Exporting the ONNX Runtime graph", "Collecting the ranges of activations"]
    steps += ["Judging upscaling 1, integer", "Asking the PyTorch reference", "Comparing the export with PyTorch"]
    steps += [JUDGING, "Measuring against the float export"]
    assert [text for text in exported.said if text in steps] == steps


def test_the_command_shows_the_table_and_gives_the_data(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    paper = io.StringIO()
    monkeypatch.setattr(console, "out", Console(file=paper, width=200))
    data, draw = console.exported(exported.result)
    draw()
    assert "INT8: what a group costs alone" in paper.getvalue()
    how = "stored" if saturates() else "integer"
    (chosen,) = [
        line for line in paper.getvalue().splitlines() if "upscaling 1" in line and how in line and "yes" in line
    ]
    assert "-0.0" in chosen
    facts = json.loads(json.dumps(data, default=str))
    assert facts["int8"] == exported.report
    assert of_int8(facts["notes"]) == exported.report["sentences"]


def test_a_float_export_shows_none_of_it(exported: Exported) -> None:
    data, _ = console.exported(replace(exported.result, int8=None))
    assert "int8" not in data


# what fails


@pytest.fixture
def notes(exported: Exported, tmp_path: Path) -> Path:
    """Leave the search cache of an export that was interrupted beside the target: its search costs nothing."""
    cache_file = tmp_path / CACHE
    cache_file.write_bytes(exported.notes)
    return cache_file


def assert_refused(request: ExportRequest, error: type[SamxError], code: int, words: str) -> str:
    """See an export end with one line, and nothing at its target."""
    said: list[str] = []
    with pytest.raises(error, match=words) as caught:
        export(request, lambda text, done=0, total=0, /: said.append(text))
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value)
    left = sorted(path.name for path in request.out.parent.iterdir())
    assert left in ([], [CACHE])
    assert "Measuring against the float export" not in said
    return str(caught.value)


def test_a_budget_that_cannot_be_met(mine: Mine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = mine.request(tmp_path, min_iou=0.99999, exclude=ALL_BUT_BIG)
    line = assert_refused(request, ParityError, 3, "INT8 cannot meet the budget: found at best mean IoU 0.99")
    rows = json.loads((tmp_path / CACHE).read_text())["judged"]
    base = rows.pop("[[], []]")
    alone = {name: judged for name, judged in rows.items() if len(json.loads(name)[1]) == 1}
    worst = min(alone, key=lambda name: (alone[name]["mean_iou"], alone[name]["p05_iou"]))
    assert base["mean_iou"] == 1
    assert f"'{json.loads(worst)[1][0]}' costs most" in line
    assert "--exclude" in line
    asked: list[Any] = []
    monkeypatch.setattr(OnnxTrial, "judge", counted(OnnxTrial.judge, asked))
    assert assert_refused(request, ParityError, 3, "INT8 cannot meet the budget") == line
    assert asked == []  # what is known is not judged again


def test_masks_that_are_not_good_enough_on_held_out_prompts(
    mine: Mine, notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bounds are moved until the same export misses them."""
    bounds = verdict.int8_bounds
    monkeypatch.setattr(verdict, "int8_bounds", lambda budget: replace(bounds(budget), mask_iou_mean=0.99999))
    line = assert_refused(mine.request(tmp_path), ParityError, 3, "INT8 is not good enough on held-out prompts")
    assert "--exclude '" in line
    assert notes.exists()


def test_a_file_that_is_not_the_one_that_was_judged(
    mine: Mine, notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every judgement comes from the search cache, and the file that is written has scales that are off."""
    make = OnnxTrial.make

    def damaged(trial: OnnxTrial, plan: Any) -> dict[str, bytes]:
        wrong = copy.copy(trial)
        wrong.ranges = {name: largest / 8 for name, largest in trial.ranges.items()}
        return make(wrong, replace(plan, integer=("upscaling 1",)))  # whatever was judged

    monkeypatch.setattr(OnnxTrial, "make", damaged)
    line = assert_refused(mine.request(tmp_path), ParityError, 3, "parity failed")
    assert "--exclude 'upscaling 1'" in line or "--exclude" in line


def test_slower_is_said(mine: Mine, notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted export goes on from its search cache; the clock says that INT8 takes half as long again."""
    asked: list[Any] = []
    sizes: list[dict[str, int]] = []

    def slow(runs: Any, feed: Any, size: dict[str, int], **options: Any) -> dict[str, Any]:
        assert set(runs) == {"float", "int8"}
        sizes.append(size)
        return speed_facts(len(feed["point_coords"]), options["threads"], 10, 10.0, 15.0, size["float"], size["int8"])

    monkeypatch.setattr("samx.benchmarks.summary.compare_speed", slow)
    monkeypatch.setattr(OnnxTrial, "judge", counted(OnnxTrial.judge, asked))
    result = export(mine.request(tmp_path))
    assert asked == []
    assert not notes.exists()
    assert [line for line in result.notes if line.startswith("INT8 is SLOWER than float here: 15.00 against 10.00 ms")]
    assert all(size["int8"] <= 0.45 * size["float"] for size in sizes)


# what is refused before any work


def other_set(folder: Path, mine: Mine, **changes: Any) -> Path:
    spec = changes.pop("spec", SPEC)
    facts = {"checkpoint_sha256": CalibrationSet.load(mine.calibration).checkpoint_sha256, **changes}
    path = folder / "other.npz"
    replace(calibration(spec), sha256="", **facts).save(path)
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spec": sam2_spec(image_size=SIZE_PX)}, "family.*found sam2, expected sam1"),
        ({"spec": sam1_spec(image_size=160)}, "image size.*found 160, expected 128"),
        ({"checkpoint_sha256": "d" * 64}, "is for another checkpoint: found sha256 dddd"),
    ],
    ids=["family", "image size", "checkpoint"],
)
def test_a_set_of_something_else(mine: Mine, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (target := tmp_path / "target").mkdir()
    request = mine.request(target, calibration=other_set(there, mine, **changes))
    assert "Calibrate again with this checkpoint" in assert_refused(request, InputError, 6, words)


def test_a_set_of_this_very_decoder_is_taken(mine: Mine, tmp_path: Path) -> None:
    """The refusals above are of what was changed, and of nothing else."""
    loaded = CalibrationSet.load(other_set(tmp_path, mine))
    loaded.check_for(SPEC, CalibrationSet.load(mine.calibration).checkpoint_sha256)
    assert len(loaded.images) == 4


@pytest.mark.parametrize(
    ("changes", "error", "code", "words"),
    [
        ({"calibration": None}, UsageError, 2, "needs a calibration set .*samx calibrate CHECKPOINT"),
        ({"calibration": Path("missing.npz")}, ArtifactError, 6, "calibration set 'missing.npz' does not exist"),
        ({"embeddings": (Path("a.npz"),)}, UsageError, 2, "found --embedding. .*samx calibrate CHECKPOINT"),
        ({"min_iou": 0.5}, UsageError, 2, "found --min-iou 0.5, expected 0.98"),
        ({"min_iou": 1.0}, UsageError, 2, "found --min-iou 1, expected 0.98"),
        ({"min_iou": float("nan")}, UsageError, 2, "found --min-iou nan"),
        ({"exclude": ("upscaling 3",)}, UsageError, 2, "unknown group of products: found upscaling 3"),
        ({"precision": "fp32"}, UsageError, 2, "only INT8 is calibrated: found --calibration with fp32"),
        ({"target": "trt", "precision": "fp16"}, UsageError, 2, "found --calibration with fp16, expected --int8"),
        (
            {"precision": "fp32", "calibration": None, "exclude": (), "min_iou": 0.99}, UsageError, 2,
            "found --min-iou with fp32",
        ),
        (
            {"precision": "fp32", "calibration": None, "exclude": ("upscaling 1",)}, UsageError, 2,
            "found --exclude with fp32",
        ),
    ],
)  # fmt: skip
def test_requests_that_cannot_be_meant(
    mine: Mine, tmp_path: Path, changes: dict[str, Any], error: type[SamxError], code: int, words: str
) -> None:
    assert_refused(mine.request(tmp_path, **changes), error, code, words)


def test_a_target_without_int8() -> None:
    entry = replace(backend("onnx"), precisions={"fp32": "fp32"})
    with pytest.raises(UsageError, match="does not export this precision: found int8, expected fp32"):
        entry.check_precision("int8")
    backend("onnx").check_precision("int8")


def test_a_budget_asks_more_of_the_worst_masks_too() -> None:
    assert module.budget(None) == module.budget(0.98)
    assert module.budget(0.98).p05_iou == pytest.approx(0.95)
    assert module.budget(0.99).p05_iou == pytest.approx(0.975)
