"""samx.pyz on a device that has NumPy and one backend's library alone; and what goes wrong there."""

from __future__ import annotations

import ast
import inspect
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_toys import MODEL, toy_onnx
from kits import ONNX_RUNTIME, artifact, bare_python, copied, engine_artifact, kit_of, on_device
from onnx import helper, load_from_string, numpy_helper
from PIL import Image
from typer.testing import CliRunner

import samx
from samx import cli, cli_dataset, cli_measure, cli_plain, cli_segment, cli_web
from samx.artifacts.store import Artifact
from samx.benchmarks.results import BenchReport
from samx.cli import app
from samx.commands.report import report
from samx.processing.rasters import png_bytes
from samx.validators.report import ParityReport

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pyz")
    made = kit_of(artifact(folder / "toy"))
    (made / "photo.png").write_bytes(png_bytes(PICTURE))
    np.savez(made / "photo.npz", image_embeddings=np.zeros((1, 256, 1, 1), np.float32))
    return made


def test_the_device_has_nothing_else() -> None:
    code = "import importlib.util as u; print([n for n in {} if u.find_spec(n)])".format(
        ["PIL", "typer", "rich", "click", "torch", "onnx", "samx", "numpy", "onnxruntime"]
    )
    done = subprocess.run(
        [bare_python(*ONNX_RUNTIME), "-c", code], cwd="/", capture_output=True, text=True, check=True, env={}
    )
    assert ast.literal_eval(done.stdout) == ["numpy", "onnxruntime"]


def test_an_artifact_is_validated(kit: Path, tmp_path: Path) -> None:
    done = on_device(kit, "validate", "artifact", "--report", str(tmp_path / "parity.json"))
    assert done.returncode == 0, done.stderr
    judged = ParityReport.from_bytes((tmp_path / "parity.json").read_bytes(), "report")
    assert judged.passed
    asked = [case.name for case in judged.cases]
    assert len(asked) > 3  # the suite's, and those that were drawn
    assert sum("_prompts_of_" in name for name in asked) > 1


def test_an_artifact_is_measured_and_the_report_is_the_usual_one(kit: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    done = on_device(kit, "bench", "artifact", "--quick", "--seconds", "0.05", "-o", str(path))
    assert done.returncode == 0, done.stderr
    found = BenchReport.load(path)
    assert found.partial is None
    assert {result.scenario for result in found.results} == {"click", "box", "batch8", "cold"}
    assert found.subjects[0].parity.verdict == "passed"
    assert all(line.multiply_adds_per_s["value"] > 0 for line in found.rooflines)
    assert "artifact" in report([path])["markdown"]


def test_a_picture_is_segmented_without_pillow(kit: Path, tmp_path: Path) -> None:
    asked = "segment", "photo.png", "--model", "artifact", "--embedding", "photo.npz", "--point", "10,10"
    done = on_device(kit, *asked, "--box", "2,3,40,30", "-o", str(tmp_path / "overlay.png"))
    assert done.returncode == 0, done.stderr
    drawn = np.asarray(Image.open(tmp_path / "overlay.png"))
    assert drawn.shape == PICTURE.shape
    assert (drawn != PICTURE).any()


def test_a_picture_that_needs_pillow_is_one_line(kit: Path, tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "photo.jpg")
    asked = "--model", "artifact", "--embedding", "photo.npz", "--point", "10,10"
    done = on_device(kit, "segment", str(tmp_path / "photo.jpg"), *asked)
    assert done.returncode == 6
    assert "Install Pillow" in last_line(done)


def test_the_machine_is_described(kit: Path) -> None:
    done = on_device(kit, "doctor", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["samx"] == samx.__version__


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the error's line; nothing beside it but the steps that were told."""
    lines = [line for line in done.stderr.splitlines() if not line.endswith("...")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


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


def test_a_wrong_decoder_is_neither_passed_nor_timed(tmp_path: Path) -> None:
    """The evidence is of another graph."""
    wrong = kit_of(artifact(tmp_path / "toy", {MODEL: ("decoder", broken(0.5))}))
    assert on_device(wrong, "validate", "artifact").returncode == 3
    done = on_device(wrong, "bench", "artifact", "--quick", "-o", "report.json")
    assert done.returncode == 3
    assert not (wrong / "report.json").exists()


FILES = ["kit.sha256", "samx.pyz", "README.txt", "artifact/manifest.json", f"artifact/{MODEL}",
         "artifact/parity_report.json", "artifact/parity_cases.npz"]  # fmt: skip


def outcome(kit: Path) -> tuple[int, str]:
    """Start samx.pyz's own check in a moment, without an environment of its own."""
    done = subprocess.run(
        [sys.executable, "samx.pyz", "--version"], cwd=kit, capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stderr


def test_a_whole_kit_starts(kit: Path) -> None:
    assert outcome(kit) == (0, "")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_one_changed_byte_is_refused(kit: Path, name: str, place: float, tmp_path: Path) -> None:
    damaged = copied(kit, tmp_path)
    data = bytearray((damaged / name).read_bytes())
    data[int(place * len(data))] ^= 1
    (damaged / name).write_bytes(data)
    code, words = outcome(damaged)
    assert code == 6 or (name == "samx.pyz" and code == 1)  # 1: Python itself could not read the archive
    if code == 6:
        assert "of this kit is missing or was changed. Copy and unpack the kit again." in words
        assert len(words.splitlines()) == 1


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("samx.pyz", "kit.sha256")])
def test_a_missing_file_is_named(kit: Path, name: str, tmp_path: Path) -> None:
    damaged = copied(kit, tmp_path)
    (damaged / name).unlink()
    assert outcome(damaged) == (
        6, f"error: {name} of this kit is missing or was changed. Copy and unpack the kit again.\n"
    )  # fmt: skip


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.97])
def test_a_list_that_is_cut_off_is_refused(kit: Path, share: float, tmp_path: Path) -> None:
    damaged = copied(kit, tmp_path)
    data = (damaged / "kit.sha256").read_bytes()
    (damaged / "kit.sha256").write_bytes(data[: int(share * len(data))])
    code, words = outcome(damaged)
    assert code == 6
    assert "of this kit is" in words


