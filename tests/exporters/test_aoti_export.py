"""The package: a small graph compiled for real, decoders in the slow tests; what stands around it; what is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_toys import home as home
from exports import export_job, job_for
from toys import image_tensors, prompt_tensors, toy_checkpoint, toy_decoder
from toys import one_thread as one_thread

from samx.artifacts import trust
from samx.artifacts.store import Artifact
from samx.commands.export import ExportRequest, export
from samx.commands.validate import validate
from samx.errors import SamxError, UnavailableError, UsageError
from samx.exporters import aoti
from samx.exporters.base import ExportJob
from samx.formats.aoti import STAMP_FILE, Host, HostStamp
from samx.models.graph import Graph
from samx.models.shape_range import ShapeRange
from samx.models.spec import TensorSpec, sam1_spec
from samx.runtimes.aoti import load_models, open_artifact

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]
SPEC = sam1_spec(image_size=128)
WRITTEN = b"compiled"


def job(precision: str = "fp32", **options: object) -> ExportJob:
    return job_for("aoti", toy_checkpoint(SPEC), SPEC, precision, **options)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, home: Path) -> list[Graph]:
    """Stand in for the compiler, which takes a minute; gives what it was asked to compile."""
    seen: list[Graph] = []

    def write_package(parts: Sequence[Graph], path: Path) -> None:
        seen.extend(parts)
        path.write_bytes(WRITTEN)

    monkeypatch.setattr(aoti, "write_package", write_package)
    return seen


def test_a_package_is_stamped_and_trusted(compiler: list[Graph], tmp_path: Path) -> None:
    exported = export_job(job(), tmp_path)
    sha256 = hashlib.sha256(WRITTEN).hexdigest()
    assert exported.files == {"decoder.pt2": "package", "host.json": "package_stamp"}
    assert trust.is_trusted(sha256)
    stamp = HostStamp.from_bytes((tmp_path / STAMP_FILE).read_bytes(), STAMP_FILE)
    assert stamp == HostStamp(Host.here(exported.tools["torch"]), sha256)
    assert [graph.role for graph in compiler] == ["image", "prompt"]


def test_an_encoder_is_a_package_of_its_own_stamped_and_trusted(compiler: list[Graph], tmp_path: Path) -> None:
    graph = tiny()
    exported = aoti.write_encoder(graph, job(), tmp_path)
    assert compiler == [graph]
    assert exported.files == {"encoder.pt2": "encoder", "encoder_host.json": "encoder_stamp"}
    sha256 = hashlib.sha256(WRITTEN).hexdigest()
    assert trust.is_trusted(sha256)
    stamp = HostStamp.from_bytes((tmp_path / "encoder_host.json").read_bytes(), "it")
    assert stamp == HostStamp(Host.here(exported.tools["torch"]), sha256)


@pytest.mark.parametrize(
    ("options", "form"),
    [
        ({}, "low_rank"),
        ({"points": ShapeRange(1, 30, 30)}, "direct"),
        ({"prompts": ShapeRange(1, 1, 1)}, "low_rank"),  # the image's part is kept in any case
        ({"precision": "fp16"}, "absorbed"),
    ],
)
@pytest.mark.usefixtures("compiler")
def test_the_form_follows_points_and_precision(options: dict[str, object], form: str, tmp_path: Path) -> None:
    facts = export_job(job(**options), tmp_path).options  # type: ignore[arg-type]
    assert (facts["form"], facts["cached"]) == (form, True)


def test_half_precision_keeps_half_tensors_between_the_models(compiler: list[Graph], tmp_path: Path) -> None:
    export_job(job(precision="fp16", keep_float32=("image norms",)), tmp_path)
    image, prompt = compiler
    kept = [tensor for tensor in prompt.inputs if tensor in image.outputs]
    assert {tensor.dtype for tensor in kept} == {"float16"}
    assert {tensor.dtype for tensor in prompt.inputs[len(kept) :]} == {"float32"}


@pytest.mark.usefixtures("compiler")
def test_groups_to_keep_in_float32_are_for_half_precision(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="everything is in float32 already"):
        export_job(job(keep_float32=("image norms",)), tmp_path)


@pytest.mark.parametrize(("options", "flag"), [({"split": True}, "--split"), ({"opset": 23}, "--opset")])
def test_options_of_other_targets_are_refused(options: dict[str, object], flag: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"target 'aoti' has no such option: found {flag}"):
        export(ExportRequest(out=tmp_path / "out", target="aoti", options=options))


def test_a_missing_compiler_is_named(tmp_path: Path) -> None:
    from torch._inductor import config

    with (
        config.patch({"cpp.cxx": ("/no/such/compiler",)}),
        pytest.raises(UnavailableError, match=r"needs a C\+\+ compiler"),
    ):
        aoti.write_package([tiny()], tmp_path / "decoder.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_compiler_that_refuses_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from torch._inductor import exc

    def fail(*arguments: object, **options: object) -> None:
        raise exc.CppCompileError(["g++", "x.cpp"], "x.cpp:1: error: no\nfatal: gave up")

    monkeypatch.setattr(torch._inductor, "aot_compile", fail)
    with pytest.raises(SamxError, match=r"the C\+\+ compiler refuses the graph: found x\.cpp:1: error: no") as caught:
        aoti.write_package([tiny()], tmp_path / "decoder.pt2")
    assert "\n" not in str(caught.value)


def test_a_package_holds_what_was_compiled_for_any_number_of_prompts(tmp_path: Path) -> None:
    path = tmp_path / "decoder.pt2"
    if " " in torch.__file__:  # PyTorch 2.13 does not quote its own folder for the linker: told in one line, no package
        with pytest.raises(SamxError, match=r"the C\+\+ compiler refuses the graph"):
            aoti.write_package([tiny()], path)
        assert not path.exists()
        return
    aoti.write_package([tiny()], path)
    models = load_models(path.read_bytes(), "decoder.pt2")
    assert list(models) == ["prompt"]
    for prompts, points in [(1, 1), (1, 4), (3, 0)]:
        feed = prompt_tensors(SPEC, prompts, [1] * points)
        (found,) = models["prompt"](*feed.values())
        torch.testing.assert_close(found, feed["point_coords"].mul(2).relu())


class Tiny(torch.nn.Module):
    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (inputs[0].mul(2).relu(),)


def tiny() -> Graph:
    """Give the smallest thing to compile: with two axes of any size, as the decoder's."""
    return Graph("prompt", Tiny(), SPEC.prompt_inputs, (TensorSpec("out", (1,), "1", ""),))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("family", "precision", "mask_input"), [("sam1", "fp32", False), ("sam2", "fp16", True)])
