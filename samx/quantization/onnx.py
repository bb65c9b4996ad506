"""Quantise the ONNX files that an exporter wrote, as far as the budget lets it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import onnx

from samx.exporters.tensorrt import write_plan
from samx.extras import require
from samx.models.session import Feed, Session
from samx.quantization.groups import INTEGER, QUANTISABLE, Product, products
from samx.quantization.onnx_qdq import collect_ranges, integer_work, quantise_with
from samx.quantization.search import DecoderTrial, Plan, QuantisationJob, Quantised, check_groups, search
from samx.runtimes.onnxruntime import open_models
from samx.validators.cases import Case

GRAPH_ROLES = ("decoder", "image", "prompt")
# 64 channels to 64: in integers it takes longer on CPUs than in float (docs/int8.md), and it costs most in masks.
SLOW_ON_CPU = ("upscaling 2",)
Models = Mapping[str, bytes]


def quantise(job: QuantisationJob) -> Quantised:
    """Quantise for ONNX Runtime on a CPU: unsigned activations, float32 elsewhere.

    Raises: UsageError for groups to exclude that there are not; as search().
    """
    return _quantise(job, half=False)


def quantise_for_tensorrt(job: QuantisationJob) -> Quantised:
    """Quantise for TensorRT: signed activations, float16 elsewhere; and write the build plan anew.

    Raises: as quantise().
    """
    quantised = _quantise(job, half=True)
    write_plan(job.export, job.directory)
    return quantised


def _quantise(job: QuantisationJob, half: bool) -> Quantised:
    check_groups(job.excluded, QUANTISABLE)
    trial = OnnxTrial(job, half)
    found = search(trial, whole_plan(job, trial.products, half), job.budget, job.cache_file, job.progress)
    models = trial.make(found.plan)
    for name, data in models.items():
        (job.directory / name).write_bytes(data)
    counts = trial.multiply_adds
    arithmetic: dict[str, Any] = {
        "integer_multiply_adds": sum(counts[group] for group in found.plan.integer),
        "constant_weight_multiply_adds": sum(counts.values()),
    }
    if not half:  # what ONNX Runtime makes of the files that are for it
        arithmetic["operators"] = {name: integer_work(data) for name, data in models.items()}
    return Quantised(job.exported, found, arithmetic)


def whole_plan(job: QuantisationJob, known: list[Product], half: bool) -> Plan:
    """Name everything that may be quantised; what is left out of the integers keeps 8-bit weights."""
    there = {product.group for product in known}.difference(job.excluded)
    # ONNX Runtime multiplies integers only where the weight, with its many scales, is the right factor.
    left_out = set() if half else {*SLOW_ON_CPU, *(product.group for product in known if product.side == 0)}
    return Plan.of((group for group in QUANTISABLE if group in there), set(INTEGER) - left_out)


class OnnxTrial(DecoderTrial):
    """Make a plan's ONNX files, and judge them in ONNX Runtime."""

    def __init__(self, job: QuantisationJob, half: bool) -> None:
        """Collect the ranges, and ask the reference."""
        names = [name for name, role in job.exported.files.items() if role in GRAPH_ROLES]
        self.models = {name: (job.directory / name).read_bytes() for name in names}
        self.half, self.ranges, elements = half, dict[str, float](), dict[str, float]()
        job.progress("Collecting the ranges of activations")
        every = job.calibration.cases(job.export.spec, job.exported.most_points)
        for name, feeds in _feeds(job, self.models, every).items():
            ranges, counts = collect_ranges(self.models[name], feeds)
            self.ranges.update(ranges)
            elements.update(counts)
        super().__init__(job, every, onnxruntime=_runtime().__version__)
        self.float_bytes = sum(map(float32_bytes, self.models.values()))
        self.products = [one for data in self.models.values() for one in products(onnx.load_from_string(data))]
        for product in self.products:  # in a call of the calibration's usual size
            self.multiply_adds[product.group] += math.ceil(elements.get(product.tensor, 0) * product.outputs)

    def make(self, plan: Plan) -> dict[str, bytes]:
        """Write a plan's files."""
        return {
            name: quantise_with(data, plan.integer, self.ranges, self.half, plan.stored)
            for name, data in self.models.items()
        }

    def open(self, plan: Plan) -> tuple[Session, int]:
        """Return a session of a plan's files, and their bytes."""
        models = self.make(plan)
        return open_models(models, self.job.export.spec, self.job.exported.options), sum(map(len, models.values()))


def float32_bytes(model: bytes) -> int:
    """Count the bytes that a file would have with its float16 constants in float32."""
    constants = onnx.load_from_string(model).graph.initializer
    half = [found for found in constants if found.data_type == onnx.TensorProto.FLOAT16]
    return len(model) + sum(2 * math.prod(found.dims) for found in half)


def _feeds(job: QuantisationJob, models: Models, cases: list[Case]) -> dict[str, Iterator[Feed]]:
    """Return each file's calibration feeds, by file name."""
    images = job.calibration.images
    roles = {job.exported.files[name]: name for name in models}
    if "image" not in roles:
        return {roles["decoder"]: ({**images[case.image], **case.prompts} for case in cases)}
    used = sorted({case.image for case in cases})
    kept = _kept(models[roles["image"]], {i: images[i] for i in used})
    return {
        roles["image"]: (images[i] for i in used),
        roles["prompt"]: ({**kept[case.image], **case.prompts} for case in cases),
    }


def _kept(model: bytes, images: Mapping[int, Feed]) -> dict[int, Feed]:
    """Return what an image graph keeps of each image."""
    session = _runtime().InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return {i: dict(zip(names, session.run(names, dict(image)), strict=True)) for i, image in images.items()}


def _runtime() -> Any:
    return require("onnxruntime", "onnxruntime", "INT8")
