"""The documentation is about this code: commands, options, links and examples exist."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
from doc_pages import FENCE, LANGUAGES, NEEDS, PAGES, ROOT, blocks, in_ci
from test_layers import LAYERS
from typer.testing import CliRunner

import samx
from samx.cli import app
from samx.models.spec import DecoderSpec, sam1_spec, sam2_spec
from samx.registry import BACKENDS, Backend

NAMED = ("Makefile", "mkdocs.yml", "NOTICE", ".ci/run")
OTHERS = [*(ROOT / name for name in NAMED), *(ROOT / "requirements").glob("*.txt")]
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
GENERATED = {
    "cli_reference": "cli.md", "api_reference": "api.md", "rooms": "images/rooms.svg", "zoo_page": "zoo.md",
}  # fmt: skip
CODE = [path for folder in ("samx", "tools", "tests", "docs") for path in (ROOT / folder).rglob("*.py")]
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
    """List the samx commands of a page, line by line, those of samx.pyz among them."""
    commands = [line.command for block in blocks(path, "bash") for line in block.lines()]
    plain = [command.replace("python3 samx.pyz ", "samx ", 1) for command in commands]
    return [shlex.split(command) for command in plain if command.startswith("samx ")]


def unknown_parts(words: list[str]) -> list[str]:
    """Say which command or options of an example do not exist."""
    if words[1] not in COMMANDS:
        return [words[1]]
    options = {word for word in words[2:] if word.startswith("--")} - {"--help"}
    return sorted(options - help_options(*words[1:]))


@pytest.mark.parametrize("name", GENERATED)
def test_a_generated_page_is_fresh(name: str) -> None:
    made = script(name)
    wanted = made.picture() if name == "rooms" else made.page()
    assert (ROOT / "docs" / GENERATED[name]).read_text(encoding="utf-8") == wanted, "run: make docs"


def test_every_command_is_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## samx ([\w-]+)$", text, re.MULTILINE)) == COMMANDS


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
    shown = {words[1] for words in shell_lines(ROOT / "README.md")}
    assert shown >= {"export", "validate", "segment", "doctor", "bundle"}


def test_the_readme_fits_on_a_screen_before_its_first_section() -> None:
    above = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## ", 1)[0]
    assert len(above.splitlines()) <= 45
    plain = re.sub(" +# .*", "", above)
    wanted = ("make demo\n", "make test\n", "import samx\n", "docs/images/demo.png", "| target |")
    assert [part for part in wanted if part not in plain] == []
    assert [entry.target for entry in BACKENDS if f"| `{entry.target}` |" not in above] == []


@page_names
def test_every_block_says_its_language_and_what_it_needs(path: Path) -> None:
    found = list(blocks(path))
    assert [block for block in found if block.language not in LANGUAGES] == []
    named = [need for block in found for line in block.lines() for need in (*block.needs, *line.needs)]
    assert [need for need in named if need not in NEEDS] == []
    assert [block.excerpt for block in found if block.excerpt and not (ROOT / block.excerpt).is_file()] == []


@page_names
def test_what_only_a_checkout_has_is_marked(path: Path) -> None:
    lines = [line for block in blocks(path, "bash") for line in block.lines()]
    unmarked = [line for line in lines if line.command.startswith(("make ", "pip ")) and not line.needs]
    assert [line.command for line in unmarked if not in_ci(line.command)] == []


@page_names
def test_what_pages_install_is_there_to_install(path: Path) -> None:
    """From the repository, or from the wheel of this version; with extras that exist."""
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"(?:'|`)((?:\.|[./\w-]*samx[\w.-]*\.whl))\[([\w,-]+)\]", text)
    extras = re.findall(r"^([a-z-]+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    wheel = f"samx-{samx.__version__}-py3-none-any.whl"
    assert [place for place, _ in named if place != "." and not place.endswith(wheel)] == []
    assert [extra for _, several in named for extra in several.split(",") if extra not in extras] == []
    assert not re.search(r"pip install '?samx", text) or path.name == "CHANGELOG.md"


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
    whole = [block.code for block in blocks(path, "python")]
    assert [compile(code, str(path), "exec").co_filename for code in whole] == [str(path)] * len(whole)


@pytest.mark.parametrize("spec", [sam1_spec(mask_input=True), sam2_spec(mask_input=True)], ids=["sam1", "sam2"])
def test_the_graph_page_lists_every_tensor(spec: DecoderSpec) -> None:
    text = (ROOT / "docs" / "onnx.md").read_text(encoding="utf-8")
    assert [tensor.name for tensor in (*spec.inputs, *spec.outputs) if f"| `{tensor.name}` |" not in text] == []


def test_the_changelog_names_this_version() -> None:
    assert f"## [{samx.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def architecture(section: str) -> str:
    """Return the first block of plain text in a section of the architecture page."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition(f"\n## {section}\n")[2]
    return next(code for language, code in FENCE.findall(page) if language == "text")