def test_an_export_is_compiled_judged_and_runs_again(
    family: str, precision: str, mask_input: bool, home: Path, tmp_path: Path
) -> None:
    """Every prompt kind and number passes the gate in a process of its own; another user's home trusts nothing."""
    out = tmp_path / "out"
    result = export(ExportRequest(out=out, family=family, target="aoti", precision=precision, mask_input=mask_input))
    assert result.report.passed
    assert result.report.placement["operations"] == {"cpu": 2}
    assert validate(out, threads=1).passed
    session = open_artifact(Artifact.open(out))
    assert session.placement().honoured


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_compiled_form_takes_any_number_of_prompts_and_points(home: Path, tmp_path: Path) -> None:
    spec = sam1_spec(image_size=128, mask_input=True)
    loaded = toy_checkpoint(spec)
    export_job(job_for("aoti", loaded, spec, points=ShapeRange(1, 30, 30)), tmp_path)
    models = load_models((tmp_path / "decoder.pt2").read_bytes(), "decoder.pt2")
    reference, image = toy_decoder(spec), image_tensors(spec)
    state = models["image"](*image.values())
    for prompts, points in [(1, 0), (1, 1), (2, 1), (1, 2), (3, 30), (9, 4)]:
        feed = prompt_tensors(spec, prompts, [1] * points)
        masks, iou = models["prompt"](*state, *feed.values())
        wanted = reference(**image, **feed)
        scale = float(wanted["low_res_masks"].abs().max())
        np.testing.assert_allclose(masks.numpy(), wanted["low_res_masks"].numpy(), atol=1e-5 * scale)
        np.testing.assert_allclose(iou.numpy(), wanted["iou_predictions"].numpy(), atol=1e-4)
