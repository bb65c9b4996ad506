"""INT8 for OpenVINO: what ONNX Runtime's quantiser wrote, multiplied in integers by OpenVINO too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from encoder_int8_toys import GROUPS, job, photos, reference, written
from int8_jobs import quantisation_job
from saturation import saturates

from samx.formats import openvino as ir
from samx.models.session import Feed, Session
from samx.quantization import openvino as int8
from samx.quantization.calibration import fitted
from samx.quantization.encoder import EncoderTrial
from samx.quantization.search import Plan
from samx.runtimes import openvino as runtime
from samx.runtimes.openvino import open_graphs
from samx.runtimes.torch import reference_session
from samx.validators.metrics import BoolArray


def test_int8_files_multiply_integers(tmp_path: Path) -> None:
    job = quantisation_job("whole", tmp_path)
    done = int8.quantise(job)
    assert {path.name for path in tmp_path.iterdir()} == {"decoder.xml", "decoder.bin"} == set(done.exported.files)
    products = done.arithmetic["products"]
    assert sum(count for arithmetic, count in products.items() if arithmetic in ("i8", "u8")) >= 1, products
    assert done.arithmetic["integer_multiply_adds"] > 0
    graph = ir.from_directory(tmp_path, "decoder")
    session = open_graphs([graph], job.export.spec, "int8", points=3)
    reference = reference_session(job.export.loaded, job.export.spec)
    question = job.calibration.images[0], fitted(job.calibration.samples[0].prompts, job.export.spec)
    found, expected = (masks(one, *question) for one in (session, reference))
    assert (found == expected).mean() > (0.96 if saturates() else 0.97)


def masks(session: Session, features: Feed, feed: Feed) -> BoolArray:
    session.set_image(features)
    return session.decode(feed)["low_res_masks"] > 0


def test_an_encoder_s_products_are_integers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Mapping[str, int]] = []
    monkeypatch.setattr(runtime, "check_products", lambda found, precision: seen.append(found))
    trial = EncoderTrial(written(tmp_path), job("openvino"), reference(), photos()[:-1])
    (tmp_path / "placed").mkdir()
    assert trial.place(Plan(GROUPS), tmp_path / "placed").files == {
        "encoder.xml": "encoder", "encoder.bin": "encoder_weights"
    }  # fmt: skip
    floating, integers = (trial.opened(Plan(groups))(trial.feeds[0]) for groups in ((), GROUPS))
    in_integers = [sum(count for kind, count in found.items() if kind in ("i8", "u8")) for found in seen]
    assert in_integers[0] == 0
    assert in_integers[1] >= 4 * 3, seen
    for name, value in floating.items():
        assert 1e-4 < np.abs(integers[name] - value).max() / np.abs(value).max() < 0.3
