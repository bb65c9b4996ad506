"""The folder that a Triton server serves: users who click together get the masks that each would get alone.

A stand-in has the place of Triton here; `make triton` runs a real server on the same files.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import triton_stub
from kits import artifact, engine_artifact
from numpy.typing import NDArray
from typer.testing import CliRunner

import samx
from samx.artifacts.store import Artifact
from samx.cli import app
from samx.commands.bundle import bundle_triton
from samx.demo.scenes import generate_scene
from samx.errors import ArtifactError, ParityError, SamxError, UsageError, WriteError
from samx.kits import triton_model
from samx.kits.triton_model import Answer, Answers
from samx.processing.rasters import png_bytes

STAND_IN = "triton_python_backend_utils"
SIZE_PX = (96, 64)
PICTURES = [png_bytes(generate_scene(seed, SIZE_PX).image) for seed in (1, 2)]
KEYS = [hashlib.sha256(data).hexdigest().encode() for data in PICTURES]


def click(
    key: bytes, points: Sequence[Any] = ([(40, 30)],), picture: bytes | None = None, **more: Any
) -> dict[str, Any]:
    """Ask for prompts of one user. Shapes: points (N, P, 2)."""
    xy = np.array(points, np.float32)
    sent = {} if picture is None else {"picture": np.array([[picture]], object)}
    labels = np.ones(xy.shape[:2], np.int32)
    return {"image_key": np.full((len(xy), 1), key, object), "points": xy, "labels": labels, **sent, **more}


@pytest.fixture(scope="module")
def models(sam2_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("triton") / "models"
    bundle_triton(sam2_artifact, path)
    return path


@pytest.fixture(scope="module")
def answers(sam2_artifact: Path) -> Answers:
    """Keep both pictures."""
    made = Answers(Artifact.open(sam2_artifact), threads=1)
    made.answer([click(key, picture=data) for key, data in zip(KEYS, PICTURES, strict=True)])
    return made


@pytest.fixture(scope="module")
def alone(sam2_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, Any], Any]:
    """Return what the predictor answers to one prompt."""
    predictor = samx.open(sam2_artifact, threads=1)
    folder = tmp_path_factory.mktemp("pictures")

    def predict(place: int, points: Any) -> Any:
        (folder / "one.png").write_bytes(PICTURES[place])
        predictor.set_image(folder / "one.png")
        return predictor.predict(points, np.ones(len(points), np.int32))

    return predict


def masks_of(answer: Answer | SamxError) -> NDArray[Any]:
    """Decode what a client gets. Shapes: -> (N, M, H, W)."""
    assert isinstance(answer, Answer), answer
    return np.array([[decoded(runs) for runs in row] for row in answer.tensor("masks")])


def decoded(runs: bytes) -> NDArray[np.bool_]:
    found: Mapping[str, Any] = json.loads(runs)
    inside = np.arange(len(found["counts"])) % 2 == 1
    return np.repeat(inside, found["counts"]).reshape(found["size"][::-1]).T


USERS: list[tuple[int, Any]] = [
    (0, [[(40, 30)]]), (1, [[(40, 30)], [(10, 50)]]), (0, [[(60, 20), (62, 22)]]), (0, [[(80, 50)], [(5, 5)]]),
    (1, [[(70, 10), (30, 30)]]),
]  # fmt: skip


def mistakes(answers: Answers, alone: Callable[[int, Any], Any]) -> int:
    """Count prompts of users who click together whose masks are not those of the predictor."""
    found = answers.answer([click(KEYS[place], points) for place, points in USERS])
    wrong = 0
    for (place, points), answer in zip(USERS, found, strict=True):
        for row, prompt in enumerate(points):
            masks, scores, _ = alone(place, prompt)
            assert isinstance(answer, Answer)
            close = np.allclose(answer.scores[row], scores, atol=1e-5)
            wrong += not (close and np.array_equal(masks_of(answer)[row], masks > 0))
    return wrong


def test_users_who_click_together_get_the_masks_of_each_alone(answers: Answers, alone: Any) -> None:
    assert mistakes(answers, alone) == 0


def test_a_picture_that_is_not_brought_to_the_decoder_is_seen(
    answers: Answers, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: everybody is answered about the picture that is there."""
    monkeypatch.setattr(Answers, "_hold", lambda self, picture: None)
    assert mistakes(answers, alone) > 0


def test_prompts_of_one_picture_and_number_of_points_are_one_call(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, ...]] = []
    decode = answers._session.decode

    def counted(feed: Any) -> Any:
        calls.append(feed["point_labels"].shape)
        return decode(feed)

    monkeypatch.setattr(answers._session, "decode", counted)
    answers.answer([click(KEYS[place], points) for place, points in USERS])
    assert sorted(rows for rows, _ in calls) == [1, 1, 2, 3]
    assert len({points for _, points in calls}) == 2  # never padded to another's


