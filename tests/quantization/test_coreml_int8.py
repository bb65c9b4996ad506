"""Core ML packages in INT8: ranges over all samples, plans judged as they are written, one set of weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calibration_toys import SPEC, click, features, toy_set
from coreml_int8_toys import FEW, SPECS, excluding, float_job, leaving, opened, program

from samx.errors import InputError, ParityError, UsageError
from samx.exporters.coreml.convert import SMALLEST
from samx.exporters.coreml.export import LINT_FILE
from samx.formats.coreml.package import SINGLE_FUNCTION, package_from_directory
from samx.formats.coreml.program import open_coremltools
from samx.models.shape_range import ShapeRange
from samx.models.spec import PADDED_POINT
from samx.quantization.calibration import calibration_spec, fitted
from samx.quantization.coreml import FloatPackages, quantise, watched_ranges
from samx.quantization.coreml_rewrite import INTEGER, Convolution, group_of
from samx.quantization.search import JUDGED_EVERY, Budget, Judged, Plan, QuantisationJob, Quantised, Ranges, masks
from samx.runtimes.mil.evaluate import limited_threads
from samx.runtimes.torch import reference_session
from samx.validators.metrics import mask_iou


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Toys are too small for two."""
    with limited_threads(1):
        yield


@pytest.fixture(scope="module")
def float16(tmp_path_factory: pytest.TempPathFactory) -> QuantisationJob:
    """A float16 export, which no test changes."""
    return float_job(tmp_path_factory.mktemp("float16"))


def copied(job: QuantisationJob, directory: Path, **changes: Any) -> QuantisationJob:
    for name in job.exported.files:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes((job.directory / name).read_bytes())
    return replace(job, directory=directory, **changes)


@pytest.fixture(scope="module")
def done(float16: QuantisationJob, tmp_path_factory: pytest.TempPathFactory) -> tuple[QuantisationJob, Quantised]:
    """A few groups in INT8."""
    job = excluding(copied(float16, tmp_path_factory.mktemp("int8")), leaving(*FEW))
    return job, quantise(job)


Done = tuple[QuantisationJob, Quantised]


def ranges(job: QuantisationJob, samples: Sequence[int], loud: float = 1, louder: int = 0) -> Ranges:
    """Watch these samples of a toy set, of whose images one is louder than drawn."""
    scales = [loud if i == louder else 1 for i in range(4)]
    images = tuple({name: value * scales[i] for name, value in features(SPEC, i).items()} for i in range(4))
    packages = FloatPackages(replace(job, calibration=replace(job.calibration, images=images)))
    cases = toy_set().cases(job.export.spec)
    there = [conv for conv in packages.there if conv.group in INTEGER]
    return watched_ranges(packages, there, [cases[i] for i in samples])


def test_a_range_is_the_largest_of_all_samples(float16: QuantisationJob) -> None:
    alone = [ranges(float16, [sample], loud=3) for sample in (0, 1, 2)]
    together = ranges(float16, [0, 1, 2], loud=3)
    assert len(together) == 12
    for weight, largest in together.items():
        assert largest == max(one[weight] for one in alone) > 0
    louder = [weight for weight in together if together[weight] > alone[-1][weight]]
    assert "p_decoder_transformer_layers_0_token_to_image_key_weight" in louder  # the last sample's is not it


@pytest.mark.filterwarnings("ignore:overflow")
def test_ranges_of_no_numbers_are_refused(float16: QuantisationJob) -> None:
    with pytest.raises(InputError, match="not finite"):
        ranges(float16, [1], loud=1e6, louder=1)


def test_what_is_written_is_what_was_judged(done: Done) -> None:
    job, quantised = done
    cases = job.calibration.cases(job.export.spec, job.exported.most_points)[::JUDGED_EVERY]
    sessions = reference_session(job.export.loaded, job.export.spec), opened(job, quantised)
    expected, found = (list(masks(session, job.calibration.images, cases)) for session in sessions)
    written = sum(
        (job.directory / name).stat().st_size for name, role in job.exported.files.items() if role == "package"
    )
    iou = [float(one) for ours, theirs in zip(found, expected, strict=True) for one in mask_iou(ours, theirs).ravel()]
    assert Judged.of(iou, written) == quantised.found.judged


