"""The documentation is about this code: commands, options, links and examples exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from test_layers import LAYERS
from typer.testing import CliRunner

from samx.cli import app
from samx.models.spec import DecoderSpec, sam1_spec, sam2_spec
from samx.registry import BACKENDS, Backend

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
OTHERS = [ROOT / "Makefile", ROOT / ".ci" / "run", *(ROOT / "requirements").glob("*.txt")]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
# A machine's own places, and marks of unfinished work. Documentation speaks of the project alone.
FORBIDDEN = re.compile(r"/tmp\b|/work\b|/root\b|/home/|\bTODO\b|\bFIXME\b|\bXXX\b", re.IGNORECASE)
COMMANDS = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}

page_names = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def script(name: str) -> ModuleType:
    """Load a script that lies in docs/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(path: Path, language: str) -> Iterator[str]:
    return (code for found, code in FENCE.findall(path.read_text(encoding="utf-8")) if found == language)


def help_options(command: str, *arguments: str) -> set[str]:
    """Ask the command itself for its options; an export for those of the target that the arguments name."""
    named = [f"--target={target}" for target in targets(arguments)] if command == "export" else []
    environment = {"COLUMNS": "240", "NO_COLOR": "1", "TERM": "dumb"}
    result = CliRunner().invoke(app, [command, *named, "--help"], env=environment)
    assert result.exit_code == 0, result.output
    names = re.findall(r"^\S[ *]+(-[^<]+)<", result.output, re.MULTILINE)  # a row's, before its type
    return set(re.findall(r"--[a-z][a-z0-9-]*", "\n".join(names))) - {"--help"}


def targets(arguments: Sequence[str]) -> list[str]:
    """Return the target that an example's arguments name, if any."""
    return [after for before, after in pairwise(arguments) if before == "--target"]


def documented_options(command: str, target: str | None = None) -> set[str]:
    """Read the options that docs/cli.md lists for a command: its own, and those of a target."""
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    common, *own = text.split(f"## samx {command}\n", 1)[1].split("\n## ", 1)[0].split("\n### Options of target ")
    part = "\n".join([common, *(section for section in own if section.startswith(f"`{target}` "))])
    rows = [line.split("|")[1] for line in part.splitlines() if line.startswith("| ")]
    return {word for row in rows for word in re.findall(r"--[a-z][a-z0-9-]*", row)}


def shell_lines(path: Path) -> list[list[str]]:
    """List the samx commands of a page's shell examples, line by line."""
    lines = [line for code in blocks(path, "") for line in code.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("samx ") and "[OPTIONS]" not in line]


def unknown_parts(words: list[str]) -> list[str]:
    """Say which command or options of an example do not exist."""
    if words[1] not in COMMANDS:
        return [words[1]]
    options = {word for word in words[2:] if word.startswith("--")} - {"--help"}
    return sorted(options - help_options(*words[1:]))


def test_the_command_reference_is_fresh() -> None:
    reference = script("cli_reference")
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == reference.page(), "run: make docs"


def test_every_command_is_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## samx (\w+)$", text, re.MULTILINE)) == COMMANDS


@pytest.mark.parametrize("command", sorted(COMMANDS - {"export"}))
def test_documented_options_are_those_of_the_command(command: str) -> None:
    assert documented_options(command) == help_options(command)
    assert documented_options(command) >= {"--json"}


@pytest.mark.parametrize("entry", BACKENDS, ids=lambda entry: entry.target)
def test_documented_options_of_a_target_are_those_it_has(entry: Backend) -> None:
    documented = documented_options("export", entry.target)
    assert documented == help_options("export", "--target", entry.target)
    assert documented >= {"--json", "--points", f"--{entry.default_precision}"}


@page_names
def test_examples_name_real_commands_and_options(path: Path) -> None:
    assert [unknown for words in shell_lines(path) for unknown in unknown_parts(words)] == []


def test_the_readme_has_examples() -> None:
    assert {words[1] for words in shell_lines(ROOT / "README.md")} >= {"export", "validate", "segment", "doctor"}


