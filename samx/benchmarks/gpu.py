"""Show what a machine's PyTorch makes of the fast forms: parity first, then speed, within a budget of time.

python -m samx.benchmarks.gpu --wheels DIR          on a CUDA machine; 'make gpu' is the same
python -m samx.benchmarks.gpu --device cpu --tiny   proves the program without a GPU
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from samx import console
from samx.artifacts.commit import write_file
from samx.artifacts.manifest import utc_now
from samx.benchmarks.environment import benchmark_environment
from samx.benchmarks.gpu_report import markdown
from samx.benchmarks.interleave import Clock, now_ns
from samx.benchmarks.processes import reports_of
from samx.benchmarks.torch_plan import DTYPES, PARITY, SHARES, Task, plan
from samx.benchmarks.wheels import wheels_on_path
from samx.demo import demo_checkpoint
from samx.devices.monitor import Monitor, adapters
from samx.errors import ParityError, SamxError, UnavailableError, UsageError
from samx.extras import require
from samx.processing.images import check_free
from samx.progress import Progress

SCHEMA = "samx-benchmark-gpu/1"
BUDGET_S = 480.0
SECONDS, CALLS, TINY_CALLS = 0.3, 10, 2  # timed, of each decoder
RESERVE_S = 15.0  # of it, to start, to stop what takes too long, and to write the report
LEAST_S = 3.0  # no process answers sooner
LIBRARIES = ("triton", "segment-anything", "onnxruntime-gpu", "onnxscript", "onnxsim", "nvidia-ml-py", "torchvision")
NO_TIME = "not run: no time left"
SAMPLED_EVERY_S = 1.0
NO_FIGURES = "cpu no gpu figures"  # in the name of a report that was made without a GPU
SECOND_NS = 1_000_000_000

Found = tuple[list[dict[str, Any]], Optional[str]]  # the results of a task, and how it failed, if it did
Starter = Callable[[Task, float], Found]  # of a task that may take so many seconds


def start(task: Task, limit_s: float) -> Found:
    """Measure a task in a process of its own."""
    from samx.benchmarks.torch_measure import GroupResult

    command = [sys.executable, "-m", "samx.benchmarks.torch_measure", json.dumps(asdict(task))]
    try:
        return reports_of(command, list(GroupResult.__dataclass_fields__), limit_s)
    except SamxError as cause:
        return [], str(cause)


def measure(
    tasks: Sequence[Task], budget_s: float, began_ns: int, progress: Progress, starter: Starter,
    clock: Clock = now_ns,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Measure every task that the budget has time for, each in its own process; the others are named."""
    deadline = began_ns + int((budget_s - RESERVE_S) * SECOND_NS)
    for number, task in enumerate(tasks):
        progress(task.name, number, len(tasks))
        started = clock()
        left_s = (deadline - started) / SECOND_NS
        limit_s = min(left_s, budget_s * SHARES[task.kind])
        found, failure = starter(task, limit_s) if left_s >= LEAST_S else ([], NO_TIME)
        spent_s = (clock() - started) / SECOND_NS
        yield {
            "name": task.name, "task": asdict(task), "limit_s": max(limit_s, 0.0), "spent_s": spent_s,
            "failure": failure, "results": found,
        }  # fmt: skip


def facts(task: Task) -> dict[str, Any]:
    """Say on what, with what and how is measured.

    Raises: MissingExtraError without PyTorch; UnavailableError without the device; CheckpointError.
    """
    require("torch", "export", "measuring in PyTorch")
    from samx.benchmarks.torch_measure import embeddings, prepare
    from samx.models.checkpoint import load_checkpoint

    device = prepare(task)
    loaded = load_checkpoint(Path(task.checkpoint), image_size=task.image_size)
    return {
        "schema": SCHEMA,
        "device_kind": task.device,
        "tiny": task.tiny,
        "command": ["python", "-m", "samx.benchmarks.gpu", *sys.argv[1:]],
        "created": utc_now(),
        "checkpoint": loaded.name,
        "checkpoint_sha256": loaded.sha256,
        "embeddings": embeddings(task),
        "image_size": loaded.spec.image_size,
        "environment": {**benchmark_environment(), **{name: _version(name) for name in LIBRARIES}},
        "device": device_facts(device),
    }