def test_the_search_reckons_sizes_nearly_as_they_come_out(float16: QuantisationJob, done: Done) -> None:
    packages = FloatPackages(float16)
    plan, written = done[1].found.plan, done[1].found.judged.bytes
    reckoned = packages.size - sum(
        conv.bytes_saved for conv in packages.there if conv.group in {*plan.integer, *plan.stored}
    )
    assert written < packages.size
    assert reckoned == pytest.approx(written, rel=0.05)
    assert packages.size < done[1].found.float_bytes < 2 * packages.size


def test_the_chosen_groups_are_quantised_and_no_others(done: Done) -> None:
    job, quantised = done
    assert quantised.found.plan == Plan(FEW[:1], FEW[1:])
    for name in ("points_2", "points_4"):
        function = program(job.directory).function(name)
        weights = {op.weight.name.removesuffix("_quantized") for op in smaller(function)}
        assert weights == {conv.weight for conv in chosen(job) if conv.group in FEW}
        integer = {op.name for op in smaller(function) if op.x.op.op_type == "dequantize"}
        assert integer == {conv.name for conv in chosen(job) if conv.group in FEW[:1]}


def chosen(job: QuantisationJob) -> list[Convolution]:
    """Give the convolutions of the groups that a job leaves in."""
    function = program(job.directory).function("points_2")
    there = [op for op in function.operations if op.op_type == "conv" and "decoder" in op.weight.name]
    found = [(op.name, op.weight.name.removesuffix("_quantized"), tuple(op.weight.shape)) for op in there]
    named = [Convolution(name, group_of(weight), weight, shape, 0) for name, weight, shape in found]
    return [conv for conv in named if np.prod(conv.shape) > SMALLEST]


def smaller(function: Any) -> list[Any]:
    return [op for op in function.operations if op.op_type == "conv" and op.weight.op.op_type.startswith("constexpr_")]


def test_all_functions_share_scales_and_weights(done: Done) -> None:
    job, _ = done
    found = program(job.directory)
    scales = [
        {op.name: float(op.scale.val) for op in found.function(name).operations if op.op_type == "quantize"}
        for name in ("points_2", "points_4")
    ]
    assert len(scales[0]) == 3  # image tokens with and without positions, what attention gives
    assert sorted(scales[0].values()) == sorted(scales[1].values())
    spec = open_coremltools("a test").proto.Model_pb2.Model.FromString(
        package_from_directory(job.directory / "decoder.mlpackage").model
    )
    places = [places_of(spec, name) for name in ("points_2", "points_4")]
    assert len(places[0]) > 40
    assert places[0] == places[1]


def places_of(spec: Any, function: str) -> set[tuple[str, int]]:
    """Give where in the weight file a function's constants lie."""
    block = spec.mlProgram.functions[function]
    operations = block.block_specializations[block.opset].operations
    values = [value.blobFileValue for op in operations for value in op.attributes.values()]
    values += [
        bound.value.blobFileValue for op in operations for held in op.inputs.values() for bound in held.arguments
    ]
    return {(found.fileName, found.offset) for found in values if found.fileName}


def test_a_padded_point_still_changes_no_bit(done: Done) -> None:
    job, quantised = done
    session, feed = opened(job, quantised), fitted(click(1, 4).prompts, job.export.spec)
    session.set_image(job.calibration.images[1])
    more = {
        **feed,
        "point_coords": np.pad(feed["point_coords"], ((0, 0), (0, 1), (0, 0))),
        "point_labels": np.pad(feed["point_labels"], ((0, 0), (0, 1)), constant_values=PADDED_POINT),
    }
    few, many = session.decode(feed), session.decode(more)
    assert len(session.placement().details["functions"]) == 2
    assert all(np.array_equal(few[name], many[name]) for name in few)


def test_lint_and_counts_are_those_of_what_was_written(done: Done) -> None:
    job, quantised = done
    report = json.loads((job.directory / LINT_FILE).read_text())["decoder.mlpackage"]
    rules = [finding["rule"] for finding in report["functions"]["points_2"]["findings"]]
    assert "8-bit activations" in rules
    assert quantised.exported.notes
    assert quantised.exported.files == job.exported.files
    counted = quantised.arithmetic
    assert (counted["function"], counted["integer_convolutions"]) == ("points_2", 4)
    integer = 64 * 4 * 128 * 256  # 8 x 8 cells, four projections
    assert counted["integer_multiply_adds"] == integer
    rows = {row.group: row.multiply_adds for row in quantised.found.rows if row.how == "integer"}
    assert sum(rows.values()) == integer


def test_the_package_keeps_what_it_says_about_itself(float16: QuantisationJob, done: Done) -> None:
    said = [FloatPackages(job).metadata for job in (float16, done[0])]
    assert "samx.spec" in said[0]
    assert {name: said[1].get(name) for name in said[0]} == said[0]


