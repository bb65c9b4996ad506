"""The program that a CUDA machine runs: parts that fail are named, time ends it, the report is whole and honest."""

from __future__ import annotations

import json
import os
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import save_file
from toys import one_thread as one_thread
from toys import toy_decoder

from samx import console
from samx.benchmarks import gpu, torch_measure, torch_plan
from samx.benchmarks.contenders import pytorch as torch_ways
from samx.benchmarks.contenders.pytorch import Prompts, Way, Work
from samx.benchmarks.gpu import NO_TIME, enforce, file_names, measure, start
from samx.benchmarks.gpu_report import markdown
from samx.benchmarks.processes import MARK, reports_of
from samx.benchmarks.torch_plan import Task
from samx.benchmarks.wheels import unpack, wheels_on_path
from samx.errors import InputError, UnavailableError, UsageError
from samx.models.spec import sam1_spec
from samx.progress import silent

pytestmark = pytest.mark.usefixtures("one_thread")
SECOND_NS = 1_000_000_000
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = sam1_spec(image_size=128)
    path = tmp_path_factory.mktemp("checkpoint") / "toy.safetensors"
    save_file(toy_decoder(spec).state_dict(), path, {"image_size": str(spec.image_size)})
    return path


def inside(task: Task, limit_s: float) -> gpu.Found:
    """Measure in this process, where tests can plant faults."""
    found = [result.to_json() for result in torch_measure.results(task)]
    return json.loads(json.dumps(found)), None


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "start", inside)
    monkeypatch.setattr(torch_plan, "TINY_IMAGE_PX", 128)
    monkeypatch.setattr(torch_plan, "TINY_JUDGED", 1)


def run(*arguments: str) -> int:
    """Run the program as the shell would, and give its exit code."""
    app = typer.Typer(add_completion=False)
    app.command()(gpu.gpu)
    return console.run(lambda: app(list(arguments), standalone_mode=False), as_json=False)


def tiny(checkpoint: Path, output: Path, *arguments: str) -> int:
    base = ["--device", "cpu", "--tiny", "--seconds", "0", "--least", "6", "--dtype", "float32"]
    return run(*base, "--checkpoint", str(checkpoint), "--output", str(output), *arguments)


def report_in(folder: Path) -> tuple[dict[str, Any], str]:
    """Read the two files, the only ones there."""
    json_file, page = sorted(folder.iterdir())
    assert (json_file.suffix, page.suffix, json_file.stem) == (".json", ".md", page.stem)
    return json.loads(json_file.read_text()), page.read_text(encoding="utf-8")


@pytest.mark.usefixtures("quick")
def test_the_report_holds_raw_samples_and_says_that_it_is_of_a_processor(checkpoint: Path, tmp_path: Path) -> None:
    parts = ("--part", "parity", "--part", "plain", "--prompts", "1", "--prompts", "2")
    assert tiny(checkpoint, tmp_path, *parts) == 0
    report, page = report_in(tmp_path)
    assert all("-cpu-no-gpu-figures-tiny." in path.name for path in tmp_path.iterdir())
    assert (report["schema"], report["device_kind"], report["tiny"]) == ("samx-benchmark-gpu/1", "cpu", True)
    assert page.startswith("# PyTorch forms on a CPU: these are no GPU figures\n")
    assert "**Tiny sizes: this proves that the program works." in page
    assert [part["name"] for part in report["parts"]] == ["parity float32", "plain float32"]
    first, second = report["parts"][1]["results"]
    assert all(len(entry["call_ns"]) >= 6 for result in (first, second) for entry in result["samples"])
    (line,) = (line for line in page.splitlines() if line.startswith("| 2 | samx eager |"))
    median_us = 1e3 * second["samples"][1]["summary"]["median_ms"]
    assert float(line.split("|")[3]) == pytest.approx(median_us, rel=0.01)
    assert line.split("|")[5].split()[0] == f"{second['ratios']['samx eager']['value']:.2f}"
    assert page.rstrip().endswith("Everything was measured.")
    assert {"torch", "python", "triton", "nvidia-ml-py"} <= set(report["environment"])
    assert report["telemetry"]["devices"]
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert tiny(checkpoint, tmp_path, *parts) == 7
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert tiny(checkpoint, tmp_path, "--part", "parity", "--prompts", "1", "--force") == 0
    assert len(report_in(tmp_path)[0]["parts"]) == 1


