"""Write what TensorRT builds from: one ONNX file with its types in it, the build plan, and a script to repeat it."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from samx.exporters.base import HALF, Exported, ExportJob, HalfOptions, option
from samx.exporters.onnx import ATTENTION_OPSET, DECODER_FILE, check_opset, opset_option, simplify_option, write_onnx
from samx.files import ShellTemplate
from samx.formats.tensorrt.plan import BOUNDS, DECODER, ENCODER, BuildPlan, EncoderPlan, EnginePlan, compute_of, ports
from samx.models.shape_range import ShapeRange
from samx.models.spec import DecoderSpec

if TYPE_CHECKING:
    from samx.models.graph import Graph, Graphs


POINTS, PROMPTS = ShapeRange(1, 2, 16), ShapeRange(1, 8, 64)
SCRIPT_FILE, SCRIPT_ROLE = "reproduce.sh", "reproduce"
ENCODER_SCRIPT_FILE, ENCODER_SCRIPT_ROLE = "reproduce_encoder.sh", "reproduce_encoder"
# The vendor's runtime may order sums differently than ONNX Runtime; masks are compared as a whole.
LEAST_COSINE = 0.999


@dataclass(frozen=True)
class TensorRTOptions(HalfOptions):
    """Declare the options of TensorRT's graphs."""

    half = HALF
    opset: int = opset_option()
    simplify: bool = simplify_option()

    def check(self, precision: str, spec: DecoderSpec | None = None) -> None:
        """Refuse an opset that samx does not write, and groups to keep in float32 where everything is."""
        super().check(precision, spec)
        check_opset(self.opset)


@dataclass(frozen=True)
class RtxOptions(TensorRTOptions):
    """Declare the options of TensorRT for RTX."""

    turing: bool = option(False, "Build for Turing GPUs (SM 7.5) instead of Ampere and later.")


def decoder(job: ExportJob) -> Graphs:
    """Build the decoder's graph in the types that the engine computes in."""
    from samx.models.fast.graphs import Needs, fast_graphs

    options: TensorRTOptions = job.options
    points, prompts = _sizes(options)
    # Low-rank norms cancel large sums, which float16 does not survive; a GPU has no need of it.
    needs = Needs(
        points, prompts, low_rank=False, padded_points=True, fused=options.opset >= ATTENTION_OPSET,
        keep_fp32=options.kept(job.precision),
    )  # fmt: skip
    return fast_graphs(job.loaded, job.spec, needs)


def write(graphs: Sequence[Graph], job: ExportJob, directory: Path) -> Exported:
    """Write the typed graph and its plan into a directory.

    Raises: as write_onnx().
    """
    options: TensorRTOptions = job.options
    exported = write_onnx(graphs, directory, opset=options.opset, simplify=options.simplify)
    write_plan(job, directory)
    files = {**exported.files, DECODER.plan_file: DECODER.plan_role, SCRIPT_FILE: SCRIPT_ROLE}
    return replace(exported, files=files, most_points=_sizes(options)[0].max)


def write_encoder(graph: Graph, job: ExportJob, directory: Path) -> Exported:
    """Write the typed graph of an image encoder and its plan. onnxsim would take minutes for it, and finds nothing.

    Raises: as write_onnx().
    """
    from samx.models.encoders.precision import in_half

    typed = in_half(graph) if job.precision == "fp16" else graph
    exported = write_onnx([typed], directory, opset=job.options.opset, simplify=False)
    (name,) = (file for file, role in exported.files.items() if role == graph.role)
    plan = EncoderPlan(
        job.target, name, _sha256(directory / name), ports(graph.inputs), ports(graph.outputs),
        compute_of(job.target, _for_turing(job.options)), job.pictures,
    )  # fmt: skip
    (directory / ENCODER.plan_file).write_bytes(plan.to_bytes())
    (directory / ENCODER_SCRIPT_FILE).write_text(reproduce_script(plan, job.spec.image_size), encoding="utf-8")
    files = {**exported.files, ENCODER.plan_file: ENCODER.plan_role, ENCODER_SCRIPT_FILE: ENCODER_SCRIPT_ROLE}
    return replace(exported, files=files)


def write_plan(job: ExportJob, directory: Path) -> None:
    """Write how the graph that lies in a directory is to be built, and a script that repeats it."""
    points, prompts = _sizes(job.options)
    sha256, turing = _sha256(directory / DECODER_FILE), _for_turing(job.options)
    plan = BuildPlan.of(job.target, job.spec, DECODER_FILE, sha256, prompts, points, turing)
    (directory / DECODER.plan_file).write_bytes(plan.to_bytes())
    (directory / SCRIPT_FILE).write_text(reproduce_script(plan, job.spec.image_size), encoding="utf-8")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _for_turing(options: TensorRTOptions) -> bool:
    return isinstance(options, RtxOptions) and options.turing


def _sizes(options: TensorRTOptions) -> tuple[ShapeRange, ShapeRange]:
    return options.points or POINTS, options.prompts or PROMPTS


def reproduce_script(plan: EnginePlan, frame_px: int) -> str:
    """Return a shell script that repeats build and comparison with polygraphy or the vendor's tool."""
    library, text = plan.library, (files("samx.exporters.tensorrt") / SCRIPT_FILE).read_text(encoding="utf-8")
    engine, script = plan.PART.engine_file, SCRIPT_FILE if plan.PART is DECODER else ENCODER_SCRIPT_FILE
    usual = {port.name: plan.profile[port.name][1] if port.is_dynamic else port.shape for port in plan.inputs}
    return ShellTemplate(text).substitute(
        package="'tensorrt-rtx-cu13>=1.7,<1.8'" if library.builds_without_gpu else "  # and TensorRT 10.3 or newer",
        without_gpu="; needs no GPU" if library.builds_without_gpu else "",
        environment="export POLYGRAPHY_USE_TENSORRT_RTX=1\n" if library.module == "tensorrt_rtx" else "",
        command=library.command, module=library.module, model=plan.model, sha256=plan.onnx_sha256, shapes=usual,
        types={port.name: port.dtype for port in plan.inputs}, engine=engine, script=script,
        frame=frame_px, bounds="".join(f" \\\n    {words}" for words in _bounds(plan)), least_cosine=LEAST_COSINE,
        vendor=plan.command.replace(engine, f'"$work/{engine}"'),
    )  # fmt: skip


def _bounds(plan: EnginePlan) -> Iterator[str]:
    """Yield polygraphy's arguments about shapes and GPUs."""
    for i, bound in enumerate(BOUNDS if plan.profile else ()):
        shapes = [f"{name}:[{','.join(map(str, limits[i]))}]" for name, limits in plan.profile.items()]
        yield f"--trt-{bound}-shapes {shlex.join(shapes)}"
    if plan.compute == "sm75":
        yield "--compute-capabilities 7.5"
