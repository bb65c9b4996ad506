"""The commands as a user runs them: what they leave, what they print, how they end."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from samx import cli, console, registry
from samx.commands.export import ExportRequest, export
from samx.demo import demo_checkpoint
from samx.demo.scenes import generate_scene
from samx.validators.child import gate_in_child


@dataclass
class Ended:
    """Hold how a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Samx:
    """Run commands in this process, with the real argument parser and the real exit codes."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys, self.monkeypatch = capsys, monkeypatch

    def __call__(self, *arguments: str | Path) -> Ended:
        words = ["samx", *map(str, arguments)]
        self.monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = self.capsys.readouterr()
        code = ended.value.code
        return Ended(code if isinstance(code, int) else 0, captured.out, captured.err)


@pytest.fixture
def samx(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Samx:
    return Samx(capsys, monkeypatch)


def test_a_command_run_here_leaves_the_streams_to_those_who_come_after(capsys: pytest.CaptureFixture[str]) -> None:
    """A console that keeps this test's streams would write to closed ones in the next test."""
    with pytest.MonkeyPatch.context() as patch:
        assert Samx(capsys, patch)("--version").out.startswith("samx ")
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        console.out.print("a result")
        console.err.print("an error")
    assert (out.getvalue(), err.getvalue()) == ("a result\n", "an error\n")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    Image.fromarray(generate_scene(900_003, (400, 300)).image).save(path)
    return path


SetMaker = Callable[..., Path]
SMALL_PX = 128  # a frame of a sixty-fourth of the work
SMALL = ("--image-size", str(SMALL_PX))


@pytest.fixture
def calibration_of(tmp_path_factory: pytest.TempPathFactory) -> SetMaker:
    """Make files of calibration sets that belong to no checkpoint."""
    from samx.models.spec import family_spec
    from samx.quantization.calibration import CalibrationSet, calibration_spec
    from samx.validators.cases import Case

    def make(family: str = "sam1", **changes: Any) -> Path:
        spec = calibration_spec(family_spec(family, **{"image_size": SMALL_PX, **changes}))
        images = tuple(noise(seed, spec) for seed in range(4))
        labels = np.array([[1, -1]], np.float32)
        samples = tuple(
            Case("click", i % 4, {"point_coords": np.array([[[i, 2], [0, 0]]], np.float32), "point_labels": labels})
            for i in range(24)
        )
        found = CalibrationSet(spec, images, samples, (), (), "noise", 0, "c" * 64)
        path = tmp_path_factory.mktemp("set") / "set.npz"
        found.save(path)
        return path

    return make


def noise(seed: int, spec: Any) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {tensor.name: rng.normal(size=tensor.shape).astype(np.float32) for tensor in spec.image_inputs}


def assert_one_error_line(ended: Ended, code: int, words: str) -> None:
    errors = [line for line in ended.err.splitlines() if not line.endswith("...")]
    assert ended.code == code, ended.err
    assert len(errors) == 1, ended.err
    assert errors[0].startswith("error: ")
    assert words in errors[0]
    assert "Traceback" not in ended.err


# export


def test_an_export_leaves_a_proven_artifact(samx: Samx, demo_artifact: Path) -> None:
    facts = samx("inspect", demo_artifact, "--json").json
    manifest = facts["manifest"]
    roles = {entry["role"] for entry in manifest["files"].values()}
    assert roles == {"decoder", "encoder", "parity_cases", "encoder_cases", "parity_report"}
    assert [(entry["level"], entry["passed"]) for entry in manifest["evidence"]] == [("graph", True)]
    report = json.loads((demo_artifact / "parity_report.json").read_text())
    assert report["passed"]
    assert report["suite"]["image_source"] == "demo scenes, demo encoder"
    assert report["metrics"]["mask_iou_mean"] >= 0.9999


