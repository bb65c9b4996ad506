"""run.py of an ONNX kit, as a device runs it, with NumPy and ONNX Runtime alone; and what goes wrong there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from engine_toys import MODEL, SPEC, toy_onnx
from kits import REPORT, Toy, artifact, call, copied, kit_of, passed_report, runner, suite
from onnx import helper, load_from_string, numpy_helper

from samx.artifacts.store import Artifact
from samx.benchmarks.results import BenchReport
from samx.errors import ArtifactError
from samx.runtimes.onnxruntime import open_artifact
from samx.validators.gate import run_gate
from samx.validators.metrics import bounds_for
from samx.validators.report import ParityReport
from samx.validators.suite import ParitySuite

# Runs before run.py: samx and what it is exported with look as if they had never been installed.
BARE = """
import runpy, sys
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in BLOCKED else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Without
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]  # as pip finds a checkout
sys.argv = ["run.py", *sys.argv[1:]]
runpy.run_path("run.py", run_name="__main__")
"""
NEVER = ("samx", "torch", "onnx", "rich", "typer", "PIL")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifact(tmp_path_factory.mktemp("onnx") / "toy")


@pytest.fixture(scope="module")
def kit(made: Path) -> Path:
    return kit_of(made)


@pytest.fixture(scope="module")
def program(kit: Path) -> ModuleType:
    return runner(kit)


def bare(kit: Path, *arguments: str, blocked: tuple[str, ...] = NEVER) -> subprocess.CompletedProcess[str]:
    """Run the kit's run.py in a process that has no samx."""
    command = [sys.executable, "-c", f"BLOCKED = {blocked!r}\n{BARE}", *arguments]
    return subprocess.run(command, cwd=kit, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def report_file(kit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.json"
    done = bare(kit, "--seconds", "0.05", "-o", str(path))
    assert done.returncode == 0, done.stderr
    return path


def test_the_report_is_one_of_samx_bench(report_file: Path, made: Path) -> None:
    report = BenchReport.load(report_file)
    assert report.partial is None
    assert [(result.scenario, result.prompts, result.points) for result in report.results] == [
        ("click", 1, (2,)), ("batch8", 8, (2,)),
    ]  # fmt: skip
    assert all(len(result.samples_ns) >= 64 for result in report.results)
    subject = report.subjects[0]
    assert (subject.name, subject.target, subject.bytes) == ("toy", "onnx", (made / MODEL).stat().st_size)
    assert report.device.environment["onnxruntime"] == onnxruntime.__version__
    assert "samx bench" in report.not_measured[0].reason


def test_parity_and_placement_stand_beside_the_latency(report_file: Path) -> None:
    subject = BenchReport.load(report_file).subjects[0]
    assert (subject.parity.verdict, subject.parity.source, subject.parity.cases) == ("passed", "fresh", 3)
    assert subject.placement is not None
    assert list(subject.placement["operations"]) == ["cpu"]
    assert subject.placement["details"]["counted"] == "graph nodes"


def test_the_worst_numbers_are_the_gate_s(report_file: Path, made: Path) -> None:
    opened = Artifact.open(made)
    stored = ParitySuite.load(opened.read("parity_cases.npz"))
    gate = run_gate(open_artifact(opened), stored, bounds_for("fp32"), level="graph")
    worst = {name: value for name, (value, _) in gate.worst().items()}
    assert BenchReport.load(report_file).subjects[0].parity.metrics == worst


def test_the_device_is_described(report_file: Path) -> None:
    device = BenchReport.load(report_file).device
    assert device.requested == "cpu"
    assert {"facts", "before", "after"} <= set(device.kinds["cpu"])
    assert any("throttling in between would not show" in flag for flag in device.flags)


def broken(share: float) -> bytes:
    """Write the toy graph with an error."""
    model = load_from_string(toy_onnx())
    for node in model.graph.node:
        if node.output[0] == "low_res_masks":
            node.output[0] = "before"
    model.graph.initializer.append(numpy_helper.from_array(np.array(share, np.float32), "error"))
    model.graph.node.append(helper.make_node("Add", ["before", "error"], ["low_res_masks"]))
    data: bytes = model.SerializeToString()
    return data


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact whose evidence is of another graph."""
    return artifact(tmp_path_factory.mktemp("wrong") / "toy", {MODEL: ("decoder", broken(0.5))})


def test_a_wrong_decoder_is_not_timed(wrong: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kit = kit_of(wrong)
    assert call(runner(kit), kit, tmp_path / "report.json") == 3
    assert "parity was not shown, so nothing was timed: logit_error is 0.5" in capsys.readouterr().err
    with pytest.raises(ArtifactError, match="another format"):
        BenchReport.load(tmp_path / "report.json")
    judged = ParityReport.from_bytes((tmp_path / "report.json").read_bytes(), "report")
    assert not judged.passed
    assert "samples" not in (tmp_path / "report.json").read_text()


def test_the_findings_are_the_gate_s_own(wrong: Path, tmp_path: Path) -> None:
    kit = kit_of(Path(shutil.copytree(wrong, tmp_path / "toy")))
    call(runner(kit), kit, tmp_path / "report.json")
    found = ParityReport.from_bytes((tmp_path / "report.json").read_bytes(), "report")
    opened = Artifact.open(wrong)
    stored = ParitySuite.load(opened.read("parity_cases.npz"))
    gate = run_gate(open_artifact(opened), stored, bounds_for("fp32"), level="graph")
    assert found.cases == gate.cases
    assert (found.metrics, found.failures, found.bounds) == (gate.metrics, gate.failures, gate.bounds)


FILES = ["kit.json", "kit.json.sha256", "parity.npz", "prompts.npz", "run.py", "README.txt", "artifact/manifest.json",
         f"artifact/{MODEL}", f"artifact/{REPORT}"]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.02, 0.5, 0.98])
def test_one_changed_byte_is_refused(
    kit: Path, program: ModuleType, name: str, place: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = copied(kit, tmp_path)
    data = bytearray((damaged / name).read_bytes())
    data[int(place * len(data))] ^= 1
    (damaged / name).write_bytes(data)
    assert call(program, damaged, tmp_path / "report.json") == 6
    assert f"error: {name.removesuffix('.sha256')} is not what was bundled" in capsys.readouterr().err
    assert not (tmp_path / "report.json").exists()


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(kit: Path, program: ModuleType, name: str, tmp_path: Path, capsys: Any) -> None:
    damaged = copied(kit, tmp_path)
    (damaged / name).unlink()
    assert call(program, damaged, tmp_path / "report.json") == 6
    assert f"error: cannot read {name} of this kit" in capsys.readouterr().err


def test_a_changed_runner_refuses_itself(kit: Path, tmp_path: Path) -> None:
    damaged = copied(kit, tmp_path)
    (damaged / "run.py").write_text((damaged / "run.py").read_text() + "\n# more\n")
    done = bare(damaged)
    assert done.returncode == 6
    assert done.stderr.strip() == (
        "error: run.py is not what was bundled: its hash differs. Copy and unpack the kit again."
    )


@pytest.mark.parametrize("missing", ["numpy", "onnxruntime"])
def test_a_missing_library_is_named_in_one_line(kit: Path, missing: str) -> None:
    done = bare(kit, blocked=(*NEVER, missing))
    assert done.returncode == 5
    assert f"python3 -m pip install {missing}" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_old_library_is_refused(
    kit: Path, program: ModuleType, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.19.2")
    assert call(program, kit, tmp_path / "report.json") == 5
    assert "onnxruntime 1.19.2 cannot run this kit, which needs 1.20 or newer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--device", "tpu"), 2, "this kit runs on cpu or cuda"),
        (("--seconds", "0"), 2, "more than 0 s"),
        (("--seconds", "nan"), 2, "more than 0 s"),
        (("--seconds", "inf"), 2, "more than 0 s"),
        (("--device", "cuda"), 5, "this onnxruntime has no CUDAExecutionProvider"),
    ],
)
def test_what_is_not_offered_is_refused(
    kit: Path, program: ModuleType, arguments: tuple[str, ...], code: int, words: str, tmp_path: Path, capsys: Any
) -> None:
    assert call(program, kit, tmp_path / "report.json", *arguments) == code
    assert words in capsys.readouterr().err


def test_a_report_that_exists_is_kept(kit: Path, program: ModuleType, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "report.json").write_text("precious")
    assert call(program, kit, tmp_path / "report.json") == 7
    assert (tmp_path / "report.json").read_text() == "precious"
    assert call(program, kit, tmp_path / "nowhere" / "report.json") == 7
    assert "exists already" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_leaves_nothing(
    kit: Path, program: ModuleType, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    def full(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(program, "os", SimpleNamespace(**{**vars(os), "replace": full}))
    assert call(program, kit, tmp_path / "report.json") == 7
    assert "No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def stopping(monkeypatch: pytest.MonkeyPatch, program: ModuleType, at: int, error: BaseException) -> None:
    """Plant an exception in a call."""
    decode, calls = program.Decoder.decode, []

    def decoding(self: Any, prompts: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            raise error
        return decode(self, prompts)

    monkeypatch.setattr(program.Decoder, "decode", decoding)


@pytest.mark.parametrize(
    ("error", "words"),
    [(KeyboardInterrupt(), "stopped by the user (Ctrl-C), in batch8"),
     (OSError("the device is gone"), "lost in batch8: OSError: the device is gone")],
)  # fmt: skip
def test_an_interruption_leaves_a_marked_report(
    kit: Path, program: ModuleType, error: BaseException, words: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    measure = program.measure

    def measuring(kit: Any, decoder: Any, seconds: float, rows: Any) -> Any:
        done = measure(kit, decoder, seconds, rows[:1])
        stopping(monkeypatch, program, 5, error)
        return done or measure(kit, decoder, seconds, rows[1:])

    monkeypatch.setattr(program, "measure", measuring)
    assert call(program, kit, tmp_path / "report.json") == 4
    report = BenchReport.load(tmp_path / "report.json")
    assert report.partial == words
    assert report.results[0].scenario == "click"
    assert words in capsys.readouterr().err


def test_an_interrupted_comparison_shows_nothing(
    kit: Path, program: ModuleType, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    stopping(monkeypatch, program, 2, KeyboardInterrupt())
    assert call(program, kit, tmp_path / "report.json") == 3
    judged = ParityReport.from_bytes((tmp_path / "report.json").read_bytes(), "report")
    assert judged.failures == ("stopped by the user (Ctrl-C) after 1 of 3 cases",)
    assert not judged.passed
    assert "stopped by the user" in capsys.readouterr().err


def test_the_machine_is_read_before_the_comparison_makes_load(
    kit: Path, program: ModuleType, tmp_path: Path, monkeypatch: Any
) -> None:
    readings, check, log = program.readings, program.check_parity, list[str]()

    def reading(part: str) -> Any:
        log.append(part)
        return readings(part)

    def checking(*arguments: Any) -> Any:
        log.append("parity")
        return check(*arguments)

    monkeypatch.setattr(program, "readings", reading)
    monkeypatch.setattr(program, "check_parity", checking)
    assert call(program, kit, tmp_path / "report.json") == 0
    assert log[:3] == ["moving", "parity", "moving"]


def test_a_busy_machine_is_flagged(kit: Path, program: ModuleType, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    assert call(program, kit, tmp_path / "report.json") == 0
    flags = BenchReport.load(tmp_path / "report.json").device.flags
    assert any(flag.startswith("the machine was busy before the run: load 99.00 on") for flag in flags)


def heed_interrupts() -> None:
    """Undo what a shell does to programs in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_real_ctrl_c_leaves_a_marked_report(kit: Path, tmp_path: Path) -> None:
    command = [sys.executable, "run.py", "--seconds", "60", "-o", str(tmp_path / "report.json")]
    with subprocess.Popen(
        command, cwd=kit, text=True, preexec_fn=heed_interrupts, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.strip().startswith("click"):
                break
        time.sleep(1.0)  # into the timed calls
        child.send_signal(signal.SIGINT)
        _, words = child.communicate(timeout=60)
    assert child.returncode == 4, words
    report = BenchReport.load(tmp_path / "report.json")
    assert report.partial == "stopped by the user (Ctrl-C), in click"
    assert len(report.results[0].samples_ns) > 0


def test_work_that_ran_elsewhere_fails_parity(
    kit: Path, program: ModuleType, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(program.OnnxRuntime, "placement", lambda self: ({"cpu": 3, "NeuralThing": 2}, {}))
    assert call(program, kit, tmp_path / "report.json") == 3
    assert "asked for cpu, ran 3 operations on cpu, 2 operations on NeuralThing" in capsys.readouterr().err


def test_a_library_that_cannot_count_nodes_counts_graphs(
    kit: Path, program: ModuleType, tmp_path: Path, monkeypatch: Any
) -> None:
    opened = onnxruntime.InferenceSession

    class Older:
        """A session of ONNX Runtime 1.23, which does not list nodes."""

        def __init__(self, *arguments: Any, **more: Any) -> None:
            session = opened(*arguments, **more)
            self.run, self.get_outputs = session.run, session.get_outputs

    monkeypatch.setattr(onnxruntime, "InferenceSession", Older)
    assert call(program, kit, tmp_path / "report.json") == 0
    placement = BenchReport.load(tmp_path / "report.json").subjects[0].placement
    assert placement is not None
    assert (placement["operations"], placement["details"]["counted"]) == ({"cpu": 1}, "graphs")


def test_a_file_that_the_library_does_not_open_is_one_line(tmp_path: Path, capsys: Any) -> None:
    kit = kit_of(artifact(tmp_path / "toy", {MODEL: ("decoder", b"no graph")}))
    assert call(runner(kit), kit, tmp_path / "report.json") == 5
    assert "error: onnxruntime does not open the decoder on 'cpu'" in capsys.readouterr().err


def test_a_split_artifact_runs_both_graphs(tmp_path: Path) -> None:
    model = load_from_string(toy_onnx())
    nodes, constants = {node.output[0]: node for node in model.graph.node}, list(model.graph.initializer)
    mean = helper.make_tensor_value_info("e", 1, [1, 1, 1, 1])
    inputs, outputs = {value.name: value for value in model.graph.input}, list(model.graph.output)
    one = helper.make_graph([nodes.pop("e")], "image", [inputs.pop("image_embeddings")], [mean], constants)
    two = helper.make_graph(list(nodes.values()), "prompt", [mean, *inputs.values()], outputs, constants)
    made = [helper.make_model(graph, opset_imports=model.opset_import, ir_version=9) for graph in (one, two)]
    files = {
        f"{role}.onnx": (role, part.SerializeToString()) for role, part in zip(("image", "prompt"), made, strict=True)
    }
    kit = kit_of(artifact(tmp_path / "toy", files, options={"split": True}))
    assert call(runner(kit), kit, tmp_path / "report.json", "--quick") == 0
    report = BenchReport.load(tmp_path / "report.json")
    assert report.quick
    assert report.subjects[0].bytes == sum(len(data) for _, data in files.values())


def test_slots_are_filled_and_prompts_cut_as_samx_does(tmp_path: Path) -> None:
    from samx.runtimes.base import Padding, Runtime

    kit = kit_of(artifact(tmp_path / "toy", options={"slots": True, "points": [2, 2, 4], "prompts": [2, 2, 3]}))
    program, asked = runner(kit), list[Any]()

    class Recorder:
        """Stand for both sides' libraries, and note what they are given."""

        def decode(self, prompts: Any) -> Any:
            """Note shapes."""
            asked.append({name: value.copy() for name, value in prompts.items()})
            return Toy().decode(prompts)

    class Theirs(Runtime):
        """Let samx's own base class cut and fill."""

        def placement(self) -> Any:
            """Nobody asks."""

        def _set_image(self, image: Any) -> None: ...

        def _decode(self, prompts: Any) -> Any:
            return Recorder().decode(prompts)

    place = json.loads((kit / "kit.json").read_bytes())["devices"]["cpu"]
    ours = object.__new__(program.Decoder)
    ours.place, ours.runs = place, Recorder()
    theirs = Theirs(SPEC, padding=Padding.of({"slots": True, "points": [2, 2, 4], "prompts": [2, 2, 3]}, "toy"))
    theirs.set_image({"image_embeddings": np.zeros((1, 256, 1, 1), np.float32)})
    for n, points in ((1, 1), (1, 3), (5, 2), (7, 1)):
        feed = {"point_coords": np.ones((n, points, 2), np.float32), "point_labels": np.ones((n, points), np.float32)}
        found, given = ours.decode(feed), list(asked)
        asked.clear()
        expected = theirs.decode(feed)
        assert [{name: value.tolist() for name, value in one.items()} for one in given] == [
            {name: value.tolist() for name, value in one.items()} for one in asked
        ]
        asked.clear()
        assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_a_suite_that_passes_is_the_one_that_was_asked(made: Path) -> None:
    assert ParityReport.from_bytes((made / REPORT).read_bytes(), "report").metrics == passed_report(suite()).metrics
