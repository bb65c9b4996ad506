"""`import samx`: six names and the errors, lazily; what they take under the names of the command line."""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import exports
import numpy as np
import pytest
from PIL import Image

import samx
from samx import errors, picture_encoder
from samx.artifacts.commit import seal, staging
from samx.cli import main
from samx.commands.encode import encode
from samx.demo.scenes import generate_scene
from samx.errors import Doubt
from samx.picture_encoder import PictureEncoder
from samx.processing.embeddings import TAG, Tag
from samx.processing.postprocess import best_indices
from samx.processing.prompts import decode_prompts
from samx.registry import backend
from samx.runtimes import onnxruntime

PACKAGE = Path(samx.__file__).parent
LIMIT_S = 0.1  # of `import samx`
TRIES = 5  # the quickest counts: another program may be busy during one of them


def child(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


def test_the_import_is_quick_and_brings_nothing_along() -> None:
    timed = "import time; t = time.perf_counter(); import samx; print(time.perf_counter() - t)"
    assert min(float(child(timed)) for _ in range(TRIES)) <= LIMIT_S
    brought = child("import sys; import samx; print({'torch', 'numpy', 'PIL', 'typer'} & set(sys.modules))")
    assert brought == "set()"


def test_the_names_are_there_and_typed() -> None:
    for name in samx.LAZY:
        assert getattr(samx, name).__name__ == name
        assert name in dir(samx)
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    typed = {alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == set(samx.LAZY)
    with pytest.raises(AttributeError, match="no attribute 'segment_anything'"):
        samx.segment_anything  # type: ignore[attr-defined] # noqa: B018


def test_every_error_is_at_the_door() -> None:
    classes = [(name, value) for name, value in vars(errors).items() if isinstance(value, type)]
    own = {name for name, value in classes if issubclass(value, errors.SamxError)}
    assert own == set(samx.ERRORS)


def test_the_functions_stay_when_their_modules_are_imported() -> None:
    for name in ("export", "validate", "open", "load"):
        assert callable(getattr(samx, name))
    assert (
        child(
            "import samx.commands.export, samx.commands.validate; print(callable(samx.export), callable(samx.validate))"
        )
        == "True True"
    )


# export


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"opsett": 18},
            "no such argument for target 'onnx': found opsett, expected points, prompts, keep_float32, opset, ",
        ),
        (
            {"target": "coreml", "opset": 18},
            "no such argument for target 'coreml': found opset, expected points, prompts, ios",
        ),
        ({"target": "trt", "precision": "fp16", "islands": []}, "found islands, expected .*keep_float32"),
        ({"target": "tflite"}, "unknown export target: found 'tflite'"),
        ({"precision": "fp8"}, "does not export this precision: found fp8"),
        ({"masks": "both"}, "masks is unknown: found 'both', expected multimask or single or all"),
        ({"points": "few"}, "points is no range to build for: found 'few'"),
        ({"pictures": (4, 2, 1)}, "pictures is no range to build for: found '4:2:1'"),
        ({"pictures": 2, "encoder": False}, "asked of an encoder that is left out"),
        ({"prompts": (4, 2, 1)}, "prompts is no range to build for: found '4:2:1'"),
    ],
)
def test_arguments_that_an_export_has_not_are_refused_by_name(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(samx.UsageError, match=message):
        samx.export(None, tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_arguments_reach_the_export(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    class AskedError(Exception):
        pass

    def stop(request: Any, progress: object) -> None:
        asked.append(request)
        raise AskedError

    monkeypatch.setattr(sys.modules["samx.commands.export"], "export", stop)
    with pytest.raises(AskedError):
        samx.export(
            str(tmp_path / "a.pth"), str(tmp_path / "out"), "trt", precision="fp16", masks="single", mask_input=True,
            image_size=512, points=8, prompts=(1, 4, 16), embedding="a.npz", force=True, keep_float32=["softmax"],
            opset=18, frame="stretch", pixels="minmax", encoder=False, pictures=(1, 2, 4),
        )  # fmt: skip
    (request,) = asked
    assert (request.checkpoint, request.out, request.target) == (tmp_path / "a.pth", tmp_path / "out", "trt")
    assert (request.precision, request.masks, request.mask_input, request.image_size) == ("fp16", "single", True, 512)
    assert (request.frame, request.pixels) == ("stretch", "minmax")
    assert (request.encoder, str(request.pictures)) == (False, "1:2:4")
    assert (request.embeddings, request.calibration, request.overwrite) == ([Path("a.npz")], None, True)
    options = {name: str(value) for name, value in request.options.items()}
    assert options == {"keep_float32": "['softmax']", "opset": "18", "points": "8", "prompts": "1:4:16"}


def test_an_export_is_an_artifact_that_is_proven(all_masks_artifact: Path) -> None:
    artifact = samx.Artifact.open(all_masks_artifact)
    assert [evidence.level for evidence in artifact.manifest.evidence] == ["graph"]
    assert (artifact.manifest.spec.masks, artifact.manifest.spec.mask_input) == ("all", True)
    report = samx.validate(artifact)
    assert report.passed
    assert report.level == "graph"


# open


def scene() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(generate_scene(900_004, (200, 150)).image)


def test_an_artifact_opens_by_path_by_text_and_by_itself(all_masks_artifact: Path) -> None:
    results = []
    for artifact in (all_masks_artifact, str(all_masks_artifact), samx.Artifact.open(all_masks_artifact)):
        with samx.open(artifact, threads=1) as predictor:
            predictor.set_image(scene())
            results.append(predictor.predict(point_coords=[(100, 70)], point_labels=[1]))
    for result in results[1:]:
        for one, other in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(one, other)


def test_an_altered_artifact_does_not_open(all_masks_artifact: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(all_masks_artifact, tmp_path / "copy")
    with (copy / "decoder.onnx").open("ab") as file:
        file.write(b" ")
    with pytest.raises(samx.ArtifactError, match="has another size"):
        samx.open(copy)


def test_a_device_that_is_not_there_is_refused(all_masks_artifact: Path) -> None:
    with pytest.raises(samx.UnavailableError, match="cannot run on 'tpu' here"):
        samx.open(all_masks_artifact, device="tpu")


def without_encoder(artifact: Path, target: Path) -> Path:
    """Write an artifact anew, without its image encoder."""
    opened = samx.Artifact.open(artifact)
    roles = {name: entry.role for name, entry in opened.manifest.files.items() if entry.role != "encoder"}
    with staging(target, overwrite=False) as directory:
        for name in roles:
            (directory / name).write_bytes(opened.read(name))
        seal(directory, opened.manifest, roles)
    return target


def test_without_an_encoder_the_error_says_what_to_give(all_masks_artifact: Path, tmp_path: Path) -> None:
    artifact = without_encoder(all_masks_artifact, tmp_path / "bare")
    with samx.open(artifact) as predictor:
        with pytest.raises(samx.UsageError, match=r"no image encoder.*embedding=.*--encoder") as caught:
            predictor.set_image(scene())
        assert "\n" not in str(caught.value)
        with pytest.raises(samx.UsageError, match="no image is set"):
            predictor.predict(point_coords=[(1, 1)], point_labels=[1])
    with (
        samx.open(artifact, encoder=exports.float_encoder(tmp_path, image_size=256), pixels="unit") as one,
        samx.open(all_masks_artifact) as two,
    ):
        for predictor in (one, two):
            predictor.set_image(scene())
        given: dict[str, Any] = {"point_coords": [(100, 70)], "point_labels": [1]}
        np.testing.assert_allclose(one.predict(**given)[2], two.predict(**given)[2], atol=1e-4)
    with pytest.raises(samx.ImageError, match=r"encoder .* does not exist"):
        samx.open(artifact, encoder="missing.onnx", pixels="unit").set_image(scene())


def of_0_1_0(artifact: Path, target: Path) -> Path:
    """Write an artifact anew as 0.1.0 did, whose encoder takes floats and of which the manifest says nothing."""
    opened = samx.Artifact.open(artifact)
    roles = {name: entry.role for name, entry in opened.manifest.files.items()}
    options = {name: value for name, value in opened.manifest.options.items() if name != "encoder"}
    with staging(target, overwrite=False) as directory:
        for name in roles:
            (directory / name).write_bytes(opened.read(name))
        exports.float_encoder(directory, image_size=256)
        seal(directory, replace(opened.manifest, options=options, files={}), roles)
    return target


def test_an_encoder_of_0_1_0_still_runs(all_masks_artifact: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"point_coords": [(100, 70)], "point_labels": [1]}
    found = []
    for artifact in (all_masks_artifact, of_0_1_0(all_masks_artifact, tmp_path / "old")):
        with samx.open(artifact) as predictor:
            predictor.set_image(scene())
            found.append(predictor.predict(**given)[2])
    np.testing.assert_allclose(found[1], found[0], atol=1e-4)


@pytest.fixture(scope="session")
def bare_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export a decoder alone, for small frames."""
    out = tmp_path_factory.mktemp("demo") / "bare"
    return samx.export(None, out, image_size=256, encoder=False).path


def test_an_export_without_encoder_has_none(bare_artifact: Path) -> None:
    manifest = samx.Artifact.open(bare_artifact).manifest
    assert "encoder" not in {file.role for file in manifest.files.values()}
    assert "encoder" not in manifest.options
    with samx.open(bare_artifact) as predictor, pytest.raises(samx.UsageError, match="no image encoder"):
        predictor.set_image(scene())


@pytest.fixture(scope="session")
def cameras_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export SAM 2's demo model for small frames, with an encoder of up to three pictures a call."""
    out = tmp_path_factory.mktemp("demo") / "cameras"
    return samx.export(None, out, family="sam2", image_size=256, pictures=(1, 2, 3)).path


def test_several_pictures_are_encoded_together(cameras_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    opened = onnxruntime.open_encoder

    def counting(*given: Any) -> Any:
        run = opened(*given)
        return lambda inputs: calls.append(len(inputs["picture"])) or run(inputs)  # type: ignore[func-returns-value]

    monkeypatch.setattr(onnxruntime, "open_encoder", counting)
    pictures = [np.roll(scene(), 20 * shift, axis=1)[: 150 - 10 * shift] for shift in range(4)]
    prompts: dict[str, Any] = {"point_coords": [(100, 70)], "point_labels": [1]}
    with samx.open(cameras_artifact) as predictor:
        predictor.set_image_batch(pictures)
        assert calls == [3, 1]
        batch = predictor.predict_batch([prompts["point_coords"]] * 4, [prompts["point_labels"]] * 4)
        for place, picture in enumerate(pictures):
            predictor.set_image(picture)
            for one, other in zip(predictor.predict(**prompts), batch, strict=True):
                np.testing.assert_allclose(other[place], one, atol=1e-3)


def test_an_encoder_runs_where_the_decoder_does(all_masks_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int | None]] = []
    monkeypatch.setattr(onnxruntime, "open_encoder", lambda artifact, *given: asked.append(given))
    for device in ("cpu", "cuda"):
        PictureEncoder(samx.Artifact.open(all_masks_artifact), device=device, threads=3)._opened()
    assert asked == [("cpu", 3), ("cuda", 3)]


def test_a_target_without_an_encoder_of_its_own_says_where_it_runs(
    all_masks_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int | None]] = []
    monkeypatch.setattr(onnxruntime, "open_encoder", lambda artifact, *given: asked.append(given))
    artifact = samx.Artifact.open(all_masks_artifact)
    target = replace(backend("trt"), encoder=None)
    monkeypatch.setattr(picture_encoder, "backend", lambda name: target)
    other = replace(artifact, manifest=replace(artifact.manifest, target=target.target))
    with pytest.warns(Doubt, match=f"on the CPU: '{target.target}' has none for '{target.device}'"):
        PictureEncoder(other, device=target.device)._opened()
    PictureEncoder(other)._opened()  # where it was asked for: nothing to say
    assert asked == [("cpu", None)] * 2


# Embeddings that are kept


@pytest.fixture
def kept(all_masks_artifact: Path, tmp_path: Path) -> Path:
    """Keep the embedding of scene()."""
    Image.fromarray(scene()).save(tmp_path / "scene.png")
    encode(tmp_path / "scene.png", all_masks_artifact, tmp_path / "scene.npz")
    return tmp_path / "scene.npz"


def test_a_kept_embedding_needs_no_size(all_masks_artifact: Path, kept: Path) -> None:
    given: dict[str, Any] = {"point_coords": [(100, 70)], "point_labels": [1]}
    with samx.open(all_masks_artifact) as predictor:
        predictor.set_image(scene())
        expected = predictor.predict(**given)
        for embedding in (kept, dict(np.load(kept))):
            predictor.set_image(embedding=embedding)
            assert predictor.original_size == (150, 200)
            for one, other in zip(predictor.predict(**given), expected, strict=True):
                np.testing.assert_array_equal(one, other)
        with pytest.raises(samx.ImageError, match=r"not the embedding's: found \(200, 150\), expected \(150, 200\)"):
            predictor.set_image(embedding=kept, original_size=(200, 150))
        with pytest.raises(samx.ImageError, match=r"of another picture: found \(150, 200\), expected \(200, 150\)"):
            predictor.set_image(np.zeros((200, 150, 3), np.uint8), embedding=kept)
        assert not predictor.is_image_set
        predictor.set_image(scene(), embedding=kept)
        changed = scene()
        changed[3, 4] ^= 1
        with pytest.raises(samx.ImageError, match=r"of another picture of this size\. Encode this one"):
            predictor.set_image(changed, embedding=kept)


def test_an_embedding_of_another_encoder_is_told(all_masks_artifact: Path, kept: Path, tmp_path: Path) -> None:
    arrays = dict(np.load(kept))
    sha256 = samx.Artifact.open(all_masks_artifact).manifest.files["encoder.onnx"].sha256
    tag = Tag.from_array(arrays[TAG], "kept")
    assert (tag.encoder, tag.original_size) == (sha256, (150, 200))
    foreign = replace(tag, encoder=hashlib.sha256(b"another").hexdigest())
    with samx.open(all_masks_artifact) as predictor:
        with pytest.raises(samx.ImageError, match=r"made by another image encoder: found .*, expected") as caught:
            predictor.set_image(embedding={**arrays, TAG: foreign.to_array()})
        assert "\n" not in str(caught.value)
        del arrays[TAG]  # as somebody else writes it: taken for what it is said to be
        predictor.set_image(embedding=arrays, original_size=(150, 200))
        with pytest.raises(samx.ImageError, match="samx_embedding"):
            predictor.set_image(embedding={**arrays, TAG: np.zeros(9)})
    with samx.open(without_encoder(all_masks_artifact, tmp_path / "bare")) as predictor:
        predictor.set_image(embedding=kept)  # which encoder is meant, nothing says there
        assert predictor.original_size == (150, 200)


def test_a_file_with_a_damaged_tag_is_refused(kept: Path, all_masks_artifact: Path) -> None:
    arrays = dict(np.load(kept))
    for tag in (b"{", b"{}", b'{"format": "samx-embedding", "schema_version": 2}', bytes(5000)):
        np.savez(kept, **{**arrays, TAG: np.frombuffer(tag, np.uint8)})
        with (
            samx.open(all_masks_artifact) as predictor,
            pytest.raises(samx.ImageError, match="samx_embedding") as caught,
        ):
            predictor.set_image(embedding=kept)
        assert "\n" not in str(caught.value)


def test_encoding_needs_an_encoder(all_masks_artifact: Path, kept: Path, tmp_path: Path) -> None:
    artifact = without_encoder(all_masks_artifact, tmp_path / "bare")
    with pytest.raises(samx.UsageError, match="has no image encoder"):
        encode(tmp_path / "scene.png", artifact, tmp_path / "other.npz")
    assert not (tmp_path / "other.npz").exists()


# samx segment, which is a use of it


def segment(*arguments: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "argv", ["samx", "segment", *map(str, arguments), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    return json.loads(capsys.readouterr().out)


def test_segment_never_picks_the_single_mask_of_an_export_of_all(
    all_masks_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, picture = tmp_path / "scene.png", scene()
    Image.fromarray(picture).save(path)
    singles = 0
    with samx.open(all_masks_artifact) as predictor:
        predictor.set_image(path)
        frame = predictor._images[0].frame
        assert predictor._session is not None
        for x in range(10, 150, 10):
            prompt = samx.Prompt(box=(x, 20, x + 40, 100))
            outputs = decode_prompts(predictor._session, [prompt], frame)
            singles += int(outputs["iou_predictions"][0].argmax() == 0)
            masks, scores, _ = predictor.predict(box=prompt.box)
            (found,) = predictor.segment([prompt])
            assert found.index == best_indices(outputs, predictor.spec)[0] == 1 + scores.argmax()
            np.testing.assert_array_equal(found.mask, masks[scores.argmax()])
    assert singles  # that the surest of all four would have been
    out = ("--model", all_masks_artifact, "-o", tmp_path / "out.png")
    found = segment(path, "--point", "170,75", *out, capsys=capsys, monkeypatch=monkeypatch)["masks"][0]
    assert found["mask"] > 0
    assert found["area_px"] > 0
