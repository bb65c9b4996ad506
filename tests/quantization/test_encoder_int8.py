"""An image encoder in INT8: what is calibrated, what the search leaves in float32, and what is refused with figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from encoder_int8_toys import FLOAT_NS, GROUPS, SIZE_PX, SPEC, Counter, graph, job, photos, reference, written
from onnx import numpy_helper
from PIL import Image

from samx.artifacts.manifest import EncoderEntry
from samx.errors import ImageError, InputError, ParityError, UsageError
from samx.exporters import onnx as onnx_exporter
from samx.picture_encoder import encoder_inputs
from samx.quantization import encoder as module
from samx.quantization.encoder import EncoderInt8Report, EncoderTrial, Int8Encoder, pictures
from samx.quantization.encoder_graph import encoder_products, group_of, picture_limits, quantised_encoder
from samx.quantization.int8 import check_encoder
from samx.quantization.onnx_qdq import integer_work, open_session
from samx.quantization.search import Budget, Plan
from samx.registry import backend
from samx.validators.encoder_gate import judge_encoder
from samx.validators.metrics import encoder_bounds

ROOMY, WHOLE = Budget(0.5, 0.2), Plan(GROUPS)  # random weights: what matters is what the figures lead to
RUINED = "neck.2"  # every feature goes through it


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("float"))


@pytest.fixture(scope="module")
def trial(path: Path) -> EncoderTrial:
    return EncoderTrial(path, job(), reference(), photos()[:-1])


def ruined(trial: EncoderTrial, *groups: str) -> dict[str, tuple[float, float]]:
    """Give the ranges of some groups as if their calibration had gone wrong: a fiftieth of what pictures give."""
    tensors = {one.tensor for one in encoder_products(onnx.load(trial.path)) if one.group in groups}
    share = {name: 0.02 if name in tensors else 1.0 for name in trial.limits}
    return {name: (low * share[name], high * share[name]) for name, (low, high) in trial.limits.items()}


def test_products_of_a_block_belong_to_its_attention_or_to_its_two_layers(path: Path) -> None:
    found = encoder_products(onnx.load(path))
    assert tuple(dict.fromkeys(one.group for one in found)) == GROUPS
    counts = [sum(one.group == group for one in found) for group in GROUPS]
    assert counts[1:5] == [4, 2, 4, 2]  # q, k and v apart, the projection; k and v have no constant with a name
    assert {one.op for one in found} == {"Conv", "MatMul"}


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ("encoder.trunk.blocks.10.attn.q.bias", "trunk.blocks.10.attn"),
        ("encoder.trunk.blocks.0.mlp.layers.1.weight", "trunk.blocks.0.mlp"),
        ("encoder.skips.0.bias", "skips.0"),
        ("", "other"),
    ],
)
def test_a_group_is_named_after_a_module(path: str, group: str) -> None:
    assert group_of(path) == group


def test_limits_are_the_least_and_largest_value_that_pictures_give(path: Path, trial: EncoderTrial) -> None:
    model = onnx.load(path)
    one = next(product for product in encoder_products(model) if product.group == "blocks.0.mlp")
    model.graph.output.append(onnx.ValueInfoProto(name=one.tensor))
    session = open_session(model.SerializeToString())
    values = [session.run([one.tensor], feed)[0] for feed in trial.feeds]
    assert trial.limits[one.tensor] == (min(v.min() for v in values), max(v.max() for v in values))


def test_pictures_that_make_an_encoder_overflow_calibrate_nothing(path: Path, tmp_path: Path) -> None:
    model = onnx.load(path)
    weight = next(one for one in model.graph.initializer if one.name.endswith("patch_embed.proj.weight"))
    weight.CopyFrom(numpy_helper.from_array(np.full(tuple(weight.dims), 1e38, np.float32), weight.name))
    onnx.save(model, tmp_path / "encoder.onnx")
    feed = encoder_inputs([photos()[0][1]], SPEC, EncoderEntry("trial", SIZE_PX, "int8", job().pictures))
    with pytest.raises(InputError, match="not finite"):
        picture_limits(tmp_path / "encoder.onnx", [feed])


def test_only_the_groups_of_a_plan_are_in_integers(path: Path, trial: EncoderTrial) -> None:
    counts: dict[tuple[str, ...], int] = {}
    for groups in ((), ("blocks.0.mlp",), GROUPS):
        work = integer_work(quantised_encoder(path, groups, trial.limits).SerializeToString())
        counts[groups] = sum(work["integer"].values())
    assert list(counts.values()) == [0, 2, 15]


def test_integers_cost_little_and_the_gate_passes_them(trial: EncoderTrial) -> None:
    assert 0.9 < trial.judge(WHOLE).mean_iou < 1
    assert trial.judge(Plan()).mean_iou == pytest.approx(1, abs=1e-3)
    bounds = encoder_bounds("int8", "fp32")
    report = judge_encoder(trial.opened(Plan(("neck.2",))), trial.reference.session, trial.searched, bounds)
    assert report.passed, report.failures


def test_a_group_that_is_quantised_wrongly_fails_the_gate(trial: EncoderTrial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "limits", ruined(trial, RUINED))
    bounds = encoder_bounds("int8", "fp32")
    report = judge_encoder(trial.opened(Plan((RUINED,))), trial.reference.session, trial.searched, bounds)
    assert not report.passed


class TestWrite:
    """Int8Encoder.write(), with a clock of the test's own."""

    @pytest.fixture(autouse=True)
    def _prepared(self, path: Path, trial: EncoderTrial, monkeypatch: pytest.MonkeyPatch) -> None:
        """Trace and calibrate once for all tests; few pictures."""
        self.trial, self.patch = trial, monkeypatch
        monkeypatch.setattr(module, "pictures", lambda *_: (photos(), "toys"))
        monkeypatch.setattr(
            onnx_exporter, "write_encoder", lambda graph, job, to: onnx_exporter.place_encoder(path, to, "fp32")
        )

    def write(self, to: Path, times: Callable[[Plan], float], budget: Budget = ROOMY, limits: Any = None) -> Any:
        clock = Counter(lambda plan: int(FLOAT_NS / times(plan)))
        self.patch.setattr(EncoderTrial, "opened", clock.opened(EncoderTrial.opened))
        self.patch.setattr(module, "picture_limits", lambda *_: limits or self.trial.limits)
        encoder = Int8Encoder(reference, budget, cache_file=to.with_name("cache.json"), clock=clock)
        return encoder.write(graph(), job(), to)

    def test_what_pays_is_written_with_its_report(self, tmp_path: Path) -> None:
        to = tmp_path / "out"
        to.mkdir()
        exported = self.write(to, lambda plan: 2)
        assert exported.files == {"encoder.onnx": "encoder", "encoder_int8_report.json": "encoder_int8_report"}
        assert sum(integer_work((to / "encoder.onnx").read_bytes())["integer"].values()) == 15
        report = EncoderInt8Report.from_bytes((to / module.REPORT_FILE).read_bytes(), "it")
        assert report.speedup == pytest.approx(2)
        assert (report.calibrating, report.held, report.search.gave_way) == (3, 1, ())
        assert ROOMY.met(report.held_out)
        assert report.sentence in exported.notes[0]

    def test_what_is_no_faster_is_refused_with_figures_and_without_a_search(self, tmp_path: Path) -> None:
        judged: list[int] = []
        self.patch.setattr(module, "search_halving", lambda *_: judged.append(1))
        with pytest.raises(
            ParityError, match=r"does not pay.*found 1\.19 times.*mean mask IoU 0\.9.*percentile.*expected 1\.2 times"
        ) as caught:
            self.write(tmp_path, lambda plan: 1.19)
        assert caught.value.exit_code == 3
        assert "--encoder-precision fp32" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert judged == []
        assert list(tmp_path.iterdir()) == []

    def test_the_search_finds_the_group_that_is_quantised_wrongly(self, tmp_path: Path) -> None:
        to = tmp_path / "out"
        to.mkdir()
        good = self.trial.judge(Plan(tuple(group for group in GROUPS if group != RUINED)))
        least = Budget(good.mean_iou - 0.01, good.p05_iou - 0.02)
        limits = ruined(self.trial, RUINED)
        self.patch.setattr(EncoderInt8Report, "enforce", lambda *_: None)  # one held-out picture says too little
        self.write(to, lambda plan: 2, least, limits)
        report = json.loads((to / module.REPORT_FILE).read_bytes())
        assert report["search"]["gave_way"] == [RUINED]
        assert RUINED in report["sentence"]
        assert not (tmp_path / "cache.json").exists(), "what was searched is done"

    def test_what_is_left_too_slow_after_the_search_is_refused(self, tmp_path: Path) -> None:
        speeds = {len(GROUPS): 2.0, len(GROUPS) - 1: 1.1}
        limits = ruined(self.trial, RUINED)
        least = self.trial.judge(Plan(tuple(group for group in GROUPS if group != RUINED)))
        with pytest.raises(ParityError, match=rf"found 1\.10 times.*6 groups in integers, in float32 {RUINED}"):
            self.write(tmp_path, lambda plan: speeds[len(plan.integer)],
                       Budget(least.mean_iou - 0.01, least.p05_iou - 0.02), limits)  # fmt: skip

    def test_masks_that_miss_the_bound_are_refused_however_fast(self, tmp_path: Path) -> None:
        with pytest.raises(ParityError, match=r"found 3\.00 times.*1 groups in integers.*mean 0\.99999"):
            self.write(tmp_path, lambda plan: 3, Budget(0.99999, 0.99999), ruined(self.trial, *GROUPS))


