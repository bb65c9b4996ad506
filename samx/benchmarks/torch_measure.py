"""Make every way of decoding in PyTorch, prove that they agree, and measure them in turns."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from samx.artifacts.manifest import utc_now
from samx.benchmarks.contenders import pytorch as torch_ways
from samx.benchmarks.contenders.pytorch import Call, Outputs, Prompts, Setting, Way, Work
from samx.benchmarks.environment import benchmark_environment
from samx.benchmarks.interleave import Candidate, Effort, Samples, measure
from samx.benchmarks.scenarios import box_feed
from samx.benchmarks.summary import RATIO_SAMPLES, Ratio, by_name, speedup, summarize
from samx.benchmarks.torch_agreement import Differences, compare
from samx.benchmarks.torch_peaks import Peaks, Shares, peaks, shares
from samx.demo import demo_checkpoint
from samx.errors import ParityError, UsageError
from samx.exporters.encoder import demo_images, is_demo
from samx.models.checkpoint import LoadedDecoder, load_checkpoint
from samx.models.load import load, torch_device
from samx.models.session import FloatArray
from samx.progress import Progress
from samx.validators.cases import synthetic_images

SCHEMA = "samx-benchmark-torch-forms/1"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PROMPTS = {"cpu": (1, 16, 64), "cuda": (1, 64, 256, 1024)}
PACKAGED = ("float32", "float16")  # what target 'aoti' has
BOX_POINTS = 2


@dataclass(frozen=True)
class Settings:
    """Say what to measure and for how long."""

    device: str = "cpu"
    dtypes: Sequence[str] = ("float32",)
    prompts: Sequence[int] = ()  # none: those of the device
    seconds: float = 3.0
    least: int = 10  # timed calls of each way
    compile: bool = True  # torch.compile, and on a CPU AOTInductor
    threads: int | None = None
    checkpoint: Path = field(default_factory=lambda: demo_checkpoint("sam1"))


@dataclass(frozen=True)
class GroupResult:
    """Hold what was measured at one type and number of prompts; by the ways' names, the baseline's first."""

    dtype: str
    prompts: int
    points: int  # of each prompt
    work: dict[str, Work]
    samples: list[Samples]
    ratios: dict[str, Ratio]
    differences: dict[str, Differences]
    peaks: Peaks
    shares: dict[str, Shares]
    not_measured: dict[str, str]  # why

    def to_json(self) -> dict[str, Any]:
        """Give the raw samples, then what was made of them."""
        return {**asdict(self), "samples": [{**asdict(s), "summary": asdict(summarize(s))} for s in self.samples]}


@dataclass(frozen=True)
class Group:
    """Hold what is measured in one type."""

    dtype: str
    setting: Setting
    ways: Sequence[Way]  # the baseline first
    exact: Call  # in float32
    effort: Effort
    peaks: Peaks


@dataclass
class Report:
    """Collect what was measured, on what and how."""

    command: list[str]
    checkpoint: str
    checkpoint_sha256: str
    embeddings: str
    environment: dict[str, str]
    device: dict[str, str]
    created: str = field(default_factory=utc_now)
    results: list[GroupResult] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Give everything as plain data."""
        return {"schema": SCHEMA, **vars(self), "results": [result.to_json() for result in self.results]}


@torch.no_grad()
def run(settings: Settings, progress: Progress) -> Report:
    """Make every way of decoding, prove that they agree, and measure them in turns.

    A way that computes something else, or does not run, is not timed but named.
    Raises: UnavailableError without the device or, for AOTInductor, without a C++ compiler; UsageError.
    """
    device = _prepare(settings)
    loaded = load_checkpoint(settings.checkpoint)
    image, source = _image(settings.checkpoint, loaded, device)
    command = ["python", "-m", "samx.benchmarks.torch_forms", *sys.argv[1:]]
    environment, facts = benchmark_environment(), device_facts(device)
    report = Report(command, loaded.name, loaded.sha256, source, environment, facts)
    exact = torch_ways.reference_form(Setting(loaded, image))
    for dtype in settings.dtypes:
        progress(f"{dtype}: making the ways of decoding")
        setting = Setting(loaded, image, None if dtype == "float32" else DTYPES[dtype])
        ways = make_ways(settings, setting, dtype)
        best = peaks(device, DTYPES[dtype], torch_ways.clock_for(device), min(1.0, settings.seconds))
        group = Group(dtype, setting, ways, exact, Effort(settings.seconds, settings.least), best)
        for count in settings.prompts or PROMPTS[device.type]:
            progress(f"{dtype}, N = {count}: comparing the outputs, and measuring")
            report.results.append(measure_group(group, count))
    return report


