"""samx.pyz: this package, with the pure-Python packages that its command line needs, in one file that Python runs."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path

import samx
from samx.errors import UnavailableError

PYZ = "samx.pyz"
HEAD = b"#!/usr/bin/env python3\n"
PACKAGES = ("typer", "rich")  # each with its files and licences
OF_TYPER = ("click", "shellingham", "annotated-doc", "typing-extensions")  # where the installed typer asks for it
LICENCE = re.compile(r"licen[cs]e|copying|notice|authors", re.IGNORECASE)
LEFT_OUT = ("__pycache__", "weights", "photos")  # folders of samx: the demo's weights are larger than all else
# An archive's bytes hang on its content alone: no times, no owners, names in order.
START = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold
UNIX = 3
# What may be done with an entry, by the end of its name: folders, programs, everything else.
MODES: Mapping[str, int] = {"/": 0o040755, ".pyz": 0o100755, ".sh": 0o100755, "": 0o100644}


def pyz() -> bytes:
    """Return the bytes of samx.pyz. The same installation gives the same bytes.

    Raises: UnavailableError where this samx, or a package that it needs, does not lie in a folder.
    """
    home = Path(samx.__file__).parents[1]
    if not home.is_dir():
        raise UnavailableError(
            f"{PYZ} cannot be made from an archive", found=str(home), fix=f"Copy the {PYZ} that is there."
        )
    files = {**dict(_own(home)), **{name: data for package in _packages() for name, data in _vendored(package)}}
    return zipped({**files, "__main__.py": files["samx/__main__.py"]}, HEAD)


def zipped(files: Mapping[str, bytes], head: bytes = b"") -> bytes:
    """Write an archive; a name that ends with '/' is a folder."""
    buffer = io.BytesIO()
    buffer.write(head)
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            archive.writestr(_entry(name), files[name])
    return buffer.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, START)
    entry.create_system, entry.compress_type = UNIX, zipfile.ZIP_DEFLATED
    entry.external_attr = next(mode for ending, mode in MODES.items() if name.endswith(ending)) << 16
    return entry


def _own(home: Path) -> Iterator[tuple[str, bytes]]:
    """Read the package and its licence, which lies beside it in a checkout, and else in its metadata."""
    for path in (home / "samx").rglob("*"):
        if path.is_file() and not set(LEFT_OUT) & set(path.relative_to(home).parts):
            yield path.relative_to(home).as_posix(), path.read_bytes()
    places = (home / "LICENSE", home / f"samx-{samx.__version__}.dist-info" / "licenses" / "LICENSE")
    for path in places:
        if path.is_file():
            yield "LICENSE", path.read_bytes()
            return
    raise UnavailableError("samx's own licence is not here", expected=" or ".join(map(str, places)))


def _packages() -> list[str]:
    asked = {re.split(r"[^\w-]", line)[0].replace("_", "-").lower() for line in requires("typer") or ()}
    return [*PACKAGES, *(name for name in OF_TYPER if name in asked)]


def _vendored(package: str) -> Iterator[tuple[str, bytes]]:
    """Read a package's Python files and licences.

    Raises: UnavailableError.
    """
    try:
        listed = distribution(package).files or ()
    except PackageNotFoundError as cause:
        raise UnavailableError(f"the package '{package}' is not installed", fix=f"pip install {package}") from cause
    kept = [file for file in listed if file.suffix == ".py" or LICENCE.search(file.name)]
    if not any(LICENCE.search(file.name) for file in kept):
        raise UnavailableError(f"the package '{package}' lists no licence, and is not passed on without")
    for file in kept:
        yield file.as_posix(), Path(str(file.locate())).read_bytes()
