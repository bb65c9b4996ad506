"""Small exports that several tests look at: made once, never changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from toys import toy_checkpoint

from samx.decoders.spec import DecoderSpec
from samx.exporters.job import ExportJob, ExportOptions
from samx.exporters.onnx import export

Exports = Callable[[DecoderSpec, ExportOptions], dict[str, onnx.ModelProto]]


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """Export a toy decoder and give its models by file name."""
    made: dict[tuple[DecoderSpec, ExportOptions], dict[str, onnx.ModelProto]] = {}

    def make(spec: DecoderSpec, options: ExportOptions) -> dict[str, onnx.ModelProto]:
        if (spec, options) not in made:
            folder: Path = tmp_path_factory.mktemp("export")
            checkpoint = toy_checkpoint(replace(spec, masks="multimask", mask_input=False))
            exported = export(ExportJob(checkpoint, spec, options), folder)
            made[spec, options] = {name: onnx.load(str(folder / name)) for name in exported.files}
        return made[spec, options]

    return make
