"""A family is one file of data: it is found, also in a zip file, and nothing else knows its name."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoint_files import meta_sam1, random_decoder, small_spec
from safetensors.torch import save_file

import samx
from samx.errors import CheckpointError, UsageError
from samx.models import checkpoint, families
from samx.models.checkpoint import build_reference, load_checkpoint
from samx.models.families.base import Family
from samx.models.spec import DecoderSpec, family_spec

PACKAGE, HERE = Path(samx.__file__).parent, Path(__file__).parent
TOY = HERE / "toy_family" / "toy.py"
SMALL_PX = 64


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Family]:
    """Let the toy family's folder belong to the families."""
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(TOY.parent)])
    monkeypatch.syspath_prepend(str(HERE))
    families.known.cache_clear()
    yield families.find("toy")
    families.known.cache_clear()


@pytest.fixture
def toy_checkpoint(tmp_path: Path) -> Path:
    """Save a small decoder under the toy family's names."""
    state = {
        f"model.{name.replace('prompt_encoder.', 'toy_prompts.').replace('mask_decoder.', 'toy_decoder.')}": tensor
        for name, tensor in random_decoder(small_spec(image_size=SMALL_PX)).state_dict().items()
    }
    path = tmp_path / "toy.safetensors"
    save_file({name.replace(".mask_tokens.", ".answers."): tensor for name, tensor in state.items()}, path)
    return path


