"""Cut a file into pieces that are small enough to be carried, and join them again after checking each.

python -m tools.pieces cut onnxruntime_gpu.whl --output pieces     makes the folder: pieces, and index.json
python -m tools.pieces join pieces --output onnxruntime_gpu.whl    the name in the index, if none is given
Exit codes: 0, or 2 for an invalid request, 6 for pieces that are damaged, 7 for what cannot be written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from samx.artifacts.commit import write_file
from samx.artifacts.strict_json import Count, Sha256, contents, parse, refusal, shaped
from samx.errors import ArtifactError, SamxError, UsageError, WriteError

FORMAT = {"format": "samx-pieces/1"}
INDEX = "index.json"
MEGABYTE = 1_000_000
PIECE_MB = 60
AGAIN = "Copy it again."


def _is_name(value: str, where: str) -> None:
    """Check that a path leads to a file of its own folder."""
    if value != Path(value).name or value == "..":
        raise refusal(f"{where} leads elsewhere", repr(value), "a file's name", AGAIN)


FILE = {"name": Annotated[str, _is_name], "bytes": Count, "sha256": Sha256}
SHAPE = {**FILE, "pieces": tuple[Annotated[dict[str, Any], shaped(FILE)], ...]}


def cut(file: Path, folder: Path, piece_bytes: int) -> None:
    """Write a file's pieces and their index into a new folder, whole or not at all."""
    if not file.is_file():
        raise UsageError(f"'{file}' is no file", fix="Name the one to cut.")
    _check_free(folder)
    pieces: list[dict[str, Any]] = []
    whole = hashlib.sha256()
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as hidden, file.open("rb") as source:
        staged = Path(hidden, folder.name)
        staged.mkdir()
        while data := source.read(piece_bytes):
            whole.update(data)
            pieces.append(_facts(f"{len(pieces):03}.piece", data))
            (staged / pieces[-1]["name"]).write_bytes(data)
        size = sum(piece["bytes"] for piece in pieces)
        index = {**FORMAT, "name": file.name, "bytes": size, "sha256": whole.hexdigest(), "pieces": pieces}
        (staged / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        _check_free(folder)
        staged.rename(folder)


def join(folder: Path, file: Path | None) -> Path:
    """Put the pieces together after checking each, whole or not at all; return the file."""
    index = read_index(folder)
    target = file or Path(index["name"])
    _check_free(target)
    data = b"".join(_checked(folder / piece["name"], piece) for piece in index["pieces"])
    if _facts(index["name"], data) != {name: index[name] for name in FILE}:
        raise ArtifactError(f"the pieces in '{folder}' do not make '{index['name']}'", fix="Copy them all again.")
    write_file(target, data)
    return target


def read_index(folder: Path) -> dict[str, Any]:
    """Read an index, and check that it names files of its own folder alone."""
    path = folder / INDEX
    try:
        data = path.read_bytes()
    except OSError as cause:
        fix = "Name the folder with the pieces."
        raise UsageError(f"'{path}' cannot be read", found=cause.strerror, fix=fix) from cause
    return contents(parse(data, f"'{path}'"), FORMAT, SHAPE, f"'{path}'")


def _facts(name: str, data: bytes) -> dict[str, Any]:
    return {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _checked(path: Path, piece: dict[str, Any]) -> bytes:
    if not path.is_file():
        raise ArtifactError(f"piece '{path}' is missing", fix=AGAIN)
    data = path.read_bytes()
    if len(data) != piece["bytes"]:
        raise ArtifactError(f"piece '{path}' has {len(data)} bytes", expected=piece["bytes"], fix=AGAIN)
    if _facts(path.name, data) != piece:
        raise ArtifactError(f"piece '{path}' has another SHA-256 than its index says", fix=AGAIN)
    return data


def _check_free(path: Path) -> None:
    if os.path.lexists(path):
        raise WriteError(f"'{path}' exists already", fix="Remove it, or choose another name with --output.")


def _run(options: argparse.Namespace) -> Path:
    """Cut or join; return what was written."""
    if options.command == "join":
        return join(options.folder, options.output)
    if not 1 <= options.megabytes * MEGABYTE < float("inf"):
        raise UsageError(f"no size of a piece: {options.megabytes:g} MB")
    cut(options.file, options.output, int(options.megabytes * MEGABYTE))
    return Path(options.output)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; say in one line what went wrong."""
    parser = argparse.ArgumentParser(prog="pieces.py", description="Cut a file into pieces, and join them again.")
    commands = parser.add_subparsers(dest="command", required=True)
    cutting = commands.add_parser("cut", help="write a folder of pieces")
    cutting.add_argument("file", type=Path)
    cutting.add_argument("--output", type=Path, required=True, help="the new folder")
    cutting.add_argument("--megabytes", type=float, default=PIECE_MB, help=f"most of a piece; default {PIECE_MB}")
    joining = commands.add_parser("join", help="check every piece, and put them together")
    joining.add_argument("folder", type=Path)
    joining.add_argument("--output", type=Path, help="the new file; default: as it was called, in this folder")
    try:
        sys.stdout.write(f"wrote {_run(parser.parse_args(arguments))}\n")
    except SamxError as refused:
        sys.stderr.write(f"error: {refused}\n")
        return refused.exit_code
    except OSError as cause:
        sys.stderr.write(f"error: cannot write: {cause}\n")
        return WriteError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
