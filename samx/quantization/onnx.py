"""Quantise the ONNX files that an exporter wrote, as far as the budget lets it."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from samx.exporters.tensorrt import write_plan
from samx.extras import require
from samx.models.session import Feed, Session
from samx.quantization.groups import INTEGER, QUANTISABLE, check_groups, multiply_adds, products
from samx.quantization.onnx_qdq import Ranges, collect_ranges, integer_work, quantise_with
from samx.quantization.search import Found, Judged, Plan, QuantisationJob, Quantised, Task, search
from samx.runtimes.onnxruntime import open_models
from samx.runtimes.torch import reference_session
from samx.validators.cases import Case
from samx.validators.metrics import BoolArray, mask_iou

GRAPH_ROLES = ("decoder", "image", "prompt")
# 64 channels to 64: in integers it takes longer on CPUs than in float (docs/int8.md), and it costs most in masks.
SLOW_ON_CPU = ("upscaling 2",)
JUDGED_EVERY = 2  # of the prompts that calibrate; others, held out, judge the result
Models = Mapping[str, bytes]


def quantise(job: QuantisationJob) -> Quantised:
    """Quantise for ONNX Runtime on a CPU: unsigned activations, float32 elsewhere.

    Raises: UsageError for groups to exclude that there are not; as search().
    """
    return _quantise(job, half=False, leave=SLOW_ON_CPU)


def quantise_for_tensorrt(job: QuantisationJob) -> Quantised:
    """Quantise for TensorRT: signed activations, float16 elsewhere; and write the build plan anew.

    Raises: as quantise().
    """
    quantised = _quantise(job, half=True, leave=())
    write_plan(job.export, job.directory)
    return quantised


def _quantise(job: QuantisationJob, half: bool, leave: tuple[str, ...]) -> Quantised:
    check_groups(job.excluded)
    float_models = _models(job)
    job.progress("Collecting the ranges of activations")
    desk = Desk.of(job, float_models, half)
    found = search(desk.task(), desk.plan(leave), job.budget, job.notebook, job.progress)
    models = desk.make(found.plan)
    for name, data in models.items():
        (job.directory / name).write_bytes(data)
    return Quantised(job.exported, found, _arithmetic(desk, found, models))


@dataclass(frozen=True, eq=False)
class Desk:
    """Hold what plans are made from and judged with."""

    job: QuantisationJob
    models: Models
    ranges: Ranges
    half: bool
    cases: tuple[Case, ...]
    expected: tuple[BoolArray, ...]  # of each case, what the reference masks

    @classmethod
    def of(cls, job: QuantisationJob, models: Models, half: bool) -> Desk:
        """Collect the ranges, and ask the reference."""
        every = job.calibration.cases(job.export.spec, job.exported.most_points)
        ranges: Ranges = {}
        for name, feeds in _feeds(job, models, every).items():
            ranges = {**ranges, **collect_ranges(models[name], feeds)}
        cases = tuple(every[::JUDGED_EVERY])
        job.progress("Asking the PyTorch reference about calibration prompts")
        reference = reference_session(job.export.loaded, job.export.spec)
        return cls(job, models, ranges, half, cases, tuple(_masks(reference, job, cases)))

    def plan(self, leave: tuple[str, ...]) -> Plan:
        """Name everything that may be quantised; what is left out of the integers keeps 8-bit weights."""
        known = [product for data in self.models.values() for product in products(onnx.load_from_string(data))]
        there = {product.group for product in known}.difference(self.job.excluded)
        # ONNX Runtime multiplies integers only where the weight, with its many scales, is the right factor.
        wrong_side = set() if self.half else {product.group for product in known if product.side == 0}
        groups = [group for group in QUANTISABLE if group in there]
        integer = tuple(group for group in groups if group in INTEGER and group not in {*leave, *wrong_side})
        return Plan(integer, tuple(group for group in groups if group not in integer))

    def make(self, plan: Plan) -> dict[str, bytes]:
        """Write a plan's files."""
        return {
            name: quantise_with(data, plan.integer, self.ranges, self.half, plan.stored)
            for name, data in self.models.items()
        }

    def judge(self, plan: Plan) -> Judged:
        """Compare a plan's masks with the reference's."""
        models = self.make(plan)
        session = open_models(models, self.job.export.spec, self.job.exported.options)
        found = _masks(session, self.job, self.cases)
        pairs = zip(found, self.expected, strict=True)
        iou = [float(value) for a, b in pairs for value in mask_iou(a, b).ravel()]
        return Judged.of(iou, sum(map(len, models.values())))

    def task(self) -> Task:
        """Describe the search."""
        runtime = require("onnxruntime", "onnxruntime", "INT8")
        identity = {
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(self.models.items())},
            "calibration": self.job.calibration.sha256, "prompts": f"every {JUDGED_EVERY}nd", "half": self.half,
            "onnxruntime": runtime.__version__,
        }  # fmt: skip
        return Task(self.judge, sum(map(float32_bytes, self.models.values())), self.integer_counts(), identity)

    def integer_counts(self) -> dict[str, int]:
        """Count the multiply-adds of each group, in a call of the calibration's usual size."""
        counts: Counter[str] = Counter()
        for data in self.models.values():
            for product in products(onnx.load_from_string(data)):
                if product.tensor in self.ranges:
                    counts[product.group] += multiply_adds(product, self.ranges[product.tensor].elements)
        return dict(counts)


def float32_bytes(model: bytes) -> int:
    """Give the size that a file would have with its float16 constants in float32."""
    constants = onnx.load_from_string(model).graph.initializer
    half = [found for found in constants if found.data_type == onnx.TensorProto.FLOAT16]
    return len(model) + sum(2 * math.prod(found.dims) for found in half)


def _models(job: QuantisationJob) -> dict[str, bytes]:
    names = [name for name, role in job.exported.files.items() if role in GRAPH_ROLES]
    return {name: (job.directory / name).read_bytes() for name in names}


def _feeds(job: QuantisationJob, models: Models, cases: list[Case]) -> dict[str, Iterator[Feed]]:
    """Give each file's calibration feeds, by file name."""
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
    """Give what an image graph keeps of each image."""
    runtime = require("onnxruntime", "onnxruntime", "INT8")
    session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return {i: dict(zip(names, session.run(names, dict(image)), strict=True)) for i, image in images.items()}


def _masks(session: Session, job: QuantisationJob, cases: tuple[Case, ...]) -> Iterator[BoolArray]:
    """Decode every case. Shapes: -> (N, M, H*W) each."""
    held: int | None = None
    for case in sorted(cases, key=lambda case: case.image):
        if case.image != held:
            session.set_image(job.calibration.images[case.image])
            held = case.image
        logits = session.decode(case.prompts)["low_res_masks"]
        yield (logits > job.export.spec.mask_threshold).reshape(*logits.shape[:2], -1)


def _arithmetic(desk: Desk, found: Found, models: Models) -> dict[str, Any]:
    """Say how much of the work is in integers; what ONNX Runtime makes of the files, where they are for it."""
    counts = desk.integer_counts()
    facts: dict[str, Any] = {
        "integer_multiply_adds": sum(counts.get(group, 0) for group in found.plan.integer),
        "constant_weight_multiply_adds": sum(counts.values()),
    }
    if desk.half:
        return facts
    return {**facts, "operators": {name: integer_work(data) for name, data in models.items()}}