@pytest.mark.slow
def test_the_same_plan_gives_the_same_bytes(float16: QuantisationJob, tmp_path: Path) -> None:
    def written(folder: Path) -> Any:
        job = copied(float16, folder)
        packages = FloatPackages(job)
        packages.write(Plan(FEW[:1], FEW[1:]), {conv.weight: 3.0 for conv in packages.there})
        return package_from_directory(folder / "decoder.mlpackage").files

    assert written(tmp_path / "a") == written(tmp_path / "b")


def test_a_budget_that_cannot_be_met_is_refused(float16: QuantisationJob, tmp_path: Path) -> None:
    job = excluding(copied(float16, tmp_path, budget=Budget(1.0, 1.0, 1.0)), leaving("token MLP"))
    with pytest.raises(ParityError, match=r"cannot meet the budget: found .*'token MLP' costs most"):
        quantise(job)


def test_an_unknown_group_is_refused_before_anything_is_asked(float16: QuantisationJob, tmp_path: Path) -> None:
    said: list[str] = []
    job = copied(float16, tmp_path, progress=lambda text, *_: said.append(text))
    with pytest.raises(UsageError, match=r"found position scores, expected image projections, layer 0 or .*IoU head"):
        quantise(excluding(job, ["position scores"]))
    assert said == []


def test_prompts_that_do_not_fit_cannot_calibrate(float16: QuantisationJob, tmp_path: Path) -> None:
    narrow = replace(float16.exported, most_points=1)  # a click is two, with its padding
    with pytest.raises(InputError, match="expected prompts of 1 points or fewer"):
        quantise(copied(float16, tmp_path, exported=narrow))


@pytest.mark.slow
def test_judgements_are_taken_over_from_the_search_cache(float16: QuantisationJob, tmp_path: Path) -> None:
    job = excluding(copied(float16, tmp_path / "a", cache_file=tmp_path / "notes.json"), leaving("IoU head"))
    first = quantise(job).found
    known = json.loads((tmp_path / "notes.json").read_text())
    spoilt = {name: {**one, "mean_iou": 0.5} for name, one in known["judged"].items()}
    (tmp_path / "notes.json").write_text(json.dumps({**known, "judged": spoilt}))
    again = quantise(excluding(copied(float16, tmp_path / "b", cache_file=tmp_path / "notes.json"), job.excluded)).found
    assert first.judged.mean_iou != again.judged.mean_iou == 0.5


@pytest.mark.slow
def test_ios_17_has_one_function_in_8_bits(tmp_path: Path) -> None:
    job = excluding(float_job(tmp_path, points=ShapeRange(2, 2, 2), ios=17), leaving("upscaling 1", "token MLP"))
    quantised = quantise(job)
    function = program(tmp_path).function(SINGLE_FUNCTION)
    kinds = [op.op_type for op in function.operations]
    assert kinds.count("constexpr_affine_dequantize") == 5
    assert (kinds.count("quantize"), quantised.arithmetic["integer_convolutions"]) == (1, 1)
    assert opened(job, quantised).spec == job.export.spec


@pytest.mark.slow
def test_apple_s_mask_decoder_is_quantised_and_its_prompt_encoder_left(tmp_path: Path) -> None:
    calibration = toy_set(**sam2_fields())
    job = float_job(tmp_path, "sam2", ShapeRange(2, 2, 2), contract="apple", calibration=calibration)
    before = package_from_directory(tmp_path / "prompt_encoder.mlpackage").files
    quantised = quantise(excluding(job, leaving(*FEW, family="sam2")))
    assert package_from_directory(tmp_path / "prompt_encoder.mlpackage").files == before
    assert quantised.arithmetic["integer_convolutions"] == 4
    session = opened(job, quantised)
    session.set_image(calibration.images[0])
    assert np.isfinite(session.decode(fitted(calibration.samples[0].prompts, job.export.spec))["low_res_masks"]).all()
    assert set(json.loads((tmp_path / LINT_FILE).read_text())) == {"prompt_encoder.mlpackage", "mask_decoder.mlpackage"}


def sam2_fields() -> dict[str, Any]:
    spec = calibration_spec(SPECS["sam2"])
    images = tuple(features(spec, i) for i in range(4))
    return {"spec": spec, "images": images, "samples": tuple(click(i, 4, spec) for i in range(28)), "held_out": ()}