def device_facts(device: Any) -> dict[str, str]:
    """Say what the environment does not: threads, or the GPU."""
    import torch

    if device.type == "cpu":
        return {"threads": str(torch.get_num_threads())}
    found = torch.cuda.get_device_properties(device)
    return {
        "gpu": found.name,
        "compute capability": f"{found.major}.{found.minor}",
        "memory MiB": str(found.total_memory // 2**20),
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
    }


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not here"


def file_names(report: dict[str, Any]) -> tuple[str, str]:
    """Name the files after date and device, so that nobody takes a processor's for a GPU's."""
    words = report["device"].get("gpu", NO_FIGURES) + (" tiny" if report["tiny"] else "")
    stem = f"{report['created'][:10]}-pytorch-{re.sub('[^a-z0-9]+', '-', words.lower()).strip('-')}"
    return f"{stem}.json", f"{stem}.md"


def results(report: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Go through all results, each with its part."""
    for part in report["parts"]:
        for result in part["results"]:
            yield part, result


def enforce(report: dict[str, Any]) -> None:
    """Refuse a report with wrong masks, or without any measurement.

    Raises: ParityError; UnavailableError.
    """
    wrong = {f"{name} ({part['name']})" for part, result in results(report) for name in result["wrong"]}
    if wrong:
        raise ParityError(
            "some decoders do not compute what the reference form computes", found=", ".join(sorted(wrong)),
            fix="The report was written all the same; it says by how much.",
        )  # fmt: skip
    asked = "differences" if all(part["task"]["kind"] == PARITY for part in report["parts"]) else "samples"
    if not any(result[asked] for _, result in results(report)):
        reasons = [f"{part['name']}: {part['failure']}" for part in report["parts"] if part["failure"]]
        raise UnavailableError("nothing could be measured here", found="; ".join(reasons) or "see the report")


def gpu(
    device: Annotated[str, typer.Option(help="cuda, or cpu to prove the program or to measure a processor.")] = "cuda",
    tiny: Annotated[bool, typer.Option("--tiny", help="A tiny picture, one or two prompts: no figures.")] = False,
    dtype: Annotated[Optional[list[str]], typer.Option(help=" or ".join(DTYPES))] = None,
    prompts: Annotated[Optional[list[int]], typer.Option(help="Prompts a call; several times.", min=1)] = None,
    part: Annotated[Optional[list[str]], typer.Option(help=f"{', '.join(SHARES)}; default: all.")] = None,
    budget: Annotated[float, typer.Option(help="Seconds until the report is written.", min=10)] = BUDGET_S,
    seconds: Annotated[Optional[float], typer.Option(help="Timed seconds a decoder (0.3; tiny: 0).", min=0)] = None,
    least: Annotated[Optional[int], typer.Option(help="Fewest timed calls a decoder (10; tiny: 2).", min=1)] = None,
    threads: Annotated[Optional[int], typer.Option(help="Of PyTorch, on a CPU.", min=1)] = None,
    checkpoint: Annotated[Optional[Path], typer.Option(help="Weights (default: the SAM 1 demo model).")] = None,
    wheels: Annotated[Optional[Path], typer.Option(help="A folder with wheels to import from.")] = None,
    output: Annotated[Path, typer.Option(help="The folder for the report.")] = Path("docs/results"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite a report of the same name.")] = False,
) -> None:
    """Measure samx's decoder in PyTorch beside Meta's, and write a JSON and a Markdown report."""
    began_ns = now_ns()
    if not output.is_dir():
        raise UsageError("no folder for the report", found=f"'{output}'", fix="Make it, or name one with --output.")
    weights = str(checkpoint or demo_checkpoint("sam1"))
    usual_s, usual_calls = (0.0, TINY_CALLS) if tiny else (SECONDS, CALLS)
    timed_s, calls = usual_s if seconds is None else seconds, least or usual_calls
    asked = Task(PARITY, "", device, tuple(prompts or ()), timed_s, calls, threads, weights, tiny)
    tasks = plan(asked, dtype or (), part or ())
    with wheels_on_path(wheels) as brought:
        report = facts(tasks[0])
        files = [output / name for name in file_names(report)]
        for file in files:
            check_free(file, force)
        with console.steps() as progress, Monitor(adapters(device), SAMPLED_EVERY_S) as monitor:
            parts = list(measure(tasks, budget, began_ns, progress, start))
    report |= {"wheels": brought, "budget_s": budget, "parts": parts, "telemetry": monitor.to_json()}
    page = markdown(report)
    write_file(files[0], (json.dumps(report, indent=1) + "\n").encode())
    write_file(files[1], page.encode())
    console.out.print(page, markup=False, highlight=False, soft_wrap=True)
    console.out.print(f"wrote {files[0]} and {files[1]}", markup=False, highlight=False, soft_wrap=True)
    enforce(report)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(gpu)
    sys.exit(console.run(app, as_json=False))
