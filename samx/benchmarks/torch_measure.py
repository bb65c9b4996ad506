"""Make ways of decoding in PyTorch, prove that they agree, and measure them in turns; run in a process of its own.

Run by samx.benchmarks.gpu: python -m samx.benchmarks.torch_measure TASK, a Task as JSON.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

import torch

from samx.benchmarks.contenders import pytorch as torch_ways
from samx.benchmarks.contenders.pytorch import Call, Outputs, Prompts, Setting, Way, Work
from samx.benchmarks.interleave import Candidate, Effort, Samples, measure
from samx.benchmarks.processes import print_report
from samx.benchmarks.scenarios import box_feed
from samx.benchmarks.summary import RATIO_SAMPLES, Ratio, by_name, speedup, summarize
from samx.benchmarks.torch_agreement import Differences, compare
from samx.benchmarks.torch_peaks import Peaks, Shares, peaks, shares
from samx.benchmarks.torch_plan import DTYPES, PARITY, PROMPTS, Task, check
from samx.demo.model import demo_images, is_demo
from samx.errors import ParityError, SamxError
from samx.models.checkpoint import LoadedDecoder, load_checkpoint
from samx.models.fast.decoder import Form
from samx.models.load import load, torch_device
from samx.validators.cases import synthetic_images

TYPES: Mapping[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPES}
HALF_FORMS: Sequence[Form] = ("absorbed", "direct")
PACKAGED = ("float32", "float16")  # what target 'aoti' has
BOX_POINTS = 2
DEMO_SCENES = "demo scenes, demo encoder"
REASON_CHARACTERS = 300
PEER_MISSING = "not run: segment-anything is not here: samx's reference form, which has its structure, stands in"

Maker = Callable[[], Way]


@dataclass(frozen=True)
class GroupResult:
    """Hold what was measured at one type and number of prompts; by the ways' names, the baseline's first."""

    dtype: str
    prompts: int
    points: int  # of each prompt
    work: dict[str, Work]
    samples: list[Samples]  # none where parity alone was asked for
    ratios: dict[str, Ratio]
    differences: dict[str, Differences]
    peaks: Peaks | None
    shares: dict[str, Shares]
    not_measured: dict[str, str]  # why
    wrong: list[str]  # those of them that compute something else

    def to_json(self) -> dict[str, Any]:
        """Return the raw samples, then what was made of them."""
        return {**asdict(self), "samples": [{**asdict(s), "summary": asdict(summarize(s))} for s in self.samples]}


@dataclass(frozen=True)
class Group:
    """Hold what is measured in one type."""

    task: Task
    setting: Setting
    ways: Sequence[Way]  # the baseline first
    exact: Call  # in float32
    peaks: Peaks | None


@torch.no_grad()
def results(task: Task) -> Iterator[GroupResult]:
    """Make every way of decoding of a task, prove that they agree, and measure them in turns.

    A way that computes something else, or does not run, is not timed but named.
    Raises: UnavailableError without the device; UsageError.
    """
    device = prepare(task)
    loaded = load_checkpoint(Path(task.checkpoint), image_size=task.image_size)
    image = image_of(task, loaded, device)
    setting = Setting(loaded, image, None if task.dtype == "float32" else TYPES[task.dtype])
    best = None
    if task.kind != PARITY:
        clock = torch_ways.clock_for(device)
        best = peaks(device, TYPES[task.dtype], clock, min(1.0, task.seconds), task.tiny)
    missing = {} if torch_ways.has_peer(loaded) else {torch_ways.PEER: PEER_MISSING}
    ways = []
    for name, make in KINDS[task.kind](setting, task).items():
        with _left_out(missing, name):
            ways.append(make())
    group = Group(task, setting, ways, torch_ways.reference_form(Setting(loaded, image)), best)
    for count in task.prompts:
        yield measure_group(group, count, dict(missing))
        _free(device)


def prepare(task: Task) -> torch.device:
    """Check a task, choose the device and the threads, and let float32 be float32.

    Raises: UnavailableError without the device; UsageError.
    """
    check("device", task.device, PROMPTS)
    check("dtype", task.dtype, DTYPES)
    if task.threads is not None:
        torch.set_num_threads(task.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch_device(task.device)


def embeddings(task: Task) -> str:
    """Say where the image comes from."""
    return DEMO_SCENES if is_demo(Path(task.checkpoint)) and not task.tiny else "synthetic"


def image_of(task: Task, loaded: LoadedDecoder, device: torch.device) -> dict[str, torch.Tensor]:
    """Make the image that everything is decoded on."""
    from_demo = embeddings(task) == DEMO_SCENES
    feed = (demo_images(Path(task.checkpoint), loaded.spec) if from_demo else synthetic_images(loaded.spec))[0]
    return {tensor.name: torch.tensor(feed[tensor.name], device=device) for tensor in loaded.spec.image_inputs}


def _decoder(setting: Setting, task: Task, form: Form | None = None) -> Any:
    return load(
        task.checkpoint, points=BOX_POINTS, form=form, dtype=TYPES[task.dtype], device=task.device,
        image_size=task.image_size,
    )  # fmt: skip


def parity(setting: Setting, task: Task) -> dict[str, Maker]:
    """List Meta's decoder and every fast form."""
    forms: Sequence[Form] = HALF_FORMS if setting.half else (*HALF_FORMS, "low_rank")

    def fast(form: Form) -> Way:
        return torch_ways.kept(_decoder(setting, task, form), setting, f"samx {form}")

    return {
        "baseline": partial(torch_ways.baseline, setting),
        **{f"samx {form}": partial(fast, form) for form in forms},
    }


