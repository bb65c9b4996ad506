"""Why samx's graph looks as it does: Meta's own export of the same decoder does not even parse."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
import pytest
from toys import toy_checkpoint

from samx.benchmarks.contenders.meta import export_meta
from samx.errors import ArtifactError
from samx.exporters.tensorrt.build import build_engine
from samx.formats.tensorrt.library import library_of
from samx.formats.tensorrt.plan import BuildPlan
from samx.models.shape_range import ShapeRange
from samx.models.spec import sam1_spec


def test_metas_own_export_does_not_parse(tmp_path: Path) -> None:
    """Its masks are resized to a size that is a float input, which becomes a float shape tensor."""
    spec = sam1_spec()
    data = export_meta(toy_checkpoint(spec), tmp_path).whole.read_bytes()
    assert "Resize" in {node.op_type for node in onnx.load_from_string(data).graph.node}
    sha256 = hashlib.sha256(data).hexdigest()
    plan = BuildPlan.of("trt-rtx", spec, "meta.onnx", sha256, ShapeRange(1, 1, 1), ShapeRange(1, 2, 16))
    with pytest.raises(ArtifactError, match=r"cannot read 'meta\.onnx'") as caught:
        build_engine(data, plan, library_of("trt-rtx").start())
    assert "\n" not in str(caught.value)
