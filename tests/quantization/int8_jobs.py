"""Toy decoders as exporters write them, each exported once for all tests, and jobs to quantise them."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
from calibration_toys import click, features, toy_set
from exports import job_for
from toys import toy_checkpoint

from samx.exporters import base
from samx.exporters.base import Exported, ExportJob
from samx.models.session import Feed
from samx.models.shape_range import ShapeRange
from samx.models.spec import DecoderSpec, sam1_spec, sam2_spec
from samx.quantization.calibration import CalibrationSet, calibration_spec, fitted
from samx.quantization.groups import QUANTISABLE, products
from samx.quantization.search import Budget, QuantisationJob
from samx.registry import backend

IMAGES, SAMPLES = 4, 24
export_decoder = base.export_decoder  # as it is, wherever a test has put exported_once() in its place
# The three ways in which a decoder becomes files; of one layer, because tracing takes most of the time.
SPECS: Mapping[str, DecoderSpec] = {
    "whole": sam1_spec(image_size=128, depth=1),
    "split": sam2_spec(image_size=128, depth=1),
    "trt": sam1_spec(image_size=128, depth=1, mask_input=True),
}
NOT_THERE = "image projections, layer 1"
# Many points make the exporter choose the form in which every group has products.
OPTIONS: Mapping[str, dict[str, Any]] = {
    "whole": {},
    "split": {"split": True},
    "trt": {"points": ShapeRange(1, 16, 16)},
}
# Fewer plans to judge: the groups that hold most of the weights, without and with what is integer on CPUs.
STORED_MOST = ("token MLP", "self-attention", "mask weights", "token projections")
ALL_BUT_BIG = tuple(group for group in QUANTISABLE if group not in STORED_MOST)
SPARED = tuple(group for group in ALL_BUT_BIG if group != "upscaling 1")
LOOSE = Budget(mean_iou=0.5, p05_iou=0.1)  # nothing gives way

Files = dict[str, bytes]
EXPORTED: dict[str, tuple[Exported, Files]] = {}


def exported_once(exporter: ModuleType, job: ExportJob, directory: Path) -> Exported:
    """Export as samx does, but tracing the same decoder only once: what INT8 is asked for does not change the graph.

    Neither does it matter to the graph for ONNX Runtime whether INT8 comes after it, at the usual number of prompts.
    """
    key = _key(job)
    if key not in EXPORTED:
        found = export_decoder(exporter, job, directory)
        EXPORTED[key] = found, {name: (directory / name).read_bytes() for name in found.files}
    found, files = EXPORTED[key]
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return replace(found, options={**found.options, "precision": job.precision})


def _key(job: ExportJob) -> str:
    precision = "int8" if job.target == "onnx" else job.precision
    weights = hashlib.sha256(b"".join(value.numpy().tobytes() for value in job.loaded.weights.values())).hexdigest()
    return json.dumps([job.target, precision, job.spec.to_json(), job.options.to_json(), weights])


def calibration(spec: DecoderSpec) -> CalibrationSet:
    """Make a set for a toy decoder; every fifth prompt brings a mask."""
    answering = calibration_spec(spec)
    return toy_set(
        spec=answering,
        images=tuple(features(answering, i) for i in range(IMAGES)),
        samples=tuple(click(i, IMAGES, answering) for i in range(SAMPLES)),
        held_out=tuple(click(i, IMAGES, answering) for i in range(30, 34)),
    )


def quantisation_job(kind: str, directory: Path, budget: Budget = LOOSE, **changes: Any) -> QuantisationJob:
    """Export a toy decoder into a directory, ready to be quantised; `exclude` names groups that stay float."""
    spec = SPECS[kind]
    loaded = toy_checkpoint(replace(spec, masks="multimask", mask_input=False))
    export = job_for("trt" if kind == "trt" else "onnx", loaded, spec, "int8", **OPTIONS[kind])
    exported = exported_once(importlib.import_module(backend(export.target).exporter), export, directory)
    excluded = tuple(changes.pop("exclude", ()))
    return QuantisationJob(export, exported, directory, calibration(spec), budget, excluded, **changes)


@dataclass(frozen=True)
class Factors:
    """Say how a graph gets the two factors of a product with a constant weight."""

    node: str
    group: str
    ways: tuple[str, str]  # the operators that the tensor and the weight come from; "" for an input or a constant

    @property
    def is_integer(self) -> bool:
        """Tell whether both factors are 8-bit integers, which compilers multiply as such."""
        return self.ways == ("DequantizeLinear", "DequantizeLinear")


def factors(model: bytes, before: bytes) -> list[Factors]:
    """Look at the products of a quantised graph, found by their names before."""
    graph = onnx.load_from_string(model).graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    nodes = {node.name: node for node in graph.node}
    found = []
    for product in products(onnx.load_from_string(before)):
        sides = [makers.get(name, "") for name in nodes[product.node].input[:2]]
        ways = sides[1 - product.side], sides[product.side]
        found.append(Factors(product.node, product.group, ways))
    return found


def prompts(spec: DecoderSpec, seed: int) -> tuple[Feed, Feed]:
    """Draw an image and a click on it."""
    answering = calibration_spec(spec)
    return features(answering, seed), fitted(click(5 * seed, IMAGES, answering).prompts, spec)


def counted(judge: Callable[..., Any], asked: list[Any], stop_at: int | None = None) -> Callable[..., Any]:
    """Remember which plans are judged, and break off at one."""

    def counting(trial: Any, plan: Any) -> Any:
        if len(asked) == stop_at:
            raise KeyboardInterrupt
        asked.append(plan)
        return judge(trial, plan)

    return counting