def plain(setting: Setting, task: Task) -> dict[str, Maker]:
    """List what needs no compiler."""
    makers: dict[str, Maker] = {
        "baseline": partial(torch_ways.baseline, setting),
        "samx eager": lambda: torch_ways.kept(_decoder(setting, task), setting),
        "samx eager, image in every call": lambda: torch_ways.whole(_decoder(setting, task), setting),
    }
    return _with_graphs(makers, task)


def compiled(setting: Setting, task: Task) -> dict[str, Maker]:
    """List what is compiled, beside the baseline as it is; on a processor, as an AOTInductor package too."""
    torch.compiler.reset()  # PyTorch counts compilations of a function, and gives up after eight
    first = partial(torch_ways.baseline, setting)
    makers: dict[str, Maker] = {
        "baseline compiled": lambda: torch_ways.compiled(first()),
        "samx compiled": lambda: torch_ways.compiled(torch_ways.kept(_decoder(setting, task), setting)),
    }
    if task.device == "cpu" and task.dtype in PACKAGED and not task.tiny:
        makers["samx aoti"] = lambda: torch_ways.packaged(_decoder(setting, task), setting)
    return {"baseline": first, **_with_graphs(makers, task)}


def onnx(setting: Setting, task: Task) -> dict[str, Maker]:
    """List the ONNX export in ONNX Runtime, beside the baseline."""
    from samx.benchmarks.torch_onnx import onnx_runtime

    return {"baseline": partial(torch_ways.baseline, setting), "samx ONNX": partial(onnx_runtime, setting)}


def _with_graphs(makers: Mapping[str, Maker], task: Task) -> dict[str, Maker]:
    """List the same again as CUDA graphs, where there is CUDA; both are made, and compiled, once."""
    once = {name: cache(make) for name, make in makers.items()}
    if task.device == "cpu":
        return {**once}
    pool = torch.cuda.graph_pool_handle()

    def graph(make: Maker) -> Way:
        return torch_ways.graphed(make(), pool)

    return {**once, **{f"{name}, CUDA graph": partial(graph, make) for name, make in once.items()}}


KINDS: dict[str, Callable[[Setting, Task], dict[str, Maker]]] = {
    PARITY: parity, "plain": plain, "compiled": compiled, "onnxruntime": onnx,
}  # fmt: skip


def measure_group(group: Group, count: int, missing: dict[str, str]) -> GroupResult:
    """Check and measure every way at one number of prompts; what cannot be measured is left out, and named."""
    task, setting = group.task, group.setting

    def inputs(number: int) -> Prompts:
        feed = box_feed(setting.loaded.spec, number, count)
        return tuple(torch.tensor(value, device=setting.device) for value in feed.values())

    rounds = [inputs(number) for number in range(ceil(task.judged / count))]
    found, wrong = _differences(group, rounds, missing)
    candidates = {way.name: Candidate(way.name, count, partial(_call, way), inputs) for way in group.ways}
    samples: list[Samples] = []
    reached: dict[str, Shares] = {}
    work = {way.name: way.work for way in group.ways}
    if group.peaks is not None:
        with _left_out(missing, *found):
            samples = _measured([candidates[name] for name in found], group, missing)
        for entry in samples:
            taken = median(entry.call_ns)
            reached[entry.name] = shares(setting, work[entry.name], count, BOX_POINTS, taken, group.peaks)
    ratios = _ratios(samples, group.ways[0].name) if group.ways else {}
    return GroupResult(
        task.dtype, count, BOX_POINTS, work, samples, ratios, found, group.peaks, reached, missing, wrong
    )