@pytest.mark.parametrize(
    "line", ["samx exprot a.pth", "samx export a.pth --quick", "samx export --target coreml --split"]
)
def test_a_wrong_example_is_found(line: str) -> None:
    assert len(unknown_parts(shlex.split(line))) == 1


@page_names
def test_relative_links_exist(path: Path) -> None:
    targets = LINK.findall(path.read_text(encoding="utf-8"))
    assert [target for target in targets if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", [*PAGES, *OTHERS], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_page_names_a_machine_or_unfinished_work(path: Path) -> None:
    assert FORBIDDEN.findall(path.read_text(encoding="utf-8")) == []


@page_names
def test_python_examples_compile(path: Path) -> None:
    whole = [code for code in blocks(path, "python") if code.startswith(("import ", "from "))]
    assert [compile(code, str(path), "exec").co_filename for code in whole] == [str(path)] * len(whole)


@pytest.mark.parametrize("spec", [sam1_spec(mask_input=True), sam2_spec(mask_input=True)], ids=["sam1", "sam2"])
def test_the_graph_page_lists_every_tensor(spec: DecoderSpec) -> None:
    text = (ROOT / "docs" / "onnx.md").read_text(encoding="utf-8")
    assert [tensor.name for tensor in (*spec.inputs, *spec.outputs) if f"| `{tensor.name}` |" not in text] == []


def test_the_changelog_names_this_version() -> None:
    from samx import __version__

    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def tree() -> Iterator[str]:
    """Yield the paths of the tree on the architecture page, folders with a slash at the end."""
    (page,) = (code for code in blocks(ROOT / "docs" / "architecture.md", "") if code.startswith("samx/"))
    folders: list[str] = []
    for line in page.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders = [*folders[:depth], name]
        yield "".join(folders)


def test_the_tree_of_the_architecture_page_is_real() -> None:
    listed = list(tree())
    assert [path for path in listed if not (ROOT / path).exists()] == []
    parts = [path for path in (ROOT / "samx").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert {path.name for path in parts} <= {Path(path).name for path in listed if len(Path(path).parts) == 2}


def test_the_floors_of_the_architecture_page_are_those_that_are_checked() -> None:
    (page,) = (code for code in blocks(ROOT / "docs" / "architecture.md", "") if code.startswith("benchmarks.gpu"))
    floors = [line.split("  ")[0].split(", ") for line in page.splitlines()]
    checked = [[name.removeprefix("samx.") for name in names if "__init__" not in name] for names in LAYERS[:-2]]
    assert floors == checked


def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z]+):.*##", text, re.MULTILINE))


@page_names
def test_make_targets_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE)
    assert [target for target in named if target not in make_targets()] == []


@pytest.mark.slow
def test_the_examples_run(tmp_path: Path) -> None:
    """Run the library example of the README and the plain ONNX Runtime example as they are written."""
    from samx.demo.picture import write_picture

    library = next(blocks(ROOT / "README.md", "python"))
    more = list(blocks(ROOT / "docs" / "predictor.md", "python"))
    (plain,) = blocks(ROOT / "docs" / "onnx.md", "python")
    write_picture(tmp_path / "scene.png")
    Image.open(tmp_path / "scene.png").convert("RGB").resize((1280, 960)).save(tmp_path / "photo.jpg")
    features = np.random.default_rng(0).normal(0, 0.5, (1, 256, 64, 64)).astype(np.float32)
    np.savez(tmp_path / "photo.npz", image_embeddings=features)
    said = run_python(f"{library}\nprint(masks.shape, scores.shape, logits.shape, report.passed)", tmp_path)
    assert said == "(3, 960, 1280) (3,) (3, 256, 256) True\n"
    assert "(2, 3, 960, 1280)" in run_python("\n".join(more), tmp_path)
    (tmp_path / "decoder").rename(tmp_path / "sam1-demo-onnx")
    assert run_python(f"{plain}\nprint(mask.shape, mask.any(), mask.all())", tmp_path) == "(768, 1024) True False\n"


def run_python(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