Planted = Callable[[torch_ways.Setting, Prompts], tuple[torch.Tensor, ...]]


def plant(monkeypatch: pytest.MonkeyPatch, name: str, decode: Planted) -> None:
    """Compare and measure this decoder beside the baseline."""

    def makers(setting: torch_ways.Setting, task: Task) -> dict[str, torch_measure.Maker]:
        way = Way(name, partial(decode, setting), Work("direct", keeps_image=True))
        return {"baseline": partial(torch_ways.baseline, setting), name: lambda: way}

    for kind in ("parity", "plain"):
        monkeypatch.setitem(torch_measure.KINDS, kind, makers)


def failing(setting: torch_ways.Setting, prompts: Prompts) -> tuple[torch.Tensor, ...]:
    raise RuntimeError("no kernel image is available")


def wrong(setting: torch_ways.Setting, prompts: Prompts) -> tuple[torch.Tensor, ...]:
    masks, *others = torch_ways.reference_form(setting)(prompts)
    return -masks, *others


@pytest.mark.usefixtures("quick")
def test_a_decoder_that_fails_is_named_and_stops_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, "samx failing", failing)
    assert tiny(checkpoint, tmp_path, "--part", "parity", "--part", "plain", "--prompts", "1") == 0
    report, page = report_in(tmp_path)
    where = "parity float32, N = 1; plain float32, N = 1"
    assert f"- {where}: samx failing: RuntimeError: no kernel image is available" in page
    assert [entry["name"] for entry in report["parts"][1]["results"][0]["samples"]] == ["segment-anything eager"]


@pytest.mark.usefixtures("quick")
def test_wrong_masks_end_with_3_after_the_report_was_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, "samx wrong", wrong)
    assert tiny(checkpoint, tmp_path, "--part", "parity", "--part", "plain", "--prompts", "1") == 3
    report, page = report_in(tmp_path)
    assert report["parts"][0]["results"][0]["wrong"] == ["samx wrong"]
    assert "| float32 | samx wrong |  |  |  | **WRONG**, see below |" in page
    assert "; plain float32, N = 1: samx wrong: samx wrong differs from the reference form in float32" in page
    assert all(entry["name"] != "samx wrong" for part in report["parts"] for entry in part["results"][0]["samples"])


@NO_GPU
def test_without_cuda_one_line_names_the_other_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--output", str(tmp_path)) == 5
    error = capsys.readouterr().err
    assert "PyTorch finds no CUDA device" in error
    assert "--device cpu" in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_refused_before_any_work(tmp_path: Path) -> None:
    assert run("--device", "cpu", "--tiny", "--output", str(tmp_path / "none")) == 2


def tasks(*kinds: str) -> list[Task]:
    return [Task(kind, device="cpu", prompts=(1, 2)) for kind in kinds]


def test_what_has_no_time_left_is_named() -> None:
    """Of 480 s, the first takes its whole share and 400 s more, as one does that cannot be stopped at once."""
    now, limits = [0], []

    def slow(task: Task, limit_s: float) -> gpu.Found:
        limits.append(limit_s)
        now[0] += int((limit_s + 400) * SECOND_NS)
        return [], "it did not finish"

    parts = list(measure(tasks("parity", "plain", "onnxruntime"), 480, 0, silent, slow, lambda: now[0]))
    assert limits == [60.0, 5.0]
    assert [part["failure"] for part in parts] == ["it did not finish", "it did not finish", NO_TIME]
    assert parts[2]["limit_s"] == 0


def blank(**changes: Any) -> dict[str, Any]:
    """Make the report of a GPU on which nothing ran."""
    parts = [{"name": "plain float16", "task": {"kind": "plain", "dtype": "float16", "prompts": [1, 64]},
              "limit_s": 1.0, "spent_s": 1.0, "failure": NO_TIME, "results": []}]  # fmt: skip
    facts = dict.fromkeys(("platform", "cpu", "cpus_usable", "load_1min", "python", "torch", "triton", "onnxruntime",
                           "segment-anything"), "x")  # fmt: skip
    base = {"device_kind": "cuda", "device": {"gpu": "NVIDIA H100 80GB HBM3"}, "tiny": False, "environment": facts,
            "created": "2026-11-27T00:00:00+00:00", "embeddings": "synthetic", "image_size": 1024, "checkpoint": "c",
            "checkpoint_sha256": "0" * 64, "wheels": [], "parts": parts,
            "telemetry": {"flags": [], "samples": [{"readings": {"nvidia": {"clock_sm": 1980}}},
                                                   {"readings": {"nvidia": {"clock_sm": 1755}}}]}}  # fmt: skip
    return {**base, **changes}