def test_samx_alone_belongs_to_no_kit(kit: Path, tmp_path: Path) -> None:
    (tmp_path / "samx.pyz").write_bytes((kit / "samx.pyz").read_bytes())
    assert outcome(tmp_path) == (0, "")


def test_numpy_is_named_where_it_is_missing(kit: Path) -> None:
    done = on_device(kit, "validate", "artifact", libraries=())
    assert done.returncode == 5
    assert "samx needs NumPy, which does not load" in last_line(done)


def test_a_missing_backend_is_named(kit: Path) -> None:
    done = on_device(kit, "validate", "artifact", libraries=("numpy",))
    assert done.returncode == 5
    assert "'onnxruntime', which is not installed" in last_line(done)
    assert "a kit's README.txt has the command" in last_line(done)
    assert "samx[" not in last_line(done)  # which pip would look for where samx is on no index


def test_a_backend_that_is_too_old_is_refused(kit: Path, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("__version__ = '1.19.2'\n")
    for verb in ("validate", "bench"):
        done = on_device(kit, verb, "artifact", libraries=("numpy",), PYTHONPATH=str(tmp_path))
        assert done.returncode == 5
        assert "ONNX Runtime is too old: found 1.19.2, expected 1.20 or newer" in last_line(done)


@pytest.mark.parametrize("version", [(3, 9, 18), (3, 6, 0)])
def test_an_old_python_is_refused_before_anything_is_imported(kit: Path, version: tuple[int, ...]) -> None:
    code = (
        f"import sys, runpy; sys.version_info = {version}; sys.argv = ['samx.pyz'];"
        "sys.modules.update(dict.fromkeys(('numpy', 'samx', 'typer')));"
        "runpy.run_path('samx.pyz', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=kit, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert f"samx needs Python 3.10 or newer, found {'.'.join(map(str, version))}" in last_line(done)


def test_an_old_python_can_read_what_refuses_it(kit: Path) -> None:
    with zipfile.ZipFile(kit / "samx.pyz") as archive:
        source = archive.read("__main__.py").decode()
    tree = ast.parse(source, feature_version=(3, 6))
    top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {alias.name for node in top for alias in node.names}
    assert names == {"hashlib", "os", "sys"}
    assert source == (Path(samx.__file__).parent / "__main__.py").read_text()


def test_samx_starts_as_a_module_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "samx", "--version"], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(samx.__file__).parents[1])},
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, f"samx {samx.__version__}")


def test_what_is_passed_on_comes_with_its_licence(kit: Path) -> None:
    with zipfile.ZipFile(kit / "samx.pyz") as archive:
        names = archive.namelist()
    packages = {name.split("/")[0] for name in names if "/" in name and ".dist-info" not in name}
    assert {"samx", "typer", "rich"} <= packages
    licensed = {name.split("/")[0].partition("-")[0] for name in names if ".dist-info/" in name}
    assert packages - {"samx"} == licensed
    assert "LICENSE" in names
    left_out = [name for name in names if "weights/" in name or name.endswith((".safetensors", ".pyc", ".so", ".pyd"))]
    assert left_out == []


def test_the_demo_model_is_not_carried(kit: Path) -> None:
    done = on_device(kit, "calibrate", "-o", "set.npz")
    assert done.returncode == 5
    assert "torch" in last_line(done)  # asked for first
    code = "import sys; sys.path.insert(0, 'samx.pyz'); from samx.demo import demo_checkpoint as d; d('sam1')"
    words = subprocess.run([sys.executable, "-c", code], cwd=kit, capture_output=True, text=True, check=False).stderr
    assert "the demo weights are not here" in words.splitlines()[-1]


