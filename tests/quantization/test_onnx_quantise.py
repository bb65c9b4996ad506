"""Quantising what an exporter wrote: which files, which groups, which products are really integer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from int8_jobs import (
    ALL_BUT_BIG,
    EXPORTED,
    LOOSE,
    NOT_THERE,
    Files,
    calibration,
    counted,
    factors,
    prompts,
    quantisation_job,
)
from int8_toys import constants, groups_of

from samx.errors import InputError, ParityError, UsageError
from samx.formats.tensorrt.plan import DECODER, BuildPlan
from samx.quantization.groups import INTEGER, QUANTISABLE, products
from samx.quantization.onnx import SLOW_ON_CPU, OnnxTrial, float32_bytes, quantise, quantise_for_tensorrt, whole_plan
from samx.quantization.search import Budget, QuantisationJob, Quantised
from samx.runtimes.onnxruntime import open_models
from samx.runtimes.torch import reference_session

pytestmark = pytest.mark.long

FILE = "decoder.onnx"
KEPT = ("mask weights", "self-attention")
ALL_BUT_TWO = tuple(group for group in QUANTISABLE if group not in KEPT)
SMALL = tuple(group for group in ALL_BUT_BIG if group not in INTEGER)
EXCLUDED = {"whole": (), "split": SMALL, "trt": SMALL}


@dataclass(frozen=True)
class Done:
    """Hold a job, what it found, and the files before and after."""

    job: QuantisationJob
    found: Quantised
    before: Files
    after: Files

    @property
    def plan_groups(self) -> set[str]:
        return {*self.found.found.plan.integer, *self.found.found.plan.stored}


def graphs(directory: Path) -> Files:
    return {path.name: path.read_bytes() for path in sorted(directory.glob("*.onnx"))}


def done(kind: str, directory: Path, **changes: Any) -> Done:
    job = quantisation_job(kind, directory, **changes)
    before = graphs(directory)
    found = (quantise_for_tensorrt if kind == "trt" else quantise)(job)
    return Done(job, found, before, graphs(directory))


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Judge by fewer prompts."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("samx.quantization.search.JUDGED_EVERY", 4)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Done]:
    """Quantise a decoder of a kind, once."""
    return cache(lambda kind: done(kind, tmp_path_factory.mktemp(kind), exclude=EXCLUDED[kind]))


@pytest.fixture(params=["whole", "split", "trt"])
def each(request: pytest.FixtureRequest, made: Callable[[str], Done]) -> Done:
    return made(request.param)


@pytest.fixture
def whole(made: Callable[[str], Done]) -> Done:
    return made("whole")


def masks(session: Any, done_: Done, seed: int) -> Any:
    image, asked = prompts(done_.job.export.spec, seed)
    session.set_image(image)
    return session.decode(asked)["low_res_masks"] > 0


def agreement(files: Files, made: Done, seed: int = 1) -> float:
    """Give the mean IoU of files' masks with PyTorch's, on an image and a prompt that did not calibrate."""
    export = made.job.export
    ours = masks(open_models(files, export.spec, made.job.exported.options), made, seed)
    theirs = masks(reference_session(export.loaded, export.spec), made, seed)
    return float(np.mean((ours & theirs).sum((-1, -2)) / np.maximum((ours | theirs).sum((-1, -2)), 1)))


class TestEveryTarget:
    """One file for ONNX Runtime, two files for it, and a file for TensorRT that takes masks."""

    def test_sizes_are_those_of_the_files(self, each: Done) -> None:
        found = each.found.found
        assert found.judged.bytes == sum(map(len, each.after.values()))
        assert found.float_bytes == sum(map(float32_bytes, each.before.values()))
        assert found.judged.bytes <= 0.45 * found.float_bytes

    def test_every_group_was_chosen_and_stands_in_the_table(self, each: Done) -> None:
        there = {group for data in each.before.values() for group in groups_of(onnx.load_from_string(data))}
        there -= set(each.job.excluded)
        assert there == each.plan_groups
        assert {(row.group, row.how) for row in each.found.found.rows} == {
            *((group, "integer") for group in each.found.found.plan.integer), *((group, "stored") for group in there),
        }  # fmt: skip
        assert all(row.bytes_saved > 0 for row in each.found.found.rows)

    def test_the_products_of_integer_groups_are_integer_and_no_others(self, each: Done) -> None:
        found = [one for name in each.before for one in factors(each.after[name], each.before[name])]
        integer = set(each.found.found.plan.integer)
        assert integer
        assert {one.node for one in found if one.is_integer} == {one.node for one in found if one.group in integer}
        assert not any(one.is_integer for name in each.before for one in factors(each.before[name], each.before[name]))

    def test_the_files_load_and_compute_the_masks(self, each: Done) -> None:
        assert agreement(each.after, each) > 0.93
        assert agreement(each.before, each) > agreement(each.after, each)

    def test_the_work_in_integers_is_counted(self, each: Done) -> None:
        facts = json.loads(json.dumps(each.found.arithmetic))
        assert 0 < facts["integer_multiply_adds"] < facts["constant_weight_multiply_adds"]
        by_row = sum(row.multiply_adds for row in each.found.found.rows if row.how == "integer")
        assert facts["integer_multiply_adds"] == by_row

    def test_what_the_exporter_said_is_kept(self, each: Done) -> None:
        assert each.found.exported == each.job.exported
        assert set(each.after) == set(each.before)
        for name, data in each.after.items():
            ours, theirs = onnx.load_from_string(data), onnx.load_from_string(each.before[name])
            assert (ours.graph.input, ours.graph.output) == (theirs.graph.input, theirs.graph.output)
            assert ours.metadata_props == theirs.metadata_props


@pytest.mark.parametrize("kind", ["whole", "split"])
def test_what_is_called_integer_is_what_onnx_runtime_multiplies_in_integers(
    kind: str, made: Callable[[str], Done]
) -> None:
    """Between Q and DQ a product may still be one of floats: where its weight, with many scales, is the left factor."""
    found = made(kind)
    for name, before in found.before.items():
        called = [p for p in products(onnx.load_from_string(before)) if p.group in found.found.found.plan.integer]
        work = found.found.arithmetic["operators"][name]
        assert sum(work["integer"].values()) == len(called)
        assert "DequantizeLinear" not in work["conversions"]  # stored weights are multiplied out on loading


def test_products_that_are_slower_in_integers_keep_their_weights_in_8_bits(whole: Done) -> None:
    plan = whole.found.found.plan
    assert set(SLOW_ON_CPU) <= set(plan.stored)
    assert not set(SLOW_ON_CPU) & set(plan.integer)


def test_two_files_are_quantised_each_as_its_runtime_can(made: Callable[[str], Done]) -> None:
    """The image's projections have their weights on the left: they are kept in 8 bits, and multiplied in floats."""
    split = made("split")
    kept = {
        name: {tensor for tensor in constants(data) if tensor.endswith(".int8")} for name, data in split.after.items()
    }
    assert set(kept) == {"image.onnx", "prompt.onnx"}
    assert all(kept.values())
    integer = {name: {one.group for one in factors(split.after[name], before) if one.is_integer}
               for name, before in split.before.items()}  # fmt: skip
    assert integer == {"image.onnx": set(), "prompt.onnx": {"upscaling 1"}}
    assert "image projections, layer 0" in split.found.found.plan.stored


