"""Show what a machine's PyTorch makes of the fast forms: parity first, then speed, within a budget of time.

python -m samx.benchmarks.gpu                       on a CUDA machine; 'make gpu' is the same
python -m samx.benchmarks.gpu --device cpu --tiny   proves the program without a GPU

Every part runs in a process of its own, with the harness, contenders and report of 'samx bench'.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from samx import console
from samx.benchmarks import contenders
from samx.benchmarks.bench_table import tables
from samx.benchmarks.harness import Harness
from samx.benchmarks.interleave import Clock, now_ns
from samx.benchmarks.processes import print_report, reports_of
from samx.benchmarks.results import BenchReport, NotMeasured
from samx.benchmarks.roofline import rooflines
from samx.benchmarks.scenarios import Workload
from samx.benchmarks.scenarios import chosen as scenarios_of
from samx.benchmarks.subjects import open_contenders, reason_of
from samx.commands.bench import benchmark_environment, device_record, require_complete, summarised
from samx.demo import demo_checkpoint
from samx.devices.adapter import unread
from samx.devices.monitor import Monitor, adapters
from samx.errors import SamxError, UnavailableError, UsageError
from samx.extras import require
from samx.processing.images import check_free
from samx.progress import Progress, silent

BUDGET_S, SECONDS, TINY_SECONDS = 480.0, 0.3, 0.001  # in all; timed, of each decoder in each scenario
RESERVE_S = 15.0  # of the budget, to start, to stop what takes too long, and to write the report
LEAST_S = 3.0  # no process answers sooner
SAMPLED_EVERY_S = 1.0
SECOND_NS = 1_000_000_000
SCENARIOS, TINY_SCENARIOS = ("click", "batch8", "batch64", "batch256", "everything"), ("click", "batch8")
TINY_IMAGE_PX = 256
PRECISIONS = ("fp32", "fp16", "bf16")
# The first that is there is what the others are compared with: Meta's own modules, or our form of their structure.
FIRST = ("meta-pytorch", "reference")
KINDS: Mapping[str, tuple[str, ...]] = {
    "plain": ("pytorch", "pytorch-whole", "meta-pytorch-graph", "pytorch-graph", "pytorch-whole-graph"),
    "compiled": ("meta-pytorch-compiled", "pytorch-compiled", "meta-pytorch-compiled-graph", "pytorch-compiled-graph"),
    "onnxruntime": ("onnx-bound",),
}
# The most that a part may take of the budget, so that one that hangs leaves time to the others.
SHARES: Mapping[str, float] = {"plain": 1 / 5, "compiled": 1 / 4, "onnxruntime": 1 / 5}
# What matters most comes first, in case that the time is over.
ORDER = (("plain", "fp16"), ("plain", "bf16"), ("plain", "fp32"), ("compiled", "fp16"), ("onnxruntime", "fp32"),
         ("compiled", "bf16"), ("compiled", "fp32"))  # fmt: skip
LIBRARIES = ("triton", "onnxruntime-gpu", "onnxscript", "onnxsim", "nvidia-ml-py", "torchvision")
JOINED = ("subjects", "results", "ratios", "rooflines")  # of a report, from every part
NO_TIME = "not run: no time left"
NO_FIGURES = "cpu no gpu figures"  # in the name of a report that was made without a GPU
NO_GPU = "measured on a processor: these are no GPU figures"
TINY = "tiny sizes: this proves that the program works; its times say nothing about any device"


@dataclass(frozen=True)
class Part:
    """What one process measures."""

    kind: str  # of KINDS
    precision: str
    device: str
    checkpoint: str
    scenarios: tuple[str, ...] = ()  # none: what suits the size
    seconds: float = SECONDS
    threads: int | None = None
    tiny: bool = False

    @property
    def name(self) -> str:
        """Name it for people."""
        return f"{self.kind} {self.precision}"

    def contenders(self) -> list[contenders.Contender]:
        """Return what is measured, the baseline first; of several precisions' names, those that there are."""
        known = {one.name: one for one in contenders.CONTENDERS if self.precision in one.precisions}
        found = [known[name] for name in (*FIRST, *KINDS[self.kind]) if name in known]
        return [replace(one, precision=self.precision) for one in found if self.device in one.devices]


Found = tuple[Optional[BenchReport], Optional[str]]  # what a part has measured, and how it failed, if it did
Starter = Callable[[Part, float], Found]  # of a part that may take so many seconds