def test_pictures_of_a_folder_are_made_no_larger_than_the_encoder_sees_them(tmp_path: Path) -> None:
    for i, size in enumerate([(900, 30), (30, 900), (64, 32), (128, 128)]):
        Image.new("RGB", size, (10 * i, 0, 0)).save(tmp_path / f"{i}.png")
    found, words = pictures(SIZE_PX, tmp_path)
    assert [photo.shape for _, photo in found] == [(4, 128, 3), (128, 4, 3), (32, 64, 3), (128, 128, 3)]
    assert [int(photo[0, 0, 0]) for _, photo in found] == [0, 10, 20, 30]
    assert words == f"4 of 4 pictures in '{tmp_path.name}'"
    (tmp_path / "3.png").unlink()
    with pytest.raises(ImageError, match="too few pictures: found 3, expected at least 4"):
        pictures(SIZE_PX, tmp_path)


def test_a_demo_model_is_calibrated_on_scenes_of_two_shapes() -> None:
    found, words = pictures(SIZE_PX, None)
    assert (len(found), words) == (16, "demo scenes")
    assert {photo.shape for _, photo in found} == {(128, 128, 3), (96, 128, 3)}


@pytest.mark.parametrize(
    ("precision", "folder", "least", "words"),
    [
        ("fp32", Path("photos"), None, "found --encoder-pictures with fp32, expected --encoder-precision int8"),
        ("int8", None, None, "--encoder-pictures DIR"),
        ("int8", Path("photos"), 0.9, "--min-iou 0.9"),
    ],
)
def test_what_an_encoder_in_int8_cannot_be_made_from_is_refused(
    precision: str, folder: Path | None, least: float | None, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        check_encoder(precision, Path("mine.pth"), folder, least)


def test_a_folder_without_pictures_is_told_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="has no pictures"):
        check_encoder("int8", Path("mine.pth"), tmp_path, None)


def test_int8_is_an_encoder_s_precision_only_where_it_is_asked_for() -> None:
    assert backend("onnx").encoder_precision(None, "int8") == "fp32"
    assert backend("onnx").encoder_precision("int8", "fp32") == "int8"
