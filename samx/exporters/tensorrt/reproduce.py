"""Say how to repeat an engine's build and its comparison with the vendor's own tools alone."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from samx.formats.tensorrt.plan import BOUNDS, ENGINE_FILE, BuildPlan, Shape

SCRIPT_FILE, SCRIPT_ROLE = "reproduce.sh", "reproduce"
# The vendor's runtime may order sums differently than ONNX Runtime; masks are compared as a whole.
LEAST_COSINE = 0.999

SCRIPT = """\
#!/bin/sh
# Repeat this engine's build, and compare it with ONNX Runtime, with stock tools: no samx involved.
#   pip install polygraphy onnxruntime {package}
#   sh reproduce.sh build      build the engine{without_gpu}
#   sh reproduce.sh compare    build it, run it on this machine's GPU, compare with ONNX Runtime on the CPU
#   sh reproduce.sh {command}    build it with NVIDIA's own command-line tool
set -eu
cd "$(dirname "$0")"
{environment}work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 - <<'PY'
import hashlib
found = hashlib.sha256(open({model!r}, "rb").read()).hexdigest()
assert found == {sha256!r}, f"{model} is not the file that the engine was built from: {{found}}"
PY

# The types are those in the file. TF32 would shorten the float32 parts.
cat > "$work/exact.py" <<'PY'
{module_import}
def postprocess(builder, network, config):
    config.clear_flag(trt.BuilderFlag.TF32)
PY

# Clicks in the frame with the labels that a decoder knows; random numbers would be prompts that nobody makes.
cat > "$work/prompts.py" <<'PY'
import numpy as np
SHAPES = {shapes!r}
def load_data():
    random = np.random.default_rng(0)
    feed = {{name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}}
    feed["point_coords"] = random.uniform(0, {frame}, SHAPES["point_coords"]).astype(np.float32)
    feed["point_labels"] = random.choice([-1, 0, 1], SHAPES["point_labels"]).astype(np.float32)
    if "has_mask_input" in SHAPES:
        feed["has_mask_input"] = random.choice([0, 1], SHAPES["has_mask_input"]).astype(np.float32)
    yield feed
PY

case "${{1:-}}" in
build)
  {build}
  ;;
compare)
  {build}
  {reference}
  {compare}
  ;;
{command})
  {vendor}
  ;;
*)
  sed -n '2,6p' reproduce.sh >&2
  exit 2
  ;;
esac
"""


def reproduce_script(plan: BuildPlan, frame_px: int) -> str:
    """Write a shell script that repeats build and comparison with polygraphy or the vendor's tool."""
    library = plan.library
    usual = {port.name: plan.profile[port.name][1] if port.is_dynamic else port.shape for port in plan.inputs}
    return SCRIPT.format(
        package="'tensorrt-rtx-cu13>=1.7,<1.8'" if library.builds_without_gpu else "  # and TensorRT 10.3 or newer",
        without_gpu="; needs no GPU" if library.builds_without_gpu else "",
        environment="export POLYGRAPHY_USE_TENSORRT_RTX=1\n" if library.module == "tensorrt_rtx" else "",
        command=library.command, model=plan.model, sha256=plan.onnx_sha256, shapes=usual, frame=frame_px,
        module_import=f"import {library.module} as trt", build=_lines(_build(plan)), reference=_lines(_reference(plan)),
        compare=_lines(_compare(plan)), vendor=plan.command.replace(ENGINE_FILE, f'"$work/{ENGINE_FILE}"'),
    )  # fmt: skip


def _build(plan: BuildPlan) -> list[str]:
    command = [f"polygraphy convert {plan.model} --convert-to trt --strongly-typed"]
    for bound, shapes in _bounds(plan).items():
        command.append(f"--trt-{bound}-shapes {_polygraphy(shapes)}")
    if plan.compute == "sm75":
        command.append("--compute-capabilities 7.5")
    return [*command, '--trt-config-postprocess-script "$work/exact.py:postprocess"', f'-o "$work/{ENGINE_FILE}"']


def _reference(plan: BuildPlan) -> list[str]:
    """Run the ONNX file, and save what went in and what came out: the runners need one source of inputs."""
    return [
        f"polygraphy run {plan.model} --onnxrt", '--data-loader-script "$work/prompts.py"',
        '--save-inputs "$work/inputs.json" --save-outputs "$work/outputs.json"',
    ]  # fmt: skip


def _compare(plan: BuildPlan) -> list[str]:
    return [
        f'polygraphy run "$work/{ENGINE_FILE}" --model-type engine --trt', '--load-inputs "$work/inputs.json"',
        '--load-outputs "$work/outputs.json" --validate --compare cosine_similarity',
        f"--cosine-similarity-threshold {LEAST_COSINE}",
    ]  # fmt: skip


def _bounds(plan: BuildPlan) -> Mapping[str, Mapping[str, Shape]]:
    return {bound: {name: limits[i] for name, limits in plan.profile.items()} for i, bound in enumerate(BOUNDS)}


def _polygraphy(shapes: Mapping[str, Shape]) -> str:
    return " ".join(shlex.quote(f"{name}:[{','.join(map(str, shape))}]") for name, shape in shapes.items())


def _lines(command: Sequence[str]) -> str:
    return " \\\n    ".join(command)