def plan(asked: Part, precisions: Sequence[str], kinds: Sequence[str]) -> list[Part]:
    """List the parts, the most important first; nothing asked: what suits the device.

    Raises: UsageError for what is not offered.
    """
    usual = PRECISIONS if asked.tiny or asked.device != "cpu" else PRECISIONS[:1]
    for what, values, choices in (
        ("device", [asked.device], ("cpu", "cuda")), ("precision", precisions, PRECISIONS), ("part", kinds, KINDS),
    ):  # fmt: skip
        if unknown := [value for value in values if value not in choices]:
            raise UsageError(f"no measurement on this {what}", found=unknown[0], expected=" or ".join(choices))
    parts = [
        replace(asked, kind=kind, precision=precision)
        for kind, precision in ORDER
        if precision in (precisions or usual) and kind in (kinds or KINDS)
        and not (asked.tiny and kind == "compiled" and precision != "fp32")  # a compiler takes as long for any size
    ]  # fmt: skip
    if not parts:
        raise UsageError("nothing to measure", found=", ".join((*kinds, *precisions)), expected="onnxruntime in fp32")
    return parts


def measured(part: Part) -> Iterator[BenchReport]:
    """Prove and measure a part; yield the report so far after each scenario, with what the device reaches at last."""
    from samx.benchmarks.contenders.pytorch import clock_for, peaks

    setting, suite = prepared(part)
    asked = part.contenders()
    again = [one.title for one in asked if one.name in FIRST and part.kind != ORDER[0][0]]  # a part's own baseline
    subjects, missing = open_contenders(asked, setting, suite, again, part.kind, resident=True)
    run = Harness(
        subjects, Workload(setting.loaded.spec, suite.images, suite.image_source, 0), part.device, part.threads,
        part.seconds, False, clock_for(part.device), lambda start, end: unread("power is read beside, for all parts"),
        silent, not_measured=missing,
    )  # fmt: skip
    with Monitor([]) as monitor:
        pass
    record = device_record(part.device, monitor)
    for scenario in scenarios_of(part.scenarios, quick=False):
        run.run([scenario])
        yield summarised(run, record)
    best = partial(peaks, replace(setting, precision=part.precision), part.tiny)
    lines = rooflines(subjects, run.workload, run.results, part.device, part.threads, best, part.precision)
    yield summarised(run, record, lines=lines)


def prepared(part: Part) -> tuple[contenders.Setting, Any]:
    """Load the checkpoint, and let the reference form answer a parity suite on the device, in float32.

    Raises: MissingExtraError without PyTorch; UnavailableError without the device; CheckpointError.
    """
    from samx.benchmarks.contenders.pytorch import exact_arithmetic
    from samx.demo.model import demo_images, is_demo
    from samx.models.checkpoint import build_reference, load_checkpoint
    from samx.runtimes.torch import TorchRuntime
    from samx.validators.suite import ParitySuite

    path = Path(part.checkpoint)
    loaded = load_checkpoint(path, image_size=TINY_IMAGE_PX if part.tiny else None)
    loaded = replace(loaded, spec=replace(loaded.spec, masks="multimask", mask_input=False))
    setting = contenders.Setting(path, loaded, part.device, part.threads)
    exact_arithmetic(setting)
    images = demo_images(path, loaded.spec) if is_demo(path) and not part.tiny else None
    source = None if images is None else "demo scenes, demo encoder"
    return setting, ParitySuite.build(TorchRuntime(build_reference(loaded), part.device), images, None, source)


def start(part: Part, limit_s: float) -> Found:
    """Measure a part in a process of its own; what it had reported before it failed or was stopped counts."""
    command = [sys.executable, "-m", "samx.benchmarks.gpu", "--measure", json.dumps(asdict(part))]
    try:
        found, failure = reports_of(command, [*BenchReport.HEADER, *BenchReport.__dataclass_fields__], limit_s)
        return (BenchReport.from_json(found[-1], f"the report of {part.name}") if found else None), failure
    except SamxError as cause:
        return None, str(cause)


def in_budget(
    parts: Sequence[Part], budget_s: float, began_ns: int, progress: Progress, starter: Starter, clock: Clock = now_ns
) -> Iterator[Found]:
    """Measure every part that the budget has time for; the others are named."""
    deadline = began_ns + int((budget_s - RESERVE_S) * SECOND_NS)
    for number, part in enumerate(parts):
        progress(part.name, number, len(parts))
        left_s = (deadline - clock()) / SECOND_NS
        limit_s = min(left_s, budget_s * SHARES[part.kind])
        yield starter(part, limit_s) if left_s >= LEAST_S else (None, NO_TIME)


def merged(parts: Sequence[Part], found: Sequence[Found]) -> BenchReport:
    """Put the reports of parts together.

    Raises: UnavailableError when none measured anything.
    """
    missing: list[NotMeasured] = []
    for part, (report, failure) in zip(parts, found, strict=True):
        reasons = [failure, report.partial if report else None]
        missing += [NotMeasured(part.name, None, None, reason) for reason in reasons if reason]
        missing += report.not_measured if report else ()
    reports = [report for report, _ in found if report is not None]
    if not any(report.results for report in reports):
        words = "; ".join(f"{entry.subject}: {entry.reason}" for entry in missing)
        raise UnavailableError("nothing could be measured here", found=words or "no part reported")
    joined: dict[str, Any] = {
        name: tuple(one for report in reports for one in getattr(report, name)) for name in JOINED
    }
    flags = tuple(dict.fromkeys(flag for report in reports for flag in report.flags))
    return replace(reports[0], partial=None, not_measured=tuple(dict.fromkeys(missing)), flags=flags, **joined)