def _differences(
    group: Group, rounds: Sequence[Prompts], missing: dict[str, str]
) -> tuple[dict[str, Differences], list[str]]:
    """Compare every way with the reference form, which decodes one prompt at a time: it needs the most memory.

    With the differences come the names of those that compute something else.
    """
    found: dict[str, Differences] = {}
    wrong: list[str] = []
    wanted: Outputs = ()
    with _left_out(missing, *(way.name for way in group.ways)):
        wanted = _judged(group.exact, [row for prompts in rounds for row in _one_by_one(prompts)])
    for way in group.ways if wanted else ():
        with _left_out(missing, way.name, wrong=wrong):
            found[way.name] = compare(way.name, _judged(way.call, rounds), wanted, group.task.dtype)
    return found, wrong


def _one_by_one(prompts: Prompts) -> Iterator[Prompts]:
    return zip(*(tensor.split(1) for tensor in prompts), strict=True)


def _judged(call: Call, rounds: Sequence[Prompts]) -> Outputs:
    """Give masks and predicted IoU of several calls; copies, for a call may overwrite what the last one gave."""
    outputs = [[tensor.float().clone() for tensor in call(prompts)[:2]] for prompts in rounds]
    return tuple(torch.cat(parts) for parts in zip(*outputs, strict=True))


class _CallError(Exception):
    """Name the way whose call failed while it was timed."""


def _call(way: Way, prompts: Prompts) -> Outputs:
    try:
        return way.call(prompts)
    except Exception as cause:
        raise _CallError(way.name) from cause


def _measured(candidates: Sequence[Candidate], group: Group, missing: dict[str, str]) -> list[Samples]:
    """Measure in turns; where one fails, the others begin again without it."""
    left, effort = list(candidates), Effort(group.task.seconds, group.task.least)
    while left:
        try:
            return measure(left, effort, torch_ways.clock_for(group.setting.device))
        except _CallError as failure:
            (name,) = failure.args
            missing[name] = _reason(failure.__cause__)
            left = [candidate for candidate in left if candidate.name != name]
        _free(group.setting.device)
    return []


@contextmanager
def _left_out(missing: dict[str, str], *names: str, wrong: list[str] | None = None) -> Iterator[None]:
    """Note why nothing can be measured of these: another result, or whatever PyTorch raises here."""
    try:
        yield
    except Exception as cause:  # compilers, drivers and other people's modules raise nearly anything
        missing |= dict.fromkeys(names, _reason(cause))
        if wrong is not None and isinstance(cause, ParityError):
            wrong += names


def _reason(cause: BaseException | None) -> str:
    lines = str(cause).strip().splitlines()
    words = lines[0] if lines else ""
    if not isinstance(cause, SamxError):
        words = f"{type(cause).__name__}: {words}"
    return words[:REASON_CHARACTERS]


def _free(device: torch.device) -> None:
    """Return memory that nothing holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _ratios(samples: Sequence[Samples], baseline: str) -> dict[str, Ratio]:
    """Compare with the baseline, where it was measured and often enough for an interval."""
    named = by_name(samples)
    first = named.pop(baseline, None)
    if first is None or len(first.call_ns) < RATIO_SAMPLES:
        return {}
    return {name: speedup(first, entry) for name, entry in named.items()}


def main(arguments: Sequence[str]) -> int:
    """Measure a task, and report each result as soon as it is there."""
    given = json.loads(arguments[0])
    try:
        for result in results(Task(**{**given, "prompts": tuple(given["prompts"])})):
            print_report(result.to_json())
    except Exception as cause:  # what a driver raises is the reason that the report gives
        print(_reason(cause), file=sys.stderr)  # noqa: T201 - this is a program
        return cause.exit_code if isinstance(cause, SamxError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