def test_a_checkpoint_of_ones_own_is_exported_alike(samx: Samx, tmp_path: Path) -> None:
    """A SAM 2 fine-tune as a trainer leaves it: wrapped, prefixed, half precision, another frame size."""
    import torch
    from toys import toy_decoder

    from samx.models.spec import sam2_spec

    weights = {}
    for name, value in toy_decoder(sam2_spec(image_size=256)).state_dict().items():
        meta = name.replace("mlp.lin1", "mlp.layers.0").replace("mlp.lin2", "mlp.layers.1")
        weights[f"module.sam_{meta}"] = value.half()
    for level, channels in enumerate((32, 64)):
        weights[f"module.sam_mask_decoder.conv_s{level}.weight"] = torch.zeros(channels, 256, 1, 1)
        weights[f"module.sam_mask_decoder.conv_s{level}.bias"] = torch.zeros(channels)
    torch.save({"model": weights, "epoch": 3}, tmp_path / "tuned.pt")
    flags = ["--image-size", "256", "--single", "--mask-input", "--frame", "pad"]
    ended = samx("export", tmp_path / "tuned.pt", *flags, "-o", tmp_path / "out", "--json")
    assert ended.code == 0, ended.err
    assert (ended.json["manifest"]["spec"]["frame"], ended.json["manifest"]["spec"]["pixels"]) == ("pad", "imagenet")
    (note,) = (note for note in ended.json["notes"] if "assumed" in note)
    assert "--pixels" in note
    assert "--frame" not in note
    assert "--image-size" not in note
    manifest = ended.json["manifest"]
    assert manifest["spec"]["family"] == "sam2"
    assert manifest["spec"]["image_size"] == 256
    assert manifest["spec"]["masks"] == "single"
    assert ended.json["parity"]["passed"]
    assert ended.json["parity"]["suite"]["image_source"].startswith("synthetic")
    assert sorted(manifest["files"]) == ["decoder.onnx", "parity_cases.npz", "parity_report.json"]


@pytest.mark.parametrize(("option", "value"), [("--frame", "crop"), ("--pixels", "grey")])
def test_an_unknown_frame_or_pixel_rule_is_refused(samx: Samx, tmp_path: Path, option: str, value: str) -> None:
    ended = samx("export", option, value, "-o", tmp_path / "out")
    assert ended.code == 2
    assert f"{option[2:]} is unknown" in ended.err
    assert not (tmp_path / "out").exists()


def test_a_target_that_exists_is_kept(samx: Samx, artifact_copy: Path) -> None:
    before = sorted((path.name, path.stat().st_mtime_ns) for path in artifact_copy.iterdir())
    assert_one_error_line(samx("export", "-o", artifact_copy), 7, "--force")
    assert sorted((path.name, path.stat().st_mtime_ns) for path in artifact_copy.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--target", "tflite"], 2, "unknown export target: found 'tflite'"),
        (["--bf16"], 2, "does not export this precision: found bf16, expected fp32 or fp16 or int8"),
        (["--int8", "--keep-float32", "upscaling"], 2, "everything is in float32 already: found precision int8"),
        (["--fp16", "--int8"], 2, "more than one choice of precision"),
        (["--calibration", "set.npz"], 2, "only INT8 is calibrated: found --calibration with fp32, expected --int8"),
        (["--exclude", "upscaling 1"], 2, "only INT8 is calibrated: found --exclude with fp32"),
        (["--min-iou", "0.99"], 2, "only INT8 is calibrated: found --min-iou with fp32"),
        (["--target", "trt", "--fp16", "--calibration", "set.npz"], 2, "found --calibration with fp16"),
        (["--int8", "--min-iou", "0.5"], 2, "found --min-iou 0.5, expected 0.98"),
        (["--int8", "--min-iou", "1.0"], 2, "found --min-iou 1, expected 0.98"),
        (["--int8", "--embedding", "picture.npz"], 2, "found --embedding. Calibrate on them: samx calibrate"),
        (["--int8", "--calibration", "missing.npz"], 6, "calibration set 'missing.npz' does not exist"),
        (["--single", "--all-masks"], 2, "more than one choice of masks"),
        (["--pictures", "4:2:1"], 2, "pictures is no range to build for: found '4:2:1'"),
        (["--pictures", "2", "--no-encoder"], 2, "asked of an encoder that is left out: found --pictures"),
        (["--encoder-precision", "fp32", "--no-encoder"], 2, "found --encoder-precision with --no-encoder"),
        (["--encoder-precision", "fp64"], 2, "has no image encoder in this precision: found fp64"),
        (["--encoder-pictures", "photos"], 2, "found --encoder-pictures with fp32"),
        (["--encoder-precision", "int8", "--encoder-pictures", "missing"], 6, "folder 'missing' cannot be read"),
        (["--opset", "17"], 2, "opset is not offered: found 17"),
        (["--family", "sam9"], 2, "no demo weights for this family"),
        (["missing.pth"], 6, "missing.pth"),
        (["--image-size", "1000"], 6, "1000"),
        (["--embedding", "missing.npz"], 6, "missing.npz"),
    ],
)
def test_bad_requests_leave_nothing(
    samx: Samx, tmp_path: Path, arguments: Sequence[str], code: int, words: str
) -> None:
    ended = samx("export", *arguments, "-o", tmp_path / "out")
    assert_one_error_line(ended, code, words)
    assert "Asking the PyTorch reference" not in ended.err, "refused after the export"
    assert not list(tmp_path.iterdir())


