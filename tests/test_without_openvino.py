"""Nothing else needs OpenVINO: its files, its entry and its extra are taken out of a copy, whose other tests pass.

All of them, which takes as long as the suite: python tests/test_without_openvino.py FOLDER makes the copy; then run
pytest in it with PYTHONPATH=FOLDER, so that the copy is tested, and --ignore tests/test_docs.py: pages stay, and speak
of OpenVINO.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NAME = "openvino"
ROOT = Path(__file__).parents[1]
IGNORED = shutil.ignore_patterns(f"*{NAME}*.py", NAME, ".git", ".venv*", "*cache*", "*.egg-info", "*-out")
# Every test module is imported, which finds what is missing; these are run.
RUN = (
    "test_layers.py", "test_toy_backend.py", "exporters/test_onnx.py", "commands/test_export_engines.py",
    "benchmarks/test_contenders.py",
)  # fmt: skip


def copy_without(folder: Path) -> None:
    """Copy the checkout, without what is OpenVINO's."""
    shutil.copytree(ROOT, folder, ignore=IGNORED)
    registry = folder / "samx" / "registry.py"
    registry.write_text(without_entry(registry.read_text(encoding="utf-8")), encoding="utf-8")
    project = folder / "pyproject.toml"
    text = re.sub(rf"^{NAME} = .*\n", "", project.read_text(encoding="utf-8"), flags=re.MULTILINE)
    project.write_text(re.sub(rf",{NAME}\b", "", text).replace(f'"{NAME}.*", ', ""), encoding="utf-8")


def without_entry(source: str) -> str:
    """Take the target's entry out of the registry's source."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and node.args]
    [entry] = [
        call for call in calls if ast.unparse(call.func) == "Backend" and ast.unparse(call.args[0]) == repr(NAME)
    ]
    lines = source.splitlines(keepends=True)
    return "".join(lines[: entry.lineno - 1] + lines[entry.end_lineno :])


def test_only_its_own_files_and_the_entry_name_it(tmp_path: Path) -> None:
    copy_without(tmp_path / "copy")
    sources = [path for room in ("samx", "tests", "tools") for path in (tmp_path / "copy" / room).rglob("*.py")]
    assert len(sources) > 300
    naming = [path for path in sources if NAME in path.read_text(encoding="utf-8").lower()]
    assert [str(path.relative_to(tmp_path / "copy")) for path in naming] == []
    assert NAME not in (tmp_path / "copy" / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_others_tests_pass_without_it(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    copy_without(folder)
    environment = {**os.environ, "PYTHONPATH": str(folder)}

    def pytest_in_copy(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments], cwd=folder, env=environment,
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    assert "tests collected" in pytest_in_copy("--collect-only", "tests")
    pytest_in_copy(*(f"tests/{part}" for part in RUN))
    pytest_in_copy("tests/test_cli.py", "-k", "export or doctor")


if __name__ == "__main__":
    copy_without(Path(sys.argv[1]))
