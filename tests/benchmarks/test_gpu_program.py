"""The program that a CUDA machine runs: parts that fail are named, time ends it, the report is whole and honest."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from bench_toys import toy_report, toy_result, toy_subject
from safetensors.torch import save_file
from toys import one_thread as one_thread
from toys import toy_decoder

from samx import console
from samx.benchmarks import contenders, gpu
from samx.benchmarks.gpu import KINDS, NO_GPU, NO_TIME, TINY, Part, file_name, in_budget, merged, plan, start
from samx.benchmarks.processes import MARK, reports_of
from samx.benchmarks.results import BenchReport, NotMeasured, Roofline
from samx.errors import UnavailableError, UsageError
from samx.models.spec import sam1_spec
from samx.progress import silent

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]
SECOND_NS = 1_000_000_000
HAS_NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = sam1_spec(image_size=128)
    path = tmp_path_factory.mktemp("checkpoint") / "toy.safetensors"
    save_file(toy_decoder(spec).state_dict(), path)  # it fits pictures of any size
    return path


def inside(part: Part, limit_s: float) -> gpu.Found:
    """Measure in this process, where tests can plant faults."""
    return list(gpu.measured(part))[-1], None


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "start", inside)
    monkeypatch.setattr(gpu, "TINY_IMAGE_PX", 128)


def run(*arguments: str) -> int:
    """Run the program as the shell would, and give its exit code."""
    app = typer.Typer(add_completion=False)
    app.command()(gpu.gpu)
    return console.run(lambda: app(list(arguments), standalone_mode=False), as_json=False)


def tiny(checkpoint: Path, output: Path, *arguments: str) -> int:
    base = [
        "--device",
        "cpu",
        "--tiny",
        "--threads",
        "1",
        "--precision",
        "fp32",
        "--scenario",
        "click",
        "--part",
        "plain",
    ]
    return run(*base, "--checkpoint", str(checkpoint), "--output", str(output), *arguments)


def report_in(folder: Path) -> BenchReport:
    (file,) = folder.iterdir()
    return BenchReport.load(file)


@pytest.mark.usefixtures("quick")
def test_the_report_is_that_of_samx_bench_and_says_that_it_is_of_a_processor(checkpoint: Path, tmp_path: Path) -> None:
    assert tiny(checkpoint, tmp_path) == 0
    report = report_in(tmp_path)
    assert next(tmp_path.iterdir()).name.endswith("-pytorch-cpu-no-gpu-figures-tiny.json")
    assert report.flags[:2] == (NO_GPU, TINY)
    assert [subject.name for subject in report.subjects] == ["meta-pytorch", "reference", "pytorch", "pytorch-whole"]
    assert all(len(report.find(subject.name, "click").samples_ns) >= 10 for subject in report.subjects)  # type: ignore[union-attr]
    assert [ratio.candidate for ratio in report.ratios] == ["reference", "pytorch", "pytorch-whole"]
    assert {ratio.baseline for ratio in report.ratios} == {"meta-pytorch"}
    (line,) = report.rooflines
    assert [need.subject for need in line.needs] == [subject.name for subject in report.subjects]
    assert line.share(line.needs[0], 1.0) is not None
    assert report.device.kinds
    assert {"torch", "python", "threads"} <= set(report.device.environment)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert tiny(checkpoint, tmp_path) == 7
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def plant(monkeypatch: pytest.MonkeyPatch, opener: str) -> None:
    """Open another thing in the place of our fast form."""
    entries = [
        replace(entry, open=f"test_torch_ways:{opener}") if entry.name == "pytorch" else entry
        for entry in contenders.CONTENDERS
    ]
    monkeypatch.setattr(contenders, "CONTENDERS", tuple(entries))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("opener", "code"), [("broken", 0), ("shifted", 3)])
def test_a_decoder_that_fails_is_named_and_one_that_is_wrong_ends_with_3_after_the_report_was_written(
    opener: str, code: int, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, opener)
    assert tiny(checkpoint, tmp_path) == code
    report = report_in(tmp_path)
    (entry,) = [entry for entry in report.not_measured if entry.scenario is None and entry.phase is None]
    assert (entry.subject, entry.wrong) == ("pytorch", code == 3)
    assert [subject.name for subject in report.subjects] == ["meta-pytorch", "reference", "pytorch-whole"]


@HAS_NO_GPU
def test_without_cuda_one_line_names_the_other_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--output", str(tmp_path)) == 5
    error = capsys.readouterr().err
    assert "PyTorch finds no CUDA device" in error
    assert "--device cpu" in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_refused_before_any_work(tmp_path: Path) -> None:
    assert run("--device", "cpu", "--tiny", "--output", str(tmp_path / "none")) == 2


PLAIN = Part("plain", "fp32", "cuda", "none")


def test_what_matters_most_comes_first_and_what_is_not_offered_is_refused() -> None:
    assert [part.name for part in plan(PLAIN, (), ())][:3] == ["plain fp16", "plain bf16", "plain fp32"]
    assert {part.precision for part in plan(replace(PLAIN, device="cpu"), (), ())} == {"fp32"}
    assert [part.name for part in plan(PLAIN, ["fp16"], ["plain"])] == ["plain fp16"]
    for precisions, kinds, words in ((["fp16"], ["onnxruntime"], "nothing to measure"), (["fp64"], [], "found fp64"),
                                     ([], ["fast"], "found fast")):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            plan(PLAIN, precisions, kinds)
    with pytest.raises(UsageError, match="found tpu"):
        plan(replace(PLAIN, device="tpu"), (), ())


def test_every_part_begins_with_the_baseline_and_graphs_need_cuda() -> None:
    for kind in KINDS:
        names = [entry.title for entry in Part(kind, "fp32", "cuda", "none").contenders()]
        assert names[:2] == ["meta-pytorch", "reference"]
        assert names[2:] == list(KINDS[kind])
    halves = Part("compiled", "bf16", "cpu", "none").contenders()
    assert [entry.title for entry in halves[2:]] == ["meta-pytorch-compiled-bf16", "pytorch-compiled-bf16"]


def parts(*kinds: str) -> list[Part]:
    return [replace(PLAIN, kind=kind) for kind in kinds]


def test_what_has_no_time_left_is_named() -> None:
    """Of 480 s, the first takes its whole share and 365 s more, as one does that cannot be stopped at once."""
    now, limits = [0], []

    def slow(part: Part, limit_s: float) -> gpu.Found:
        limits.append(limit_s)
        now[0] += int((limit_s + 365) * SECOND_NS)
        return None, "it did not finish"

    found = list(in_budget(parts("plain", "compiled", "onnxruntime"), 480, 0, silent, slow, lambda: now[0]))
    assert limits == [96.0, 4.0]
    assert [failure for _, failure in found] == ["it did not finish", "it did not finish", NO_TIME]


def test_a_report_of_nothing_ends_with_5() -> None:
    with pytest.raises(UnavailableError, match=f"nothing could be measured here: found plain fp32: {NO_TIME}"):
        merged(parts("plain"), [(None, NO_TIME)])


def test_parts_make_one_report_that_can_be_read_back() -> None:
    line = Roofline(None, {"value": 1.0, "unit": "x", "reason": None}, {"value": 1.0, "unit": "x", "reason": None}, ())
    one = toy_report(rooflines=(line,))
    other = toy_report(
        subjects=(toy_subject("c"),), results=(toy_result("c"),), ratios=(), not_measured=(), rooflines=(line,),
        partial="lost",
    )  # fmt: skip
    found = merged(parts("plain", "compiled", "onnxruntime"), [(one, None), (other, None), (None, "died")])
    assert BenchReport.from_bytes(found.to_bytes(), "report") == found
    assert [subject.name for subject in found.subjects] == ["a", "b", "c"]
    assert {result.subject for result in found.results} == {"a", "b", "c"}
    assert [(ratio.baseline, ratio.candidate) for ratio in found.ratios] == [("a", "b")]
    assert len(found.rooflines) == 2
    assert NotMeasured("onnxruntime fp32", None, None, "died") in found.not_measured
    assert NotMeasured("compiled fp32", None, None, "lost") in found.not_measured


def test_a_parts_own_baseline_has_its_name(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "TINY_IMAGE_PX", 128)
    monkeypatch.setattr(gpu, "KINDS", {**KINDS, "compiled": ("pytorch",)})
    part = Part("compiled", "fp32", "cpu", str(checkpoint), ("click",), 0.001, 1, tiny=True)
    names = [subject.name for subject in next(gpu.measured(part)).subjects]
    assert names == ["meta-pytorch (compiled)", "reference (compiled)", "pytorch"]


def test_a_gpus_report_is_named_after_it() -> None:
    facts, created = {"gpu": "NVIDIA H100 80GB HBM3"}, "2026-11-27T00:00:00+00:00"
    assert file_name(created, facts, tiny=False) == "2026-11-27-pytorch-nvidia-h100-80gb-hbm3.json"
    assert file_name(created, facts, tiny=True) == "2026-11-27-pytorch-nvidia-h100-80gb-hbm3-tiny.json"
    assert "cpu-no-gpu-figures" in file_name(created, {}, tiny=False)


def child(program: str, limit_s: float = 60.0) -> tuple[list[dict[str, Any]], str | None]:
    return reports_of([sys.executable, "-c", program], ["n"], limit_s)


def gone(pid: int, wait_s: float = 10.0) -> bool:
    """Tell whether a process ends soon; one that nobody has collected yet counts."""
    status, end = Path(f"/proc/{pid}/stat"), time.monotonic() + wait_s
    while time.monotonic() < end:
        try:
            if status.read_text().split()[2] in "ZX":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_a_child_reported_before_it_was_stopped_counts() -> None:
    """With the line that it was writing left out, and the process that it had started stopped with it."""
    program = (
        "import subprocess, sys, time\n"
        f"print({MARK!r} + '{{\"n\": 1}}', flush=True)\n"
        f"print({MARK!r} + '{{\"n\"', end='', flush=True)\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(other.pid, file=sys.stderr, flush=True)\n"
        "time.sleep(60)"
    )
    found, failure = child(program, 3.0)
    assert found == [{"n": 1}]
    assert failure is not None
    assert failure.startswith("it did not finish in 3 s; its last words: ")
    assert gone(int(failure.split()[-1]))


def test_a_child_that_dies_is_named_with_what_it_had_reported() -> None:
    found, failure = child(f"import os\nprint({MARK!r} + '{{\"n\": 2}}', flush=True)\nos.abort()")
    assert (found, failure) == ([{"n": 2}], "exit code -6")


def test_a_part_runs_in_a_process_of_its_own(checkpoint: Path) -> None:
    part = Part("plain", "fp32", "cpu", str(checkpoint), ("click",), 0.001, 1, tiny=True)
    report, failure = start(part, 250)
    assert failure is None
    assert report is not None
    assert [subject.target for subject in report.subjects] == ["meta-pytorch", "reference", "pytorch", "pytorch-whole"]
    _, failure = start(replace(part, checkpoint="nothing.safetensors"), 250)
    assert failure is not None
    assert "exit code 6; its last words: " in failure
    assert "Traceback" not in failure


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_program_is_proven_on_a_processor(tmp_path: Path) -> None:
    """As a user runs it: every part in its own process, compiled ones too."""
    assert run("--device", "cpu", "--tiny", "--budget", "1500", "--output", str(tmp_path)) == 0
    report = report_in(tmp_path)
    assert [entry for entry in report.not_measured if entry.phase is None] == []
    assert {"pytorch-compiled", "onnx-bound", "pytorch-bf16"} <= {subject.name for subject in report.subjects}