def test_int8_of_ones_own_checkpoint_needs_a_calibration_set(samx: Samx, tmp_path: Path) -> None:
    import torch
    from toys import toy_decoder

    from samx.models.spec import sam1_spec

    checkpoint = tmp_path / "tuned.pth"
    torch.save(toy_decoder(sam1_spec(image_size=SMALL_PX)).state_dict(), checkpoint)
    ended = samx("export", checkpoint, "--int8", *SMALL, "-o", tmp_path / "out")
    assert_one_error_line(ended, 2, "this precision needs a calibration set for this checkpoint")
    assert "samx calibrate CHECKPOINT --pictures DIR -o set.npz" in ended.err
    assert list(tmp_path.iterdir()) == [checkpoint]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"family": "sam2"}, "another decoder (family): found sam2, expected sam1"),
        ({"image_size": 160}, f"another decoder (image size): found 160, expected {SMALL_PX}"),
        ({"frame": "stretch"}, "another decoder (frame): found stretch, expected pad"),
        ({}, "is for another checkpoint: found sha256 cccc"),
    ],
    ids=["family", "image size", "frame", "checkpoint"],
)
def test_int8_refuses_a_set_of_something_else(
    samx: Samx, calibration_of: SetMaker, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    ended = samx("export", "--int8", *SMALL, "--calibration", calibration_of(**changes), "-o", tmp_path / "out")
    assert_one_error_line(ended, 6, words)
    assert "Calibrate again with this checkpoint" in ended.err
    assert not list(tmp_path.iterdir())


def test_a_failed_gate_leaves_nothing_and_exits_3(samx: Samx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter is sabotaged: a bias of the fast form is off."""
    from samx.models.fast import graphs
    from samx.models.fast.decoder import FastDecoder

    def spoiled(*arguments: Any, **options: Any) -> FastDecoder:
        decoder = FastDecoder(*arguments, **options)
        decoder.hypernetworks.get_buffer("bias2").add_(1.0)
        return decoder

    monkeypatch.setattr(graphs, "FastDecoder", spoiled)
    ended = samx("export", *SMALL, "-o", tmp_path / "out")
    assert_one_error_line(ended, 3, "parity failed")
    assert "Nothing was written" in ended.err
    assert not list(tmp_path.iterdir())


def test_an_unwritable_place_exits_7(samx: Samx, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert_one_error_line(samx("export", "-o", tmp_path / "file" / "out"), 7, "cannot write")


# calibrate


def drawn(number: int) -> Any:
    return np.random.default_rng(number).normal(size=(1, 256, SMALL_PX // 16, SMALL_PX // 16)).astype(np.float32)


def one_nan(value: Any) -> Any:
    value[0, 3, 2, 1] = np.nan
    return value


# How many good embeddings lie beside what is planted as '0.npz', and what is said about it.
FOLDER_FAULTS: dict[str, tuple[int, Callable[[Any], Any] | None, str]] = {
    "nothing": (0, None, "has no embeddings: found nothing"),
    "too few": (3, None, "has too few embeddings: found 3, expected at least 4"),
    "not finite": (5, one_nan, "embeddings/0.npz' has values that are not finite"),
    "another shape": (5, lambda value: value[..., :-1], "(1, 256, 8, 7)"),
    "another width": (5, lambda value: value[:, :64], "(1, 64, 8, 8)"),
    "one value": (5, np.zeros_like, "is constant: found 0 throughout"),
    "copies": (5, lambda value: drawn(1), "are the same"),
}


def embeddings(folder: Path, good: int, change: Callable[[Any], Any] | None = None) -> Path:
    folder.mkdir()
    for number in range(1, good + 1):
        np.savez(folder / f"{number}.npz", image_embeddings=drawn(number))
    if change is not None:
        np.savez(folder / "0.npz", image_embeddings=change(drawn(0)))
    return folder


@pytest.mark.parametrize("fault", FOLDER_FAULTS)
def test_calibrate_refuses_a_folder_that_cannot_calibrate(samx: Samx, tmp_path: Path, fault: str) -> None:
    good, plant, words = FOLDER_FAULTS[fault]
    folder = embeddings(tmp_path / "embeddings", good, plant)
    out = tmp_path / "set.npz"
    assert_one_error_line(samx("calibrate", "--embeddings", folder, *SMALL, "--samples", "24", "-o", out), 6, words)
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--embeddings", "a", "--pictures", "b"], 2, "--embeddings and --pictures"),
        (["--pictures", "b"], 6, "folder 'b' cannot be read"),
        (["--encoder", "e.onnx"], 2, "--encoder without --pictures"),
        (["--pixels", "bgr"], 2, "unknown pixel normalisation"),
        (["--images", "1"], 2, "cannot calibrate on so many images"),
        (["--seed", "-1"], 2, "seed is negative"),
        (["--family", "sam9"], 2, "no demo weights for this family"),
        (["missing.pth"], 6, "missing.pth"),
        (["--embeddings", "missing"], 6, "folder 'missing' cannot be read"),
        (["--pictures", "missing", "--encoder", "missing.onnx"], 2, "nothing says which pixels the encoder"),
        (["--pictures", "no", "--encoder", "no.onnx", "--pixels", "unit"], 6, "folder 'no' cannot be read"),
    ],
)
def test_bad_calibrate_requests_leave_nothing(
    samx: Samx, tmp_path: Path, arguments: Sequence[str], code: int, words: str
) -> None:
    assert_one_error_line(samx("calibrate", *arguments, "-o", tmp_path / "set.npz"), code, words)
    assert not list(tmp_path.iterdir())


def test_calibrate_keeps_a_set_that_is_there(samx: Samx, tmp_path: Path) -> None:
    (tmp_path / "set.npz").write_text("precious")
    assert_one_error_line(samx("calibrate", "-o", tmp_path / "set.npz"), 7, "exists already")
    assert (tmp_path / "set.npz").read_text() == "precious"


def test_calibrate_says_what_it_made(samx: Samx, tmp_path: Path) -> None:
    import hashlib

    folder = embeddings(tmp_path / "embeddings", 6)
    out = tmp_path / "set.npz"
    ended = samx("calibrate", "--embeddings", folder, *SMALL, "--samples", "24", "-o", out, "--json")
    assert ended.code == 0, ended.err
    assert ended.json["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert sum(ended.json["samples"].values()) == 24
    assert "(6 of 6)" in ended.err


# validate


def test_validate_needs_no_torch(samx: Samx, demo_artifact: Path, tmp_path: Path) -> None:
    ended = samx("validate", demo_artifact, "--json", "--junit", tmp_path / "p.xml", "--report", tmp_path / "p.json")
    assert ended.code == 0
    assert ended.json["passed"]
    assert "torch" not in ended.json["environment"]
    suite = ElementTree.parse(tmp_path / "p.xml").getroot()
    assert suite.get("failures") == "0"
    told = ended.json
    assert int(suite.get("tests", 0)) == len(told["cases"]) + len(told["encoder"]["cases"]) + 2
    assert json.loads((tmp_path / "p.json").read_text())["passed"]


def test_validate_against_the_checkpoint(samx: Samx, sam2_artifact: Path) -> None:
    ended = samx("validate", sam2_artifact, "--checkpoint", demo_checkpoint("sam2"), "--json")
    assert ended.code == 0
    assert ended.json["suite"]["reference"].startswith("torch")


def test_validate_refuses_another_checkpoint(samx: Samx, demo_artifact: Path) -> None:
    ended = samx("validate", demo_artifact, "--checkpoint", demo_checkpoint("sam2"))
    assert_one_error_line(ended, 6, "was made from another checkpoint")


def test_validate_exits_3_on_another_decoder_and_says_where(
    samx: Samx, artifact_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph is replaced and the manifest made to agree: the hashes hold, the masks do not."""
    import hashlib

    import onnx

    model = onnx.load(str(artifact_copy / "decoder.onnx"))
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = np.frombuffer(weights.raw_data, np.float32).copy()
    values *= 1.01
    weights.raw_data = values.tobytes()
    data = model.SerializeToString()
    (artifact_copy / "decoder.onnx").write_bytes(data)
    manifest = json.loads((artifact_copy / "manifest.json").read_text())
    manifest["files"]["decoder.onnx"].update(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    (artifact_copy / "manifest.json").write_text(json.dumps(manifest))
    ended = samx("validate", artifact_copy)
    assert ended.code == 3
    assert "failed: case" in ended.out
    assert "parity failed" in ended.out


def test_validate_refuses_a_swapped_file(samx: Samx, artifact_copy: Path) -> None:
    data = bytearray((artifact_copy / "decoder.onnx").read_bytes())
    data[-1] ^= 1
    (artifact_copy / "decoder.onnx").write_bytes(bytes(data))
    assert_one_error_line(samx("validate", artifact_copy), 6, "was altered")


def test_validate_refuses_a_device_that_is_not_there(samx: Samx, demo_artifact: Path) -> None:
    assert_one_error_line(samx("validate", demo_artifact, "--device", "npu"), 5, "cannot run on 'npu' here")


def test_every_graph_passes_its_gate_again(sam2_artifact: Path) -> None:
    report = gate_in_child(sam2_artifact, level="graph", threads=1)
    assert report.passed
    assert report.placement["operations"].keys() == {"cpu"}


@pytest.mark.slow
def test_the_sam2_demo_model_passes_at_its_full_size(tmp_path: Path) -> None:
    options: dict[str, object] = {"split": True, "opset": 23}
    result = export(ExportRequest(out=tmp_path / "sam2", family="sam2", mask_input=True, options=options))
    assert result.report.passed
    assert result.manifest.spec.image_size == 1024


# segment


def test_segment_draws_a_mask(samx: Samx, demo_artifact: Path, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "overlay.png"
    ended = samx("segment", picture, "--box", "50,40,250,240", "--model", demo_artifact, "-o", out, "--json")
    assert ended.code == 0, ended.err
    (mask,) = ended.json["masks"]
    assert mask["area_px"] > 100
    drawn = np.asarray(Image.open(out).convert("RGB")).astype(int)
    assert drawn.shape == (300, 400, 3)
    assert (np.abs(drawn - np.asarray(Image.open(picture)).astype(int)).max(-1) > 8).mean() > 0.01


def test_segment_takes_an_embedding_and_gives_the_same(
    samx: Samx, demo_artifact: Path, float_encoder: Path, picture: Path, tmp_path: Path
) -> None:
    from samx.models.spec import sam1_spec
    from samx.processing.frames import Frame
    from samx.processing.images import read_image, to_frame
    from samx.runtimes.onnxruntime import open_float_encoder

    image = read_image(picture)
    frame = Frame.of(sam1_spec(), image.shape[1], image.shape[0])
    features = open_float_encoder(float_encoder.read_bytes(), "encoder")(to_frame(image, frame))
    np.savez(tmp_path / "picture.npz", image_embeddings=features["image_embeddings"])
    prompt = ["--point", "120,90", "--background", "5,5", "--model", str(demo_artifact), "--json"]
    own = samx("segment", picture, *prompt, "-o", tmp_path / "a.png")
    given = samx("segment", picture, *prompt, "-o", tmp_path / "b.png", "--embedding", tmp_path / "picture.npz")
    encoder = ["--encoder", str(float_encoder), "--pixels", "unit"]
    named = samx("segment", picture, *prompt, "-o", tmp_path / "c.png", *encoder)
    assert given.json["masks"] == named.json["masks"]
    (bytes_in,), (floats_in,) = own.json["masks"], given.json["masks"]  # x / 255 rounds otherwise than x * (1 / 255)
    assert bytes_in["box"] == floats_in["box"]
    assert bytes_in["area_px"] == pytest.approx(floats_in["area_px"], abs=2)
    assert bytes_in["predicted_iou"] == pytest.approx(floats_in["predicted_iou"], abs=1e-5)


def test_an_embedding_is_kept_and_asked_about(samx: Samx, demo_artifact: Path, picture: Path, tmp_path: Path) -> None:
    kept, prompt = tmp_path / "kept.npz", ["--point", "120,90", "--model", str(demo_artifact), "--json"]
    made = samx("encode", picture, "--model", demo_artifact, "-o", kept, "--json")
    assert made.json["original_size"] == [300, 400]
    assert made.json["arrays"] == {"image_embeddings": [1, 256, 64, 64]}
    own = samx("segment", picture, *prompt, "-o", tmp_path / "a.png")
    given = samx("segment", picture, *prompt, "-o", tmp_path / "b.png", "--embedding", kept)
    assert own.json["masks"] == given.json["masks"]
    before = kept.read_bytes()
    assert_one_error_line(samx("encode", picture, "--model", demo_artifact, "-o", kept), 7, "exists already")
    assert kept.read_bytes() == before
    assert samx("encode", picture, "--model", demo_artifact, "-o", kept, "--force").code == 0


def test_an_embedding_of_a_turned_photo_goes_with_it(
    samx: Samx, demo_artifact: Path, picture: Path, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, kept, other = tmp_path / "turned.png", tmp_path / "turned.npz", tmp_path / "other.npz"
    Image.open(picture).save(turned, exif=exif)
    assert samx("encode", turned, "--model", demo_artifact, "-o", kept, "--json").json["original_size"] == [400, 300]
    given = ["--point", "90,120", "--model", str(demo_artifact), "-o", str(tmp_path / "a.png")]
    assert samx("segment", turned, *given, "--embedding", kept).code == 0
    with np.load(kept) as arrays:
        np.savez(other, image_embeddings=arrays["image_embeddings"])
    ended = samx("segment", turned, *given, "--embedding", other, "--force")
    assert_one_error_line(ended, 6, "turned by its EXIF orientation")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["-o", "out.npy"], 2, "found .npy, expected .npz. Name it out.npz"),
        (["-o", "out.npz", "--device", "npu"], 5, "cannot run on 'npu' here"),
        (["-o", "out.npz", "--range", "9:1"], 2, "no range of brightness"),
    ],
)
def test_bad_encode_requests(
    samx: Samx, demo_artifact: Path, picture: Path, tmp_path: Path, arguments: Sequence[str], code: int, words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert_one_error_line(samx("encode", picture, "--model", demo_artifact, *arguments), code, words)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--point", "1,2,3"], 6, "point cannot be read"),
        (["--point", "nan,1"], 6, "point cannot be read"),
        (["--point", "5000,10"], 6, "outside the picture"),
        (["--box", "100,100,20,20"], 6, "swapped corners"),
        ([], 6, "says nothing"),
        (["--point", "9,9", "--embedding", "missing.npz"], 6, "missing.npz"),
        (["--point", "9,9", "--encoder", "missing.onnx"], 2, "nothing says which pixels the encoder"),
        (["--point", "9,9", "--encoder", "missing.onnx", "--pixels", "half"], 6, "missing.onnx"),
        (["--point", "9,9", "-o", "overlay.jpg"], 2, "expected .labels.png"),
        (["--point", "9,9", "--mask", "7"], 2, "no such mask: found '7', expected best, all or 0 or 1 or 2"),
        (["--point", "9,9", "--everything"], 2, "prompts and their options are not for --everything"),
        (["--point", "9,9", "--points-per-side", "8"], 2, "--points-per-side is a setting of --everything"),
        (["--everything", "--points-per-side", "0"], 2, "points_per_side is out of range: found 0"),
        (["--everything", "--pred-iou-thresh", "1.5"], 2, "pred_iou_thresh is out of range: found 1.5"),
        (["--everything", "--use-m2m"], 2, "SAM's automatic mode has no use_m2m"),
        (["--box", "9,9,50,50", "--box", "60,60,90,90", "--point", "9,9"], 2, "points beside several objects"),
        (["--object", "circle=1,2,3"], 6, "object cannot be read"),
        (["--point", "9,9", "--max-hole-area", "-1"], 2, "an area is below 0"),
        (["--point", "9,9", "--refine-from", "missing.png"], 6, "missing.png"),
        (["--point", "9,9", "--range", "9:1"], 2, "no range of brightness"),
        (["--point", "9,9", "--pixels", "half"], 2, "this artifact's encoder normalises pixels itself"),
        (["--point", "9,9", "--pixels", "bgr"], 2, "unknown pixel normalisation"),
    ],
)
def test_bad_segment_requests(
    samx: Samx, demo_artifact: Path, picture: Path, tmp_path: Path, arguments: Sequence[str], code: int, words: str
) -> None:
    out = tmp_path / "overlay.png"
    ended = samx("segment", picture, "--model", demo_artifact, "-o", out, *arguments)
    assert_one_error_line(ended, code, words)
    assert not out.exists()


def test_segment_finds_several_objects_and_writes_them(
    samx: Samx, demo_artifact: Path, picture: Path, tmp_path: Path
) -> None:
    outputs = [tmp_path / name for name in ("overlay.png", "masks.json", "masks.geojson", "masks.npz", "a.labels.png")]
    asked = ["--box", "50,40,250,240", "--box", "10,10,100,90", "--object", "point=200,150 background=5,5"]
    flags = [argument for path in outputs for argument in ("-o", str(path))]
    ended = samx("segment", picture, *asked, "--model", demo_artifact, *flags, "--max-hole-area", "50", "--json")
    assert ended.code == 0, ended.err
    assert [mask["prompt"] for mask in ended.json["masks"]] == [0, 1, 2]
    assert ended.json["files"] == [str(path) for path in outputs]
    with np.load(outputs[3]) as arrays:
        assert arrays["masks"].sum(axis=(1, 2)).tolist() == [mask["area_px"] for mask in ended.json["masks"]]
        assert arrays["boxes"].tolist() == [mask["box"] for mask in ended.json["masks"]]
    again = samx("segment", picture, *asked, "--model", demo_artifact, "--mask", "all", "-o", tmp_path / "m", "--json")
    places = [(mask["prompt"], mask["mask"]) for mask in again.json["masks"]]
    assert places == [(prompt, mask) for prompt in range(3) for mask in range(3)]
    assert len(list((tmp_path / "m").iterdir())) == 9


def test_segment_finds_everything(samx: Samx, demo_artifact: Path, picture: Path, tmp_path: Path) -> None:
    grid = ["--everything", "--points-per-side", "6", "--model", str(demo_artifact), "--json"]
    loose = ["--pred-iou-thresh", "0.5", "--stability-score-thresh", "0.6", "--crop-n-layers", "1"]
    ended = samx("segment", picture, *grid, *loose, "-o", tmp_path / "masks.json", "-o", tmp_path / "drawn.png")
    assert ended.code == 0, ended.err
    written = json.loads((tmp_path / "masks.json").read_bytes())["annotations"]
    assert len(written) == len(ended.json["masks"]) > 3
    assert {tuple(mask["crop_box"]) for mask in written} > {(0, 0, 400, 300)}
    none = samx("segment", picture, *grid, "--pred-iou-thresh", "1", "-o", tmp_path / "none.json")
    assert none.code == 0
    assert "no masks were found" in none.err
    assert json.loads((tmp_path / "none.json").read_bytes())["annotations"] == []


def test_segment_keeps_a_picture_that_is_there(samx: Samx, demo_artifact: Path, picture: Path) -> None:
    before = picture.read_bytes()
    ended = samx("segment", picture, "--point", "9,9", "--model", demo_artifact, "-o", picture)
    assert_one_error_line(ended, 2, "one file is named twice")
    assert picture.read_bytes() == before


# inspect, doctor, the rest


def test_inspect_reads_an_onnx_file(samx: Samx, demo_artifact: Path) -> None:
    facts = samx("inspect", demo_artifact / "decoder.onnx", "--json").json
    assert facts["inputs"] == ["image_embeddings", "point_coords", "point_labels"]
    assert facts["samx"]["spec"]["family"] == "sam1"


def test_inspect_refuses_other_things(samx: Samx, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    assert_one_error_line(samx("inspect", tmp_path / "notes.txt"), 6, "cannot inspect")
    assert_one_error_line(samx("inspect", tmp_path / "nothing"), 6, "found nothing")
    assert_one_error_line(samx("inspect", tmp_path), 6, "manifest.json")


def test_inspect_for_people_names_the_checkpoint(samx: Samx, demo_artifact: Path) -> None:
    ended = samx("inspect", demo_artifact)
    assert ended.code == 0
    assert "from samx SAM demo model: sam1, sha256" in ended.out
    assert f"samx validate {demo_artifact}" in ended.out.replace("\n      ", " ")


def test_doctor_names_what_is_here(samx: Samx) -> None:
    abilities = {entry["name"]: entry for entry in samx("doctor", "--json").json["abilities"]}
    assert abilities["export"]["available"]
    assert "cpu" in abilities["run onnx (ONNX Runtime)"]["devices"]
    assert samx("doctor").code == 0


def test_doctor_says_what_to_install(samx: Samx, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    hidden = lambda name, *rest: None if name in ("onnxruntime", "torch") else real(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    abilities = {entry["name"]: entry for entry in samx("doctor", "--json").json["abilities"]}
    assert abilities["export"]["fix"] == "Install it with: pip install 'samx[export]'"
    assert abilities["run onnx (ONNX Runtime)"]["fix"] == "Install it with: pip install 'samx[onnxruntime]'"


def test_errors_are_json_too(samx: Samx, tmp_path: Path) -> None:
    ended = samx("inspect", tmp_path / "nothing", "--json")
    assert ended.code == 6
    assert ended.json["error"] == "InputError"
    assert ended.json["exit_code"] == 6


def test_version_and_usage(samx: Samx) -> None:
    from samx import __version__

    assert samx("--version").out.strip() == f"samx {__version__}"
    assert samx("frobnicate").code == 2
    assert samx("--help").code == 0


@pytest.mark.parametrize("entry", registry.BACKENDS, ids=lambda entry: entry.target)
def test_help_of_a_target_has_its_own_words(samx: Samx, entry: registry.Backend) -> None:
    shown = re.sub(r"[\s│]", "", samx("export", "--target", entry.target, "--help").out)
    for declared in entry.option_fields().values():
        assert re.sub(r"\s", "", declared.metadata["help"]) in shown


def test_progress_goes_to_stderr_only(samx: Samx, demo_artifact: Path) -> None:
    ended = samx("validate", demo_artifact, "--json")
    assert "Judging" in ended.err
    assert "Judging" not in ended.out