def test_tensorrt_takes_weights_on_either_side(made: Callable[[str], Done], tmp_path: Path) -> None:
    split = made("split")
    known = [one for data in split.before.values() for one in products(onnx.load_from_string(data))]
    integer = [whole_plan(split.job, known, half).integer for half in (True, False)]
    assert ["image projections, layer 0" in groups for groups in integer] == [True, False]


class TestTensorrt:
    """The file that a compiler receives, in the form for many points, with mask prompts."""

    @pytest.fixture
    def trt(self, made: Callable[[str], Done]) -> Done:
        return made("trt")

    def test_every_integer_group_is_between_q_and_dq(self, trt: Done) -> None:
        """Its compiler multiplies in floating point where one of a product's two factors is not dequantised."""
        found = factors(trt.after[FILE], trt.before[FILE])
        assert set(trt.found.found.plan.integer) == set(INTEGER) - {NOT_THERE}
        assert {one.group for one in found if one.is_integer} == set(INTEGER) - {NOT_THERE}
        assert all(one.is_integer for one in found if one.group in INTEGER)

    def test_the_plan_builds_the_file_that_is_there(self, trt: Done) -> None:
        plan = BuildPlan.from_bytes((trt.job.directory / DECODER.plan_file).read_bytes(), DECODER.plan_file)
        assert plan.onnx_sha256 == hashlib.sha256(trt.after[FILE]).hexdigest()
        assert plan.onnx_sha256 != hashlib.sha256(trt.before[FILE]).hexdigest()

    def test_masks_of_prompts_count(self, trt: Done) -> None:
        session = open_models(trt.after, trt.job.export.spec, trt.job.exported.options)
        image, asked = prompts(trt.job.export.spec, 1)
        session.set_image(image)
        assert asked["has_mask_input"].all()
        with_mask = session.decode(asked)["low_res_masks"]
        without = session.decode({**asked, "has_mask_input": np.zeros_like(asked["has_mask_input"])})["low_res_masks"]
        assert np.abs(with_mask - without).max() > 0.1
        assert agreement(trt.after, trt) > 0.9

    def test_the_rest_is_half(self, trt: Done) -> None:
        types = {tensor.data_type for tensor in constants(trt.after[FILE]).values() if np.prod(tensor.dims) > 1000}
        assert types <= {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT16}


LARGE = replace(LOOSE, size_share=1.0)
LEFT_OUT = ("upscaling 1", "token MLP")