def _prepare(settings: Settings) -> torch.device:
    """Check the settings, and choose the device and the threads."""
    _check("device", settings.device, PROMPTS)
    for name in settings.dtypes:
        _check("dtype", name, DTYPES)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    return torch_device(settings.device)


def _check(what: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise UsageError(f"no measurement on this {what}", found=value, expected=" or ".join(choices))


def _image(path: Path, loaded: LoadedDecoder, device: torch.device) -> tuple[dict[str, torch.Tensor], str]:
    demo = is_demo(path)
    feed = (demo_images(path, loaded.spec) if demo else synthetic_images(loaded.spec))[0]
    image = {tensor.name: torch.tensor(feed[tensor.name], device=device) for tensor in loaded.spec.image_inputs}
    return image, "demo scenes, demo encoder" if demo else "synthetic"


def device_facts(device: torch.device) -> dict[str, str]:
    """Say what the environment does not: threads, or the GPU and the switch that changes its arithmetic."""
    if device.type == "cpu":
        return {"threads": str(torch.get_num_threads())}
    found = torch.cuda.get_device_properties(device)
    return {
        "gpu": found.name,
        "compute capability": f"{found.major}.{found.minor}",
        "memory MiB": str(found.total_memory // 2**20),
        "cuda": str(torch.version.cuda),
        "tf32": str(torch.backends.cuda.matmul.allow_tf32),
    }


def make_ways(settings: Settings, setting: Setting, dtype: str) -> list[Way]:
    """List the ways of decoding that this device has, the baseline first."""
    on_cpu = settings.device == "cpu"
    decoder = load(settings.checkpoint, points=BOX_POINTS, dtype=DTYPES[dtype], device=settings.device)
    ways = [torch_ways.baseline(setting), *torch_ways.ours(decoder, setting)]
    if settings.compile:
        torch.compiler.reset()  # PyTorch counts compilations of a function, and gives up after eight
        ways += [torch_ways.compiled(way, dynamic=on_cpu) for way in ways]
    if not on_cpu:
        ways += torch_ways.graphed(ways)
    elif settings.compile and dtype in PACKAGED:
        ways.append(torch_ways.packaged(decoder, setting))
    return ways


def measure_group(group: Group, count: int) -> GroupResult:
    """Check and measure every way at one number of prompts; what cannot be measured is left out, and named."""
    setting = group.setting

    def inputs(number: int) -> Prompts:
        feed = box_feed(setting.loaded.spec, number, count)
        return tuple(torch.tensor(value, device=setting.device) for value in feed.values())

    missing: dict[str, str] = {}
    found = _differences(group, inputs(0), missing)
    candidates = [Candidate(way.name, count, way.call, inputs) for way in group.ways if way.name in found]
    samples: list[Samples] = []
    with _left_out(missing, *found):
        samples = measure(candidates, group.effort, torch_ways.clock_for(setting.device))
    work = {way.name: way.work for way in group.ways}
    reached = {
        entry.name: shares(setting, work[entry.name], count, BOX_POINTS, median(entry.call_ns), group.peaks)
        for entry in samples
    }
    ratios = _ratios(samples, group.ways[0].name)
    return GroupResult(group.dtype, count, BOX_POINTS, work, samples, ratios, found, group.peaks, reached, missing)


def _differences(group: Group, prompts: Prompts, missing: dict[str, str]) -> dict[str, Differences]:
    """Compare every way with the reference form, which decodes one prompt at a time: it needs the most memory."""
    rows = [_arrays(group.exact(row)) for row in zip(*(tensor.split(1) for tensor in prompts), strict=True)]
    wanted = [np.concatenate(parts) for parts in zip(*rows, strict=True)]
    found = {}
    for way in group.ways:
        with _left_out(missing, way.name):
            found[way.name] = compare(way.name, _arrays(way.call(prompts)), wanted, group.dtype)
    return found


def _arrays(outputs: Outputs) -> list[FloatArray]:
    """Give masks and predicted IoU."""
    return [tensor.float().cpu().numpy() for tensor in outputs[:2]]


@contextmanager
def _left_out(missing: dict[str, str], *names: str) -> Iterator[None]:
    """Note why nothing can be measured of these: another result, or what PyTorch cannot do here, memory before all."""
    try:
        yield
    except (RuntimeError, ParityError) as cause:  # torch's errors of memory, compilers and devices are all of the first
        missing |= dict.fromkeys(names, str(cause).splitlines()[0])


def _ratios(samples: Sequence[Samples], baseline: str) -> dict[str, Ratio]:
    """Compare with the baseline, where it was measured and often enough for an interval."""
    named = by_name(samples)
    first = named.pop(baseline, None)
    if first is None or len(first.call_ns) < RATIO_SAMPLES:
        return {}
    return {name: speedup(first, entry) for name, entry in named.items()}