def tree() -> Iterator[str]:
    """Yield the paths of the tree on the architecture page, folders with a slash at the end."""
    page = architecture("Folders")
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
    page = architecture("Imports run downwards")
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


def test_pages_that_code_names_exist() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in CODE)
    named = set(re.findall(r"\bdocs/[\w/-]+\.md\b", code))
    assert named >= {"docs/devices/apple.md", "docs/pytorch.md"}
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


class TestSite:
    """The site is built from these pages, and fetches nothing from elsewhere."""

    def build(self, folder: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder / "site")], cwd=folder,
            capture_output=True, text=True, check=False, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    @pytest.fixture
    def copy(self, tmp_path: Path) -> Path:
        """Copy what the site is made from."""
        for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "NOTICE", "LICENSE", "mkdocs.yml"):
            shutil.copy(ROOT / name, tmp_path / name)
        shutil.copytree(ROOT / "docs", tmp_path / "docs")
        return tmp_path

    def test_it_builds_and_asks_nobody(self, copy: Path) -> None:
        done = self.build(copy)
        assert done.returncode == 0, done.stdout + done.stderr
        pages = {path.relative_to(copy / "site").as_posix() for path in (copy / "site").rglob("*.html")}
        docs = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")}
        expected = {page.with_name(page.stem.replace("README", "index") + ".html").as_posix() for page in docs}
        assert pages >= {*expected, "index.html", "NOTICE.html", "CHANGELOG.html"}
        fetched = re.compile(r"(?:<(?:script|img|iframe)[^>]* src|<link[^>]* href)=\"?https?:", re.IGNORECASE)
        text = {page: (copy / "site" / page).read_text(encoding="utf-8") for page in pages}
        assert [page for page, html in text.items() if fetched.search(html)] == []
        assert "fonts.g" not in "".join(text.values())

    @pytest.mark.parametrize("link", ["[x](nowhere.md)", "[x](onnx.md#no-such-section)"])
    def test_a_link_that_leads_nowhere_stops_it(self, copy: Path, link: str) -> None:
        with (copy / "docs" / "predictor.md").open("a", encoding="utf-8") as page:
            page.write(f"\n{link}\n")
        done = self.build(copy)
        assert done.returncode != 0
        assert link[4:].strip("()").partition("#")[0] in done.stdout + done.stderr

    @pytest.mark.parametrize(
        ("target", "here", "there"),
        [
            ("docs/onnx.md", "index.md", "onnx.md"),
            ("../README.md", "migrating.md", "index.md"),
            ("../../NOTICE", "devices/jetson.md", "../NOTICE.md"),
            ("../tensorrt.md", "devices/jetson.md", "../tensorrt.md"),
            ("docs/devices/README.md", "CONTRIBUTING.md", "devices/README.md"),
            ("../samx/cli.py", "onnx.md", "../samx/cli.py"),
        ],
    )
    def test_links_between_the_root_and_the_pages_are_moved(self, target: str, here: str, there: str) -> None:
        assert script("site_hooks").moved(target, here) == there