def test_a_box_is_taken(answers: Answers) -> None:
    box = np.array([[10, 10, 60, 50]], np.float32)
    (found,) = answers.answer([{"image_key": np.array([[KEYS[0]]], object), "box": box}])
    assert masks_of(found).shape[2:] == SIZE_PX[::-1]


def test_the_picture_used_longest_ago_is_dropped(sam2_artifact: Path) -> None:
    made = Answers(Artifact.open(sam2_artifact), threads=1, keep=1)
    first, again, other = made.answer([click(KEYS[0], picture=PICTURES[0]), click(KEYS[0]), click(KEYS[1])])
    assert isinstance(first, Answer)
    assert isinstance(again, Answer)
    assert str(other).startswith("IMAGE_NOT_KEPT")
    made.answer([click(KEYS[1], picture=PICTURES[1])])
    (dropped,) = made.answer([click(KEYS[0])])
    assert str(dropped).startswith("IMAGE_NOT_KEPT")


def test_a_picture_dropped_by_the_same_batch_still_answers(sam2_artifact: Path, alone: Any) -> None:
    made = Answers(Artifact.open(sam2_artifact), threads=1, keep=1)
    found = made.answer([click(key, picture=data) for key, data in zip(KEYS, PICTURES, strict=True)])
    for place, answer in enumerate(found):
        assert np.array_equal(masks_of(answer)[0], alone(place, [(40, 30)])[0] > 0)


