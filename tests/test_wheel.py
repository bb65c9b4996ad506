"""The wheel that `make wheel` builds: what it holds, what it says of itself, that it exports where it is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import PathDistribution, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import samx

ROOT = Path(__file__).parents[1]
SOURCES = ("samx", "pyproject.toml", "README.md", "LICENSE", "NOTICE")
NAME = f"samx-{samx.__version__}-py3-none-any.whl"
EXTRAS = ("export", "onnxruntime")
LARGEST_MIB = 25  # nearly all of it the demo's weights
IN_IT = (
    "samx/__init__.pyi",
    "samx/py.typed",
    "samx/benchmarks/report/templates/page.html.j2",
    "samx/demo/weights/sam1.safetensors",
    "samx/demo/weights/sam2.safetensors",
    "samx/exporters/coreml/templates/decoder.swift.in",
    "samx/exporters/tensorrt/reproduce.sh",
    *(f"samx/validators/photos/{name}.jpg" for name in ("cat", "coffee", "rocket")),
)
SMALL = ("--image-size", "128")  # as an export, a second or so of arithmetic


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel as the Makefile does, from a copy: a build leaves files beside its sources."""
    sources, made = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("dist")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, sources / name)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", made, sources)
    return made / NAME


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> PathDistribution:
    """Read what the wheel says of itself."""
    return PathDistribution(zipfile.Path(wheel, f"samx-{samx.__version__}.dist-info/"))


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command as a user would, with nothing of this checkout on its path."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, cwd=cwd, env=environment,
        stdin=subprocess.DEVNULL, timeout=3000,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_it_holds_the_package_whole_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "samx").rglob("*") if path.is_file()}
    info = {name for name in names if name.startswith(f"samx-{samx.__version__}.dist-info/")}
    assert names - info == {name for name in package if "__pycache__" not in name}
    assert set(IN_IT) <= names
    assert {name.rpartition("/")[2] for name in info} >= {"LICENSE", "NOTICE", "METADATA", "RECORD"}
    assert wheel.stat().st_size < LARGEST_MIB * 2**20


def test_it_says_what_it_is(metadata: PathDistribution) -> None:
    said = metadata.metadata
    assert (said["Name"], said["Version"]) == ("samx", samx.__version__)
    assert (said["Requires-Python"], said["License-Expression"]) == (">=3.10", "Apache-2.0")
    assert said.get_all("License-File") == ["LICENSE", "NOTICE"]
    assert said["Summary"]
    assert "\n# samx\n" in str(metadata.read_text("METADATA"))  # the README
    (command,) = metadata.entry_points
    assert (command.group, command.name, command.value) == ("console_scripts", "samx", "samx.cli:main")


def test_what_was_tested_is_what_it_asks_for(metadata: PathDistribution) -> None:
    """The packages here are releases that the wheel asks for, so that the next test stands for an installation."""
    asked = [Requirement(line) for line in metadata.requires or ()]
    wanted = [one for one in asked if not one.marker or any(one.marker.evaluate({"extra": extra}) for extra in EXTRAS)]
    assert {one.name for one in wanted} >= {"numpy", "torch", "onnxruntime"}
    assert [str(one) for one in wanted if not one.specifier.contains(version(one.name), prereleases=True)] == []


def test_it_exports_the_demo_where_nothing_else_of_samx_is(wheel: Path, tmp_path: Path) -> None:
    """An empty environment gets the wheel; the packages that it needs are found where they are installed already."""
    python = environment(tmp_path / "venv")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    here = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (here / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    found = Path(run(python, "-c", "import samx; print(samx.__file__)", cwd=tmp_path).strip())
    assert found == here / "samx" / "__init__.py"
    exports(python, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_it_installs_with_all_that_it_needs(wheel: Path, tmp_path: Path) -> None:
    """Everything from the registry into an empty environment, as a user does. Downloads gigabytes."""
    python = environment(tmp_path / "venv")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", f"{wheel}[{','.join(EXTRAS)}]")
    exports(python, tmp_path)


def environment(folder: Path) -> Path:
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    return folder / "bin" / "python"


def exports(python: Path, folder: Path) -> None:
    """Export the demo with the installed command, and see that it was compared with PyTorch."""
    samx_command = python.with_name("samx")
    assert run(samx_command, "--version", cwd=folder).split()[-1] == samx.__version__
    run(samx_command, "export", *SMALL, "-o", "demo", cwd=folder)
    report = json.loads((folder / "demo" / "parity_report.json").read_text(encoding="utf-8"))
    assert report["passed"] is True
    manifest = json.loads((folder / "demo" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["samx"] == samx.__version__