def surroundings(device: str) -> dict[str, str]:
    """Say with what is measured: the environment, threads or the GPU, and more libraries."""
    import torch

    found = benchmark_environment(LIBRARIES)
    if device == "cpu":
        found["threads"] = str(torch.get_num_threads())
    else:
        gpu = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": gpu.name,
            "compute capability": f"{gpu.major}.{gpu.minor}",
            "memory MiB": str(gpu.total_memory // 2**20),
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),
        }
    return found


def file_name(created: str, environment: Mapping[str, str], tiny: bool) -> str:
    """Name the file after date and device, so that nobody takes a processor's for a GPU's."""
    words = environment.get("gpu", NO_FIGURES) + (" tiny" if tiny else "")
    return f"{created[:10]}-pytorch-{re.sub('[^a-z0-9]+', '-', words.lower()).strip('-')}.json"


def child(text: str) -> None:
    """Measure a part in this process, and report as soon as there is something."""
    given = json.loads(text)
    try:
        for report in measured(Part(**{**given, "scenarios": tuple(given["scenarios"])})):
            print_report(report.to_json())
    except Exception as cause:  # what a driver raises is the reason that the report gives
        print(reason_of(cause), file=sys.stderr)  # noqa: T201 - read by start()
        raise typer.Exit(cause.exit_code if isinstance(cause, SamxError) else 1) from cause


def gpu(
    device: Annotated[str, typer.Option(help="cuda, or cpu to prove the program or to measure a processor.")] = "cuda",
    tiny: Annotated[bool, typer.Option("--tiny", help="A tiny picture, few prompts: no figures.")] = False,
    precision: Annotated[Optional[list[str]], typer.Option(help=" or ".join(PRECISIONS))] = None,
    scenario: Annotated[Optional[list[str]], typer.Option(help="As of samx bench; several times.")] = None,
    part: Annotated[Optional[list[str]], typer.Option(help=f"{', '.join(KINDS)}; default: all.")] = None,
    budget: Annotated[float, typer.Option(help="Seconds until the report is written.", min=10)] = BUDGET_S,
    seconds: Annotated[Optional[float], typer.Option(help="Timed seconds a decoder and scenario.", min=0.001)] = None,
    threads: Annotated[Optional[int], typer.Option(help="Of PyTorch, on a CPU.", min=1)] = None,
    checkpoint: Annotated[Optional[Path], typer.Option(help="Weights (default: the SAM 1 demo model).")] = None,
    output: Annotated[Path, typer.Option(help="The folder for the report.")] = Path("docs/results"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite a report of the same name.")] = False,
    measure: Annotated[Optional[str], typer.Option(hidden=True)] = None,
) -> None:
    """Measure samx's decoder in PyTorch beside Meta's, write a JSON report, and print its table."""
    if measure is not None:
        return child(measure)
    began_ns = now_ns()
    if not output.is_dir():
        raise UsageError("no folder for the report", found=f"'{output}'", fix="Make it, or name one with --output.")
    usual = TINY_SCENARIOS if tiny else SCENARIOS
    asked = Part(
        "plain", "fp32", device, str(checkpoint or demo_checkpoint("sam1")), tuple(scenario or usual),
        seconds or (TINY_SECONDS if tiny else SECONDS), threads, tiny,
    )  # fmt: skip
    parts = plan(asked, precision or (), part or ())
    scenarios_of(asked.scenarios, quick=False)
    require("torch", "export", "measuring in PyTorch")
    from samx.artifacts.manifest import utc_now
    from samx.models.load import torch_device

    torch_device(device)
    environment = surroundings(device)
    file = output / file_name(utc_now(), environment, tiny)
    check_free(file, force)
    with console.steps() as progress, Monitor(adapters(device), SAMPLED_EVERY_S) as monitor:
        found = list(in_budget(parts, budget, began_ns, progress, start))
    record = replace(device_record(device, monitor), environment=environment)
    report = merged(parts, found)
    flags = [text for text, holds in ((NO_GPU, device == "cpu"), (TINY, tiny)) if holds]
    command = ("python", "-m", "samx.benchmarks.gpu", *sys.argv[1:])
    report = replace(report, command=command, device=record, flags=(*flags, *report.flags))
    report.save(file)
    for drawn in tables(report, console.out.width):
        console.out.print(drawn)
    console.out.print(f"wrote {file}", markup=False, highlight=False, soft_wrap=True)
    require_complete(report)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(gpu)
    sys.exit(console.run(app, as_json=False))