def test_an_archive_makes_no_archive(kit: Path, tmp_path: Path) -> None:
    done = on_device(kit, "bundle", "-o", str(tmp_path / "samx.pyz"))
    assert done.returncode == 5
    assert "samx.pyz cannot be made from an archive" in last_line(done)


ENGINE_LIBRARIES = ("numpy", "tensorrt_rtx")


def test_an_engine_is_built_and_a_stranger_s_is_built_again(tmp_path: Path) -> None:
    """The library is the real TensorRT for RTX, which builds without a GPU; no engine is run."""
    kit = kit_of(engine_artifact(tmp_path / "toy", "trt-rtx"))
    mine, theirs = {"XDG_STATE_HOME": str(tmp_path / "mine")}, {"XDG_STATE_HOME": str(tmp_path / "theirs")}
    done = on_device(kit, "build", "artifact", libraries=ENGINE_LIBRARIES, **mine)
    assert done.returncode == 0, done.stderr
    assert "there was none" in done.stdout
    assert "decoder.engine" in Artifact.open(kit / "artifact").manifest.files
    again = on_device(kit, "build", "artifact", libraries=ENGINE_LIBRARIES, **mine)
    assert "is up to date" in again.stdout
    other = on_device(kit, "build", "artifact", libraries=ENGINE_LIBRARIES, **theirs)
    assert "it was not built or named by this user" in other.stdout


# ---- the command line: the same values as typer gives

LINES: list[tuple[str, ...]] = [
    ("validate", "DIR"),
    ("validate", "DIR", "--device", "cuda", "--threads", "3", "--junit", "a.xml", "--json"),
    ("bench", "DIR", "OTHER", "--scenario", "click", "--scenario", "box", "--seconds", "1.5", "-o", "out.json"),
    ("bench", "DIR", "--quick", "--seed", "7", "--embedding", "a.npz", "--embedding", "b.npz", "--force"),
    ("segment", "a.png", "--model", "DIR", "--point", "1,2", "--point", "3,4", "--box", "1,2,3,4", "--output", "o.png"),
    ("dataset", "photos", "-o", "masks", "--model", "DIR", "--points-per-side", "8", "--per-file", "9", "--retry"),
    ("encode", "a.png", "--model", "DIR", "--output", "a.npz", "--force"),
    ("build", "DIR", "--force"),
    ("report", "a.json", "b.json", "--markdown", "out.md", "--baseline", "before.json"),
    (
        "evaluate",
        "DIR",
        "--data",
        "coco.json",
        "--prompt",
        "points:3",
        "--limit",
        "5",
        "--max-drop",
        "0.02",
        "-o",
        "a.html",
    ),
    ("bundle",),
    ("bundle", "DIR", "-o", "kit.zip"),
    ("bundle", "DIR", "--for", "triton", "-o", "models"),
    ("calibrate", "-o", "set.npz", "--samples", "8"),
    ("inspect", "DIR", "--json"),
    ("doctor",),
    ("web", "DIR", "-o", "site", "--runtime", "dist"),
    ("serve", "DIR", "--port", "0"),
]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Note what the commands are called with, and do nothing."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def noting(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def note(**given: Any) -> None:
            calls.append((function.__name__, {name: value or None for name, value in given.items()}))

        return note

    for command in app.registered_commands:
        if command.callback is not None:
            monkeypatch.setattr(command, "callback", noting(command.callback))
    return calls


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_a_command_line_means_what_it_means_to_typer(line: Sequence[str], recorded: list[Any]) -> None:
    assert CliRunner().invoke(app, line).exit_code == 0
    with pytest.raises(SystemExit) as ended:
        cli_plain.main(line)
    assert ended.value.code == 0
    assert len(recorded) == 2
    assert recorded[0] == recorded[1]


def test_every_command_but_the_export_is_there() -> None:
    names = {one.name or one.callback.__name__ for one in app.registered_commands if one.callback is not None}
    assert names == {*(line[0] for line in LINES), "export", "bisect", "trust", "zoo", "init-ci"}
    for name in names - {"export"}:
        modules, verb = (cli, cli_dataset, cli_measure, cli_segment, cli_web), name.replace("-", "_")
        function = next(getattr(module, verb) for module in modules if hasattr(module, verb))
        assert set(inspect.signature(function).parameters) >= {"json"}
        with pytest.raises(SystemExit) as ended:
            cli_plain.main([name, "--help"])
        assert ended.value.code == 0


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (("export",), "invalid choice: 'export'"), (("bench",), "required: DIR"),
        (("validate", "DIR", "--threads", "0"), "0 is not at least 1"),
        (("validate", "DIR", "--threads", "many"), "invalid int value: 'many'"),
        (("segment", "a.png"), "required: --model"), (("validate", "DIR", "--nothing"), "unrecognized arguments"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_told(line: Sequence[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli_plain.main(line)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