@pytest.fixture(scope="module")
def spared(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Leave two groups in floating point, and most others, to be quick."""
    return done("whole", tmp_path_factory.mktemp("spared"), budget=LARGE, exclude=ALL_BUT_TWO)


class TestExcluded:
    """Groups that the user leaves in floating point."""

    @staticmethod
    def weights(made: Done, groups: tuple[str, ...]) -> Iterator[str]:
        before = onnx.load_from_string(made.before[FILE])
        return (product.weight for product in products(before) if product.group in groups)

    def untouched(self, made: Done, groups: tuple[str, ...]) -> bool:
        before, after = constants(made.before[FILE]), constants(made.after[FILE])
        names = list(self.weights(made, groups))
        assert names
        return all(name in after and after[name].raw_data == before[name].raw_data for name in names)

    def test_their_weights_are_the_same_bytes(self, spared: Done) -> None:
        assert self.untouched(spared, LEFT_OUT)

    def test_others_are_not(self, spared: Done, whole: Done) -> None:
        assert not self.untouched(whole, LEFT_OUT)
        assert not self.untouched(spared, ("mask weights",))

    def test_they_are_in_no_plan_and_no_row(self, spared: Done) -> None:
        assert not spared.plan_groups & set(LEFT_OUT)
        assert not {row.group for row in spared.found.found.rows} & set(LEFT_OUT)
        assert spared.plan_groups == set(KEPT)

    def test_everything_may_not_be_excluded(self, tmp_path: Path) -> None:
        with pytest.raises(ParityError, match="no file small enough"):
            done("whole", tmp_path, exclude=QUANTISABLE)


@pytest.mark.parametrize("group", ["upscaling 3", "point encoding", ""])
def test_an_unknown_group_is_refused_before_any_work(group: str, tmp_path: Path) -> None:
    said: list[str] = []
    job = quantisation_job("whole", tmp_path, exclude=(group,), progress=told(said))
    before = graphs(tmp_path)
    with pytest.raises(UsageError, match="unknown group of products") as caught:
        quantise(job)
    assert caught.value.exit_code == 2
    assert "upscaling 2" in str(caught.value)
    assert said == []
    assert graphs(tmp_path) == before


def told(said: list[str]) -> Any:
    return lambda text, done_=0, total=0, /: said.append(text)


def test_a_budget_that_cannot_be_met_leaves_the_files_alone(tmp_path: Path) -> None:
    job = quantisation_job("whole", tmp_path, Budget(0.99999, 0.99999), exclude=ALL_BUT_BIG)
    before = graphs(tmp_path)
    with pytest.raises(ParityError, match=r"at best mean IoU 0\.9.*costs most.*--exclude"):
        quantise(job)
    assert graphs(tmp_path) == before


class TestSearchCache:
    """A search that was interrupted."""

    def search(self, directory: Path, cache_file: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int | None) -> Any:
        directory.mkdir(exist_ok=True)
        asked: list[Any] = []
        with monkeypatch.context() as patched:
            patched.setattr(OnnxTrial, "judge", counted(OnnxTrial.judge, asked, stop_at))
            try:
                job = quantisation_job("whole", directory, LARGE, exclude=ALL_BUT_TWO, cache_file=cache_file)
                return asked, quantise(job).found
            except KeyboardInterrupt:
                return asked, None

    def test_it_goes_on_where_it_was(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cache_file = tmp_path / "notes.json"
        first, nothing = self.search(tmp_path / "a", cache_file, monkeypatch, stop_at=2)
        assert nothing is None
        assert len(json.loads(cache_file.read_text())["judged"]) == len(first) == 2
        second, found = self.search(tmp_path / "b", cache_file, monkeypatch, stop_at=None)
        assert not set(first) & set(second)
        again, straight = self.search(tmp_path / "c", tmp_path / "other.json", monkeypatch, stop_at=None)
        assert found == straight
        assert {*first, *second} == set(again)
        assert graphs(tmp_path / "b") == graphs(tmp_path / "c")

    def test_notes_on_another_calibration_are_not_used(self, tmp_path: Path) -> None:
        job = quantisation_job("whole", tmp_path)
        other = replace(job, calibration=replace(job.calibration, seed=4, sha256=""))
        assert job.calibration.sha256 != other.calibration.sha256
        keys = {OnnxTrial(one, half=False).key() for one in (job, other, job)}
        assert len(keys) == 2


def test_the_steps_are_told(tmp_path: Path) -> None:
    said: list[str] = []
    job = quantisation_job("whole", tmp_path, LARGE, exclude=ALL_BUT_TWO, progress=told(said))
    quantise(job)
    assert said[:2] == [
        "Collecting the ranges of activations",
        "Asking the PyTorch reference about calibration prompts",
    ]
    assert said[2] == "Judging self-attention, stored"
    assert said[-1] == "Judging 2 groups together"


def test_prompts_that_the_export_cannot_take_calibrate_nothing(tmp_path: Path) -> None:
    """An export of one point a prompt, padding counted, takes none of the clicks."""
    job = quantisation_job("whole", tmp_path)
    with pytest.raises(InputError, match="nothing to calibrate INT8 with"):
        quantise(replace(job, exported=replace(job.exported, most_points=1)))


def test_a_decoder_is_exported_once_for_all_of_this(whole: Done) -> None:
    """The bytes that these tests begin with are an exporter's, each time the same."""
    assert whole.before in [files for _, files in EXPORTED.values()]
    assert LOOSE.size_share == Budget().size_share
    assert calibration(whole.job.export.spec).sha256 == whole.job.calibration.sha256