@pytest.mark.parametrize(
    ("name", "points", "has_box", "rows"),
    [
        ("sam1", 2, False, [0, 1, -1]),
        ("sam1", 2, True, [0, 1, 2, 3]),
        ("sam1", 0, True, [0, 1]),
        ("sam1", 0, False, []),
        ("sam2", 2, False, [0, 1, -1]),
        ("sam2", 2, True, [2, 3, 0, 1, -1]),
        ("sam2", 0, True, [0, 1, -1]),
        ("sam2", 0, False, []),
        ("sam3", 1, True, [1, 2, 0, -1]),
        ("efficientsam", 2, True, [0, 1, 2, 3, -1, -1]),
        ("efficientsam", 0, False, [-1] * 6),
        ("efficientsam", 6, False, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_a_prompt_is_ordered_and_padded_as_the_predictor_does(
    name: str, points: int, has_box: bool, rows: list[int]
) -> None:
    assert families.find(name).rows(points, has_box) == rows


@pytest.mark.parametrize("name", [name for name in families.known() if name != "efficientsam"])
def test_the_automatic_modes_constants_are_upstreams(name: str) -> None:
    package, generator = {
        "sam1": ("segment_anything", "SamAutomaticMaskGenerator"), "sam2": ("sam2", "SAM2AutomaticMaskGenerator"),
        # Of SAM 3 Meta has none. transformers' mask generation has SAM's constants for every model.
        "sam3": ("segment_anything", "SamAutomaticMaskGenerator"),
        # SysCV's copies have the same ones.
        "sam_hq": ("segment_anything", "SamAutomaticMaskGenerator"), "sam_hq2": ("sam2", "SAM2AutomaticMaskGenerator"),
    }[name]  # fmt: skip
    found = upstream_defaults(package, generator)
    rules = families.find(name)
    assert {
        "pred_iou_thresh": rules.automatic_iou, "stability_score_thresh": rules.automatic_stability,
        "stability_score_offset": rules.automatic_offset, "box_nms_thresh": rules.automatic_box_iou,
        "points_per_side": rules.automatic_points_per_side,
    }.items() <= found.items()  # fmt: skip


def test_the_thresholds_of_efficientsams_notebook() -> None:
    """Its publisher has no generator, but a notebook that segments everything."""
    rules = families.find("efficientsam")
    assert (rules.automatic_iou, rules.automatic_stability, rules.automatic_offset) == (0.7, 0.9, 1.0)
    assert (rules.automatic_box_iou, rules.automatic_points_per_side) == (0.7, 32)


def upstream_defaults(package: str, generator: str) -> dict[str, object]:
    """Read the defaults of a generator's constructor out of its source: importing it needs torchvision."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"{package} is not installed")
    source = Path(found.origin).with_name("automatic_mask_generator.py").read_text(encoding="utf-8")
    (made,) = [
        function
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == generator
        for function in node.body
        if isinstance(function, ast.FunctionDef) and function.name == "__init__"
    ]
    names, values = [argument.arg for argument in made.args.args], made.args.defaults
    constants = zip(names[-len(values) :], values, strict=True)
    return {name: value.value for name, value in constants if isinstance(value, ast.Constant)}


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        UsageError,
        match="unknown model family: found 'sam9', expected efficientsam or sam1 or sam2 or sam3 or sam_hq or sam_hq2",
    ):
        family_spec("sam9")


def test_the_family_with_the_most_marks_has_the_checkpoint(toy: Family) -> None:
    assert families.recognise(["mask_decoder.iou_token.weight"]).name == "sam1"
    assert families.recognise(["mask_decoder.iou_token.weight", "mask_decoder.conv_s0.weight"]).name == "sam2"
    assert families.recognise(["mask_decoder.iou_token.weight", "mask_decoder.hf_token.weight"]).name == "sam_hq"
    assert (
        families.recognise(["sam_mask_decoder.iou_token.weight", "sam_mask_decoder.hf_token.weight"]).name == "sam_hq2"
    )
    assert families.recognise(["mask_decoder.iou_token.weight", "toy_decoder.iou_token.weight"]) is toy


def test_families_are_found_in_a_zip_file(tmp_path: Path) -> None:
    archive = tmp_path / "samx.pyz"
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("__init__", "errors", "models/__init__", *(f"models/families/{p.stem}" for p in family_files())):
            file.write(PACKAGE / f"{name}.py", f"samx/{name}.py")
        file.write(TOY, "samx/models/families/toy.py")
    code = "from samx.models import families; print(families.__file__, *families.known())"
    where, *names = run(code, tmp_path, PYTHONPATH=str(archive)).split()
    assert where.startswith(str(archive))
    assert names == ["efficientsam", "sam1", "sam2", "sam3", "sam_hq", "sam_hq2", "toy"]


def family_files() -> list[Path]:
    return sorted((PACKAGE / "models" / "families").glob("*.py"))


def run(code: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder,
        env={**os.environ, **environment}, stdin=subprocess.DEVNULL, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestToyFamily:
    def test_its_checkpoint_is_recognised_renamed_and_built(self, toy: Family, toy_checkpoint: Path) -> None:
        loaded = load_checkpoint(toy_checkpoint, image_size=SMALL_PX)
        assert (loaded.spec.family, loaded.spec.iou_sigmoid, loaded.spec.rules) == ("toy", True, toy)
        assert type(build_reference(loaded)).__name__ == "ToyDecoder"
        assert loaded.kind == "Meta Toy checkpoint"
        assert DecoderSpec.from_json(loaded.spec.to_json(), "spec") == loaded.spec

    def test_without_its_file_its_checkpoint_is_none(self, toy_checkpoint: Path) -> None:
        with pytest.raises(CheckpointError, match="is not a Segment Anything checkpoint"):
            load_checkpoint(toy_checkpoint)

    def test_a_relative_that_has_a_file_is_no_longer_refused(
        self, toy: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "adapted.safetensors"
        save_file({**meta_sam1(), "mask_decoder.layers.0.adapter.weight": torch.zeros(1, 32)}, path)
        title = "a decoder with unmerged adapter weights"
        with pytest.raises(CheckpointError, match=f"holds {title}, which samx does not support"):
            load_checkpoint(path)
        monkeypatch.setattr(checkpoint, "known", lambda: {"toy": replace(toy, title=title)})
        with pytest.raises(CheckpointError, match="has weights that SAM's does not have"):  # read, but as SAM 1
            load_checkpoint(path)

    def test_its_file_alone_takes_it_to_a_proven_artifact(self, toy_checkpoint: Path, tmp_path: Path) -> None:
        """The whole way, in samx as it is but for one file more: load, reference, fast form, ONNX, gate."""
        house = tmp_path / "house"
        link(PACKAGE, house / "samx", but="models")
        link(PACKAGE / "models", house / "samx" / "models", but="families")
        link(PACKAGE / "models" / "families", house / "samx" / "models" / "families")
        (house / "samx" / "models" / "families" / "toy.py").symlink_to(TOY)
        arguments = [str(toy_checkpoint), "--image-size", str(SMALL_PX), "-o", str(tmp_path / "out")]
        code = f"import sys; sys.argv[1:] = ['export', *{arguments!r}]; from samx.cli import main; main()"
        run(code, tmp_path, PYTHONPATH=os.pathsep.join([str(house), str(HERE)]))
        manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
        report = json.loads((tmp_path / "out" / "parity_report.json").read_text())
        assert manifest["spec"]["family"] == "toy"
        assert manifest["checkpoint"]["kind"] == "Meta Toy checkpoint"
        assert report["passed"] is True


def link(source: Path, target: Path, but: str = "") -> None:
    """Make a folder of links to what another folder holds."""
    target.mkdir(parents=True)
    for entry in source.iterdir():
        if entry.name not in (but, "__pycache__"):
            (target / entry.name).symlink_to(entry)