JUNK = b"no picture"
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": (click(b"0" * 64), "IMAGE_NOT_KEPT: this picture is not here. Send the request again"),
    "another's key": (click(b"mine", picture=PICTURES[0]), "image_key is not the picture's: found 'mine', expected"),
    "no picture": (
        click(hashlib.sha256(JUNK).hexdigest().encode(), picture=JUNK), "file 'picture' is no picture that samx reads"
    ),
    "picture twice": (
        click(KEYS[0], [[(1, 1)], [(2, 2)]]) | {"picture": np.array([[b""]] * 2, object)},
        "picture is no single file: found (2, 1)",
    ),
    "two keys": (
        click(KEYS[0], [[(1, 1)]] * 2) | {"image_key": np.array([[KEYS[0]], [KEYS[1]]], object)}, "2 keys of shape"
    ),
    "outside": (click(KEYS[0], [[(500, 1)]]), "is outside the picture: found (500, 1)"),
    "nothing": ({"image_key": np.array([[KEYS[0]]], object)}, "a prompt says nothing"),
    "not finite": (click(KEYS[0], [[(np.nan, 1)]]), "point"),
    "shape of points": (click(KEYS[0]) | {"points": np.zeros((1, 1, 3), np.float32)}, "points"),
    "labels missing": (
        {name: value for name, value in click(KEYS[0]).items() if name != "labels"}, "labels"
    ),
    "label": (click(KEYS[0]) | {"labels": np.full((1, 1), 7, np.int32)}, "label"),
    "count": (click(KEYS[0], [[(1, 1)]] * 2) | {"image_key": np.array([[KEYS[0]]], object)}, "do not match image_key"),
    "box": (click(KEYS[0], box=np.array([[9, 9, 1, 1]], np.float32)), "box"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_told_and_harms_no_other(answers: Answers, name: str) -> None:
    request, words = WRONG[name]
    good = click(KEYS[0])
    found = answers.answer([good, request, good])
    assert isinstance(found[1], SamxError)
    assert words in str(found[1])
    assert "/tmp" not in str(found[1])
    assert np.array_equal(masks_of(found[0]), masks_of(found[2]))


def test_keeping_no_picture_is_refused(sam2_artifact: Path) -> None:
    with pytest.raises(UsageError, match="too few pictures"):
        Answers(Artifact.open(sam2_artifact), keep=0)


# ---- as Triton calls it


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setitem(sys.modules, STAND_IN, triton_stub)
    return triton_stub


def parameters(**changes: str) -> str:
    words = {"device": "cpu", "threads": "1", "keep_pictures": "2", **changes}
    return json.dumps({"parameters": {name: {"string_value": value} for name, value in words.items()}})


def started(models: Path, **changes: str) -> Any:
    """Start the written model.py."""
    spec = importlib.util.spec_from_file_location("written_model", models / "samx" / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module, before = importlib.util.module_from_spec(spec), list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    model = module.TritonPythonModel()
    place = {"model_repository": str(models / "samx"), "model_version": "1"}
    model.initialize({**place, "model_config": parameters(**changes)})
    return model


def test_triton_is_answered(models: Path, triton: ModuleType, alone: Any) -> None:
    model, wanted = started(models), ("masks", "scores")
    good, bad, missing = model.execute([
        triton.Request(click(KEYS[0], picture=PICTURES[0]), wanted), triton.Request(WRONG["outside"][0]),
        triton.Request(click(KEYS[1])),
    ])  # fmt: skip
    assert not good.has_error()
    assert tuple(good.tensors) == wanted  # nothing that nobody asked for is made
    assert np.array_equal(decoded(good.tensors["masks"][0, 0]), alone(0, [(40, 30)])[0][0] > 0)
    assert (bad.error().code, missing.error().code) == ("invalid", "not found")
    assert missing.error().words.startswith("IMAGE_NOT_KEPT")


def test_a_fault_of_the_decoder_is_not_the_user_s(
    models: Path, triton: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise ParityError("decoder output has values that are not finite")

    monkeypatch.setattr(triton_model, "predicted_masks", broken)
    (found,) = started(models).execute([triton.Request(click(KEYS[0], picture=PICTURES[0]))])
    assert found.error().code == "internal"


def test_an_altered_artifact_is_not_served(models: Path, triton: ModuleType, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(models, tmp_path / "models"))
    file = copy / "samx" / "1" / "artifact" / "prompt.onnx"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ArtifactError):
        started(copy)


ALONE = """
import runpy, sys, hashlib, json
import numpy as np
sys.path.insert(0, ".")
import triton_python_backend_utils as triton
made = runpy.run_path("models/samx/1/model.py")["TritonPythonModel"]()
made.initialize({"model_repository": "models/samx", "model_version": "1", "model_config": sys.argv[1]})
data = open("one.png", "rb").read()
given = {"image_key": np.array([[hashlib.sha256(data).hexdigest().encode()]], object),
         "picture": np.array([[data]], object), "points": np.array([[[40, 30]]], np.float32),
         "labels": np.ones((1, 1), np.int32)}
(found,) = made.execute([triton.Request(given)])
import samx
print(json.dumps([samx.__file__, found.tensors["scores"][0].tolist()]))
"""


def test_the_folder_needs_no_installed_samx(models: Path, alone: Any, tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(models)
    (tmp_path / "one.png").write_bytes(PICTURES[0])
    shutil.copy(triton_stub.__file__, tmp_path / f"{STAND_IN}.py")
    done = subprocess.run(
        [sys.executable, "-c", ALONE, parameters()], cwd=tmp_path, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    file, scores = json.loads(done.stdout)
    assert "samx.pyz" in file
    assert np.allclose(scores, alone(0, [(40, 30)])[1], atol=1e-5)


# ---- writing


def test_the_folder_is_what_triton_reads(models: Path) -> None:
    config = (models / "samx" / "config.pbtxt").read_text()
    for words in ('backend: "python"', "dynamic_batching", "max_batch_size: 64", "optional: true"):
        assert words in config
    names = {path.relative_to(models).as_posix() for path in models.rglob("*") if path.is_file()}
    assert names == set(json.loads((models / "samx-triton.json").read_text())["files"])
    assert Artifact.open(models / "samx" / "1" / "artifact").manifest.encoder is not None
    assert len((models / "samx" / "1" / "model.py").read_text().splitlines()) < 12


def test_what_the_server_cannot_answer_with_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="has no image encoder"):
        bundle_triton(artifact(tmp_path / "toy"), tmp_path / "models")
    with pytest.raises(UsageError, match="cannot hold this target: found 'trt', expected onnx"):
        bundle_triton(engine_artifact(tmp_path / "engine", "trt"), tmp_path / "models")
    with pytest.raises(UsageError, match="no artifact is named"):
        bundle_triton(None, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_only_what_samx_wrote_is_replaced(sam2_artifact: Path, tmp_path: Path) -> None:
    out = tmp_path / "models"
    bundle_triton(sam2_artifact, out)
    with pytest.raises(WriteError, match="exists already"):
        bundle_triton(sam2_artifact, out)
    bundle_triton(sam2_artifact, out, overwrite=True)
    (out / "mine.txt").write_text("mine")
    with pytest.raises(WriteError, match=r"samx did not write all of it: found mine\.txt"):
        bundle_triton(sam2_artifact, out, overwrite=True)
    assert (out / "mine.txt").read_text() == "mine"


def test_the_command_line(sam2_artifact: Path, tmp_path: Path) -> None:
    asked = ["bundle", str(sam2_artifact), "--for", "triton", "-o", str(tmp_path / "models"), "--json"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0
    assert "tritonserver --model-repository=" in json.loads(done.stdout)["summary"]
    again = CliRunner().invoke(app, asked).exception
    assert isinstance(again, WriteError)
    other = CliRunner().invoke(app, ["bundle", str(sam2_artifact), "--for", "apache"])
    assert "nothing is written for this server: found 'apache', expected triton" in str(other.exception)
