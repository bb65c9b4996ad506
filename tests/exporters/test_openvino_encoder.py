"""An image encoder as OpenVINO files: judged from bytes to masks, in the arithmetic that was asked for."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exports import job_for
from openvino_toys import BFLOAT16, capabilities

from samx.artifacts.commit import seal
from samx.artifacts.store import Artifact
from samx.commands.export import REPORT_FILE, ExportRequest, export
from samx.demo import demo_checkpoint
from samx.errors import ArtifactError, MissingExtraError, UnavailableError, UsageError
from samx.exporters.base import Exported
from samx.exporters.encoder import export_encoder
from samx.extras import require
from samx.formats import openvino as ir
from samx.formats.openvino import check_products
from samx.models.checkpoint import load_checkpoint
from samx.models.shape_range import ShapeRange
from samx.registry import backend
from samx.runtimes import openvino as runtime
from samx.runtimes.openvino import open_encoder
from samx.validators.child import gate_in_child
from samx.validators.report import ParityReport

pytestmark = pytest.mark.long

BATCHES, PICTURES = ShapeRange(1, 2, 3), 5 + 6 + 6  # one by one, in twos and in threes
TARGET = backend("openvino")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the demo model, small."""
    out = tmp_path_factory.mktemp("exported") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("samx.commands.proof.EXPORT_CALLS", 0)  # of the decoder, which other tests ask
        export(ExportRequest(out, target="openvino", image_size=128, pictures=BATCHES))
    return out


def copied(artifact: Path, to: Path, change: Callable[[Any], None], **encoder: str) -> Path:
    """Copy an artifact, change its encoder's graph, and seal it as if nothing had happened."""
    target, manifest = to / "copy", Artifact.open(artifact).manifest
    shutil.copytree(artifact, target)
    graph = ir.read(ir.from_directory(target, "encoder"))
    change(graph)
    for name, (content, _) in ir.write(graph, half=False).files("encoder").items():
        (target / name).write_bytes(content)
    (target / "manifest.json").unlink()
    options = {**manifest.options, "encoder": {**manifest.options["encoder"], **encoder}}
    seal(target, replace(manifest, files={}, options=options), {n: file.role for n, file in manifest.files.items()})
    return target


def unchanged(graph: Any) -> None:
    """Leave a graph as it is."""


def opset() -> Any:
    return require("openvino.opset13", "openvino", "tests")


def turn_channels(graph: Any) -> None:
    """Read the picture as BGR."""
    picture = next(port for port in graph.inputs if port.get_any_name() == "picture")
    readers = list(picture.get_target_inputs())
    turned = opset().gather(picture.get_node(), opset().constant(np.array([2, 1, 0])), opset().constant(np.int64(3)))
    for reader in readers:
        reader.replace_source_output(turned.output(0))


def change_weights(graph: Any) -> None:
    """Lose a channel of the largest weights."""
    constants = [node for node in graph.get_ops() if node.get_type_name() == "Constant"]
    weights = max(constants, key=lambda node: node.data.size)
    changed = np.array(weights.data)
    changed[-1] = 0
    for reader in list(weights.output(0).get_target_inputs()):
        reader.replace_source_output(opset().constant(changed).output(0))


def test_export_writes_and_judges_the_target_s_own_encoder(artifact: Path) -> None:
    manifest = Artifact.open(artifact).manifest
    roles = {name: file.role for name, file in manifest.files.items() if name.startswith("encoder.")}
    assert roles == {"encoder.xml": "encoder", "encoder.bin": "encoder_weights"}
    report = ParityReport.from_bytes((artifact / REPORT_FILE).read_bytes(), "it")
    assert report.passed
    assert report.encoder is not None
    assert len(report.encoder.cases) == PICTURES
    assert report.encoder.metrics["mask_iou_mean"] > 0.9999
    assert ir.describe(artifact / "encoder.xml")["samx"] == {"role": "encoder"}


@pytest.mark.parametrize("fault", [turn_channels, change_weights])
def test_fault_in_the_encoder_s_files_is_caught(fault: Callable[[Any], None], artifact: Path, tmp_path: Path) -> None:
    report = gate_in_child(copied(artifact, tmp_path, fault), level="graph")
    assert not report.passed
    assert report.failures == ()
    assert all(case.passed for case in report.cases), "the decoder is right"
    assert report.all_failures()[0].startswith("encoder: ")