def test_a_report_of_nothing_ends_with_5() -> None:
    page = markdown(blank())
    assert f"- plain float16, N = 1, 64: {NO_TIME}" in page
    assert "Nothing was timed." in page
    with pytest.raises(UnavailableError, match=f"nothing could be measured here: found plain float16: {NO_TIME}"):
        enforce(blank())


def test_parity_alone_is_no_measurement_where_one_was_asked_for() -> None:
    (part,) = blank()["parts"]
    compared = {**part, "results": [{"wrong": [], "differences": {"samx eager": {}}, "samples": []}]}
    with pytest.raises(UnavailableError, match="nothing could be measured here"):
        enforce(blank(parts=[compared]))
    enforce(blank(parts=[{**compared, "task": {"kind": "parity"}}]))


def test_a_gpus_report_is_named_after_it_and_shows_its_clocks() -> None:
    stem = "2026-11-27-pytorch-nvidia-h100-80gb-hbm3"
    assert file_names(blank()) == (f"{stem}.json", f"{stem}.md")
    assert file_names(blank(tiny=True))[1] == f"{stem}-tiny.md"
    assert "| GPU clock | 1755 to 1980 MHz |" in markdown(blank())


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


def test_a_task_runs_in_a_process_of_its_own(checkpoint: Path) -> None:
    task = Task("parity", prompts=(1,), checkpoint=str(checkpoint), tiny=True, threads=1)
    (result,), failure = start(task, 250)
    assert failure is None
    assert list(result["differences"])[1:] == ["samx absorbed", "samx direct", "samx low_rank"]
    _, failure = start(replace(task, checkpoint="nothing.safetensors"), 250)
    assert failure is not None
    assert "exit code 6; its last words: " in failure
    assert "Traceback" not in failure


def wheel(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


@pytest.fixture
def unimported() -> Iterator[None]:
    yield
    sys.modules.pop("brought_along", None)


@pytest.mark.usefixtures("unimported")
def test_wheels_are_imported_from_by_this_process_and_its_children_and_are_gone_afterwards(tmp_path: Path) -> None:
    wheel(tmp_path / "brought_along-1-py3-none-any.whl", {"brought_along/__init__.py": "HERE = __file__"})
    before = list(sys.path), os.environ.get("PYTHONPATH")
    with wheels_on_path(tmp_path) as names:
        assert names == ["brought_along-1-py3-none-any.whl"]
        import brought_along  # type: ignore[import-not-found]

        program = f"import brought_along\nprint({MARK!r} + '{{\"n\": 3}}')"
        assert child(program) == ([{"n": 3}], None)
    assert not Path(brought_along.HERE).exists()
    assert (list(sys.path), os.environ.get("PYTHONPATH")) == before


@pytest.mark.parametrize("name", ["../outside.py", "/tmp/outside.py", "a\\..\\b.py", "C:/b.py"])
def test_a_wheel_that_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    path = wheel(tmp_path / "bad.whl", {"good.py": "", name: "planted"})
    with pytest.raises(InputError, match="leads elsewhere"):
        unpack(path, tmp_path / "in")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bad.whl"]


def test_damaged_wheels_and_folders_without_any_are_refused(tmp_path: Path) -> None:
    path = wheel(tmp_path / "cut.whl", {"good.py": "x = 1\n" * 100})
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"cut\.whl' cannot be unpacked"), wheels_on_path(tmp_path):
        pass
    path.unlink()
    with pytest.raises(UsageError, match="no wheels to bring along"), wheels_on_path(tmp_path):
        pass
    with pytest.raises(UsageError, match="no wheels to bring along"), wheels_on_path(tmp_path / "none"):
        pass


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_program_is_proven_on_a_processor(tmp_path: Path) -> None:
    """As a user runs it: every part in its own process, compiled ones too."""
    assert run("--device", "cpu", "--tiny", "--budget", "1500", "--output", str(tmp_path)) == 0
    report, page = report_in(tmp_path)
    assert [part["name"] for part in report["parts"] if part["task"]["kind"] == "compiled"] == ["compiled float32"]
    assert [part["failure"] for part in report["parts"]] == [None] * 8
    assert "Everything was measured." in page
