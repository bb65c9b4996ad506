"""A sample repository gets its CI: the workflow's own steps are run in it, by hand, on a small model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import yaml
from checkpoint_files import meta_sam1

from samx.commands.init_ci import SCRIPT, WORKFLOW, init_ci
from samx.errors import UsageError, WriteError
from samx.registry import BACKENDS

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
WEIGHTS = "weights/small model.pth"


def steps(repository: Path) -> list[dict[str, Any]]:
    """Return the steps of the workflow that was written."""
    workflow = yaml.safe_load((repository / WORKFLOW).read_text())
    found: list[dict[str, Any]] = workflow["jobs"]["export"]["steps"]
    return found


def run(repository: Path, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command], cwd=repository, env={**os.environ, **environment}, capture_output=True, text=True,
        check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a repository")
    (folder / "weights").mkdir()
    torch.save(meta_sam1(), folder / WEIGHTS)
    init_ci(folder, folder / WEIGHTS)
    return folder


@pytest.fixture(scope="module")
def ran(repository: Path) -> dict[str, str]:
    """Run the steps that call the script, in their order, as a push to the branch does; return their output by name."""
    samx = repository / "samx"
    samx.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m samx "$@"\n')
    samx.chmod(0o755)
    given = {
        "SAMX": str(samx), "PYTHONPATH": str(ROOT), "EXPORT_OPTIONS": "--no-encoder --image-size 128",
        "GITHUB_STEP_SUMMARY": str(repository / "summary.md"),
    }  # fmt: skip
    found = {}
    for step in steps(repository):
        if "samx-ci.sh" in step.get("run", "") and "install" not in step["run"]:
            done = run(repository, step["run"], **given)
            assert done.returncode == 0, (step["name"], done.stdout[-2000:], done.stderr[-2000:])
            found[step["name"]] = done.stdout
    return found


@pytest.mark.timeout(600)
class TestSteps:
    def test_every_step_ran_and_left_its_report(self, repository: Path, ran: dict[str, str]) -> None:
        assert len(ran) == 5
        out = repository / "samx-ci"
        suite = ElementTree.parse(out / "parity.xml").getroot()
        assert int(suite.attrib["tests"]) > 5
        assert suite.attrib["failures"] == "0"
        assert json.loads((out / "parity.json").read_text())["passed"] is True
        assert "| mask_iou_mean |" in (out / "parity.md").read_text().replace("\\", "")
        assert (out / "artifact" / "decoder.onnx").exists()

    def test_the_comment_says_what_was_found(self, repository: Path, ran: dict[str, str]) -> None:
        comment = (repository / "summary.md").read_text()
        assert comment.startswith(f"## samx: {WEIGHTS} for onnx, fp32")
        assert "**Parity passed**" in comment
        assert "NOT RUN" not in comment
        assert (repository / "samx-ci" / "bench.md").read_text() in comment

    def test_what_was_measured_is_kept_to_compare_with(self, repository: Path, ran: dict[str, str]) -> None:
        kept = repository / "samx-ci-baseline" / "bench.json"
        assert kept.read_bytes() == (repository / "samx-ci" / "bench.json").read_bytes()

    def test_an_altered_artifact_stops_it_and_is_not_said_to_have_passed(
        self, repository: Path, ran: dict[str, str], tmp_path: Path
    ) -> None:
        shutil.copytree(repository, tmp_path / "copy")
        copy = tmp_path / "copy"
        graph = copy / "samx-ci" / "artifact" / "decoder.onnx"
        graph.write_bytes(graph.read_bytes()[:-1] + b"x")
        assert (copy / "samx-ci" / "parity.md").exists()  # of the run before: it is not this one's
        given = {"SAMX": str(copy / "samx"), "PYTHONPATH": str(ROOT)}
        done = run(copy, f"bash {SCRIPT} compare", **given)
        assert done.returncode == 6
        assert "altered" in done.stderr
        assert "NOT RUN: parity." in run(copy, f"bash {SCRIPT} comment", **given).stdout


def test_the_wheel_is_installed_with_what_the_target_needs(repository: Path, tmp_path: Path) -> None:
    missing = run(repository, f"bash {SCRIPT} install")
    assert missing.returncode == 2
    assert "error: no wheel of samx: found nothing at 'wheels/samx-*.whl'" in missing.stderr
    (tmp_path / "wheels").mkdir()
    for name in ("samx-0.10.0.whl", "samx-0.9.0.whl"):
        (tmp_path / "wheels" / name).touch()
    python = tmp_path / "python"  # makes an environment whose Python is itself
    python.write_text(
        '#!/bin/sh\necho "$@" >> "' + str(tmp_path / "asked") + '"\n'
        'if [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi\n'
    )
    python.chmod(0o755)
    done = run(
        repository,
        f"bash {SCRIPT} install",
        PYTHON=str(python),
        WHEEL=f"{tmp_path}/wheels/*.whl",
        OUT=str(tmp_path / "o"),
    )
    assert done.returncode == 0, done.stderr
    wheel = f"{tmp_path}/wheels/samx-0.10.0.whl[export,onnxruntime]"
    assert (tmp_path / "asked").read_text().splitlines()[-1] == f"-m pip install --quiet {wheel}"


def test_git_leaves_what_it_makes_alone(tmp_path: Path) -> None:
    init_ci(tmp_path)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    assert run(tmp_path, f"bash {SCRIPT} comment").returncode == 0
    assert (tmp_path / "samx-ci" / "comment.md").exists()
    told = subprocess.run(
        ["git", "status", "--porcelain", "-uall"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert told.stdout.splitlines() == ["?? .github/workflows/samx.yml", f"?? {SCRIPT}"]


def test_an_unknown_step_is_told(repository: Path) -> None:
    done = run(repository, f"bash {SCRIPT} deploy")
    assert (done.returncode, "found 'deploy'" in done.stderr) == (2, True)


@pytest.mark.parametrize("entry", BACKENDS, ids=lambda entry: entry.target)
def test_every_target_has_its_own(entry: Any, tmp_path: Path) -> None:
    init_ci(tmp_path, target=entry.target)
    script = (tmp_path / SCRIPT).read_text()
    assert f"TARGET:-{entry.target}}}" in script
    assert run(tmp_path, f"bash -n {SCRIPT}").returncode == 0
    assert any(step.get("run") == "bash samx-ci.sh export" for step in steps(tmp_path))
    measured = run(tmp_path, f"bash {SCRIPT} measure", SAMX="/bin/false")
    assert (measured.returncode == 0, "NOT MEASURED" in measured.stdout) == ((entry.graph is not None,) * 2)


def test_what_is_there_is_kept_and_what_cannot_be_meant_is_refused(repository: Path, tmp_path: Path) -> None:
    before = (repository / SCRIPT).read_bytes()
    with pytest.raises(WriteError, match="exists already"):
        init_ci(repository)
    assert (repository / SCRIPT).read_bytes() == before
    with pytest.raises(UsageError, match="not in the repository"):
        init_ci(tmp_path, repository / WEIGHTS)
    with pytest.raises(UsageError, match="no such repository"):
        init_ci(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="no branch's name"):
        init_ci(tmp_path, branch="main]\nname: x")
    with pytest.raises(UsageError, match="does not export this precision"):
        init_ci(tmp_path, precision="fp8")
    assert not list(tmp_path.iterdir())
    (tmp_path / ".github").touch()
    with pytest.raises(WriteError, match="cannot make the folder"):
        init_ci(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".github"]


def test_a_name_of_any_kind_is_a_name_in_the_script(tmp_path: Path) -> None:
    name = 'it\'s $(touch x) `y` "z".pth'
    (tmp_path / name).touch()
    init_ci(tmp_path, tmp_path / name)
    line = next(line for line in (tmp_path / SCRIPT).read_text().splitlines() if line.startswith("CHECKPOINT="))
    assert run(tmp_path, f'unset CHECKPOINT; {line}\nprintf %s "$CHECKPOINT"').stdout == name
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, SCRIPT, ".github"])
