"""NOTICE names what samx is made after, what it reads, what it passes on and what it needs, each with its terms."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest

from samx.models import families

ROOT = Path(__file__).parents[1]
NOTICE = (ROOT / "NOTICE").read_text(encoding="utf-8")
TERMS = {
    name.strip().lower() for line in re.findall(r"^ +(\S.*?): \S", NOTICE, re.MULTILINE) for name in line.split(",")
}


def upstream() -> list[str]:
    """List the packages that tests and comparisons install."""
    lines = [
        line
        for name in ("upstream.txt", "compare.txt")
        for line in (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    ]
    return sorted({re.split(r"[=<>; ]", line)[0] for line in lines if line and not line.startswith("#")})


def project() -> list[str]:
    """List what pyproject.toml asks for: with every installation, and with extras other than the developers'."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    asked = text.partition("\ndependencies = [")[2].partition("\ndev = [")[0]
    lines = [line.partition(" #")[0] for line in asked.splitlines()]
    return sorted(set(re.findall(r"[\"']([a-z][a-z0-9-]*)(?=[<>=;\"'])", "\n".join(lines))))


@pytest.mark.parametrize("name", upstream())
def test_a_package_that_samx_is_compared_with_is_named(name: str) -> None:
    assert name in TERMS


def test_the_packages_that_it_asks_for_were_read() -> None:
    assert {"numpy", "typer", "torch", "onnxruntime", "tensorrt", "scikit-learn", "mkdocs"} <= set(project())


@pytest.mark.parametrize("name", project())
def test_a_package_that_samx_asks_for_is_named(name: str) -> None:
    assert name in TERMS


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_pure_python_that_the_packed_packages_ask_for_is_named(package: str) -> None:
    """What compiled packages they ask for (pydantic) is not packed."""
    asked = [line for line in importlib.metadata.requires(package) or () if "extra ==" not in line]
    names = {re.split(r"[^\w-]", line)[0].replace("_", "-").lower() for line in asked} - {"pydantic", "colorama"}
    assert names <= TERMS


@pytest.mark.parametrize("family", families.known())
def test_every_model_that_a_family_names_is_named(family: str) -> None:
    """Each family's file begins with the models that have its decoder."""
    module = __import__(f"samx.models.families.{family}", fromlist=["__doc__"])
    listed = str(module.__doc__).splitlines()[0].rstrip(".").partition(": ")[2].split(", ")
    assert len(listed) >= (3 if family in ("sam1", "sam2") else 1)
    assert [name for name in listed if name.lower() not in TERMS] == []


def test_every_weight_file_is_named() -> None:
    shipped = [path.relative_to(ROOT).as_posix() for path in (ROOT / "samx").rglob("*.safetensors")]
    assert shipped
    assert [name for name in shipped if name not in NOTICE] == []


def test_terms_that_forbid_copying_are_named() -> None:
    assert "nothing was copied from sources with non-commercial or AGPL terms" in " ".join(NOTICE.split())
    assert {"edgesam", "sam2long"} <= TERMS
    assert "Ultralytics" in NOTICE