def products(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, int]:
    """Open an encoder; gives the products that it was compiled to, in each arithmetic."""
    seen: list[Mapping[str, int]] = []
    check = check_products

    def checked(found: Mapping[str, int], precision: str) -> None:
        seen.append(found)
        check(found, precision)

    monkeypatch.setattr(runtime, "check_products", checked)
    open_encoder(Artifact.open(artifact))
    return seen[0]


def test_float32_is_read_back(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = products(artifact, monkeypatch)
    assert found.keys() == {"f32"}
    assert found["f32"] >= 15  # every convolution


def test_bfloat16_is_computed_in_bfloat16_or_refused(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = copied(artifact, tmp_path, unchanged, precision="bf16")
    if BFLOAT16 not in capabilities():
        with pytest.raises(UnavailableError, match="this processor does not compute in bfloat16"):
            open_encoder(Artifact.open(half))
        return
    assert products(half, monkeypatch)["bf16"] >= 15


def test_another_arithmetic_than_was_asked_for_is_refused(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "products", lambda models: {"f32": 3, "bf16": 12})
    with pytest.raises(
        UnavailableError, match=r"another arithmetic here: found 3 products in f32, 12 products in bf16"
    ):
        open_encoder(Artifact.open(artifact))


def written(directory: Path, precision: str) -> Exported:
    """Write the demo model's encoder beside a decoder in float32."""
    checkpoint = demo_checkpoint("sam1")
    loaded = load_checkpoint(checkpoint, image_size=128)
    return export_encoder(checkpoint, job_for("openvino", loaded, loaded.spec, "fp32"), None, directory, precision)


@pytest.mark.skipif(BFLOAT16 in capabilities(), reason="this processor computes in bfloat16")
def test_an_encoder_in_bfloat16_is_not_exported_where_the_processor_has_none(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="this processor does not compute in bfloat16") as caught:
        written(tmp_path, "bf16")
    assert caught.value.exit_code == 5
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_s_precision_is_its_decoder_s_but_for_integers() -> None:
    found = [TARGET.encoder_precision(None, decoder) for decoder in TARGET.precisions]
    assert found == ["fp32", "fp16", "bf16", "fp32"]
    assert TARGET.encoder_precision("int8", "int8") == "int8"
    with pytest.raises(UsageError, match="no image encoder in this precision: found int4, expected fp32 or fp16"):
        TARGET.encoder_precision("int4", "int8")


def test_float16_is_stored(artifact: Path, tmp_path: Path) -> None:
    assert written(tmp_path, "fp16").options["encoder"]["precision"] == "fp16"
    assert (tmp_path / "encoder.bin").stat().st_size < 0.52 * (artifact / "encoder.bin").stat().st_size
    graph = ir.read(ir.from_directory(tmp_path, "encoder"))
    assert [port.get_element_type().to_string() for port in [*graph.inputs, *graph.outputs]] == ["u8", "i32", "f32"]


def test_means_of_means_stay_two(artifact: Path) -> None:
    graph = ir.read(ir.from_directory(artifact, "encoder"))
    written = Counter(node.get_type_name() for node in graph.get_ops())
    core = require("openvino", "openvino", "tests").Core()
    runs = Counter(kind for kind, _ in ir.operations(core.compile_model(graph, ir.PLUGIN)))
    assert written["ReduceSum"] == written["ReduceMean"] > 10
    assert runs["Reduce"] == written["ReduceSum"] + written["ReduceMean"]


@pytest.mark.parametrize("cut", ["encoder.xml", "encoder.bin"])
def test_a_file_that_is_no_graph_is_one_line(cut: str, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Artifact.read
    monkeypatch.setattr(Artifact, "read", lambda self, name: read(self, name)[: 100 if name == cut else None])
    with pytest.raises(ArtifactError, match="OpenVINO cannot load") as caught:
        open_encoder(Artifact.open(artifact))
    assert "\n" not in str(caught.value)


def test_a_device_that_is_not_offered_is_no_other_device(artifact: Path) -> None:
    with pytest.raises(UnavailableError, match="does not run OpenVINO there: found 'gpu', expected cpu"):
        open_encoder(Artifact.open(artifact), device="gpu")


def test_without_openvino_its_extra_is_named(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"openvino"):
        open_encoder(Artifact.open(artifact))
