"""Write how to repeat an engine's build and its comparison with the vendor's own tools alone."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from importlib.resources import files
from string import Template

from samx.formats.tensorrt.plan import BOUNDS, ENGINE_FILE, BuildPlan

SCRIPT_FILE, SCRIPT_ROLE = "reproduce.sh", "reproduce"
# The vendor's runtime may order sums differently than ONNX Runtime; masks are compared as a whole.
LEAST_COSINE = 0.999


class ShellTemplate(Template):
    """A template that leaves the shell its dollars."""

    delimiter = "@"


def reproduce_script(plan: BuildPlan, frame_px: int) -> str:
    """Return a shell script that repeats build and comparison with polygraphy or the vendor's tool."""
    library, text = plan.library, (files("samx.exporters.tensorrt") / SCRIPT_FILE).read_text(encoding="utf-8")
    usual = {port.name: plan.profile[port.name][1] if port.is_dynamic else port.shape for port in plan.inputs}
    return ShellTemplate(text).substitute(
        package="'tensorrt-rtx-cu13>=1.7,<1.8'" if library.builds_without_gpu else "  # and TensorRT 10.3 or newer",
        without_gpu="; needs no GPU" if library.builds_without_gpu else "",
        environment="export POLYGRAPHY_USE_TENSORRT_RTX=1\n" if library.module == "tensorrt_rtx" else "",
        command=library.command, module=library.module, model=plan.model, sha256=plan.onnx_sha256, shapes=usual,
        frame=frame_px, bounds=" \\\n    ".join(_bounds(plan)), least_cosine=LEAST_COSINE,
        vendor=plan.command.replace(ENGINE_FILE, f'"$work/{ENGINE_FILE}"'),
    )  # fmt: skip


def _bounds(plan: BuildPlan) -> Iterator[str]:
    """Yield polygraphy's arguments about shapes and GPUs."""
    for i, bound in enumerate(BOUNDS):
        shapes = [f"{name}:[{','.join(map(str, limits[i]))}]" for name, limits in plan.profile.items()]
        yield f"--trt-{bound}-shapes {shlex.join(shapes)}"
    if plan.compute == "sm75":
        yield "--compute-capabilities 7.5"
