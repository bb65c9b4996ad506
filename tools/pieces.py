"""Cut a file into pieces that are small enough to be carried, and join them again after checking each.

python tools/pieces.py cut onnxruntime_gpu.whl --output pieces     makes the folder: pieces, and index.json
python tools/pieces.py join pieces --output onnxruntime_gpu.whl    the name in the index, if none is given
Exit codes: 0, or 2 for a request that cannot be meant, 6 for pieces that are damaged, 7 for what cannot be written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

FORMAT = "samx-pieces/1"
INDEX = "index.json"
MEGABYTE = 1_000_000
PIECE_MB = 60
CHUNK_BYTES = 1 << 20
USAGE, DAMAGED, NOT_WRITTEN = 2, 6, 7


class RefusalError(Exception):
    """End the program with one line and an exit code."""

    def __init__(self, exit_code: int, words: str) -> None:
        super().__init__(words)
        self.exit_code = exit_code


def cut(file: Path, folder: Path, piece_bytes: int) -> None:
    """Write a file's pieces and their index into a new folder, whole or not at all."""
    if not file.is_file():
        raise RefusalError(USAGE, f"'{file}' is no file; name the one to cut")
    _check_free(folder)
    staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with file.open("rb") as source:
            pieces: list[dict[str, Any]] = []
            whole = hashlib.sha256()
            while size := min(piece_bytes, file.stat().st_size - source.tell()):
                path = staged / f"{len(pieces):03}.piece"
                with path.open("xb") as target:
                    digest = _copy(source, target, size, whole)
                pieces.append({"name": path.name, "bytes": size, "sha256": digest})
        index = {"format": FORMAT, "name": file.name, "bytes": file.stat().st_size, "sha256": whole.hexdigest()}
        (staged / INDEX).write_text(json.dumps({**index, "pieces": pieces}, indent=1) + "\n", encoding="utf-8")
        staged.chmod(0o755)
        _check_free(folder)
        staged.rename(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def join(folder: Path, file: Path | None) -> Path:
    """Put the pieces together after checking each, whole or not at all; return the file."""
    index = read_index(folder)
    target = file or Path(index["name"])
    _check_free(target)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        whole = hashlib.sha256()
        with os.fdopen(descriptor, "wb") as out:
            for piece in index["pieces"]:
                _append(folder / piece["name"], piece, out, whole)
            size = out.tell()
        if (size, whole.hexdigest()) != (index["bytes"], index["sha256"]):
            raise RefusalError(DAMAGED, f"the pieces in '{folder}' do not make '{index['name']}'; copy them all again")
        os.chmod(name, 0o644)
        _check_free(target)
        os.rename(name, target)
    finally:
        Path(name).unlink(missing_ok=True)
    return target


def read_index(folder: Path) -> dict[str, Any]:
    """Read an index, and check that it names files of its own folder alone."""
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        entries = [index, *index["pieces"]]
        names = [entry["name"] for entry in entries]
        sound = index["format"] == FORMAT and all(
            isinstance(entry["bytes"], int) and isinstance(entry["sha256"], str) for entry in entries
        )
    except OSError as cause:
        raise RefusalError(
            USAGE, f"'{path}' cannot be read: {cause.strerror}; name the folder with the pieces"
        ) from cause
    except (ValueError, KeyError, TypeError) as cause:
        raise RefusalError(DAMAGED, f"'{path}' is no index of pieces ({FORMAT}); copy it again") from cause
    foreign = [name for name in names if not isinstance(name, str) or name != Path(name).name or name in ("", "..")]
    if foreign or not sound:
        raise RefusalError(DAMAGED, f"'{path}' is no sound index{f': it names {foreign[0]!r}' if foreign else ''}")
    return dict(index)


def _append(path: Path, piece: dict[str, Any], out: IO[bytes], whole: Any) -> None:
    if not path.is_file():
        raise RefusalError(DAMAGED, f"piece '{path}' is missing; copy it again")
    if path.stat().st_size != piece["bytes"]:
        raise RefusalError(
            DAMAGED, f"piece '{path}' has {path.stat().st_size} bytes, expected {piece['bytes']}; copy it again"
        )
    with path.open("rb") as source:
        if _copy(source, out, piece["bytes"], whole) != piece["sha256"]:
            raise RefusalError(DAMAGED, f"piece '{path}' has another SHA-256 than its index says; copy it again")


def _copy(source: IO[bytes], target: IO[bytes], size: int, whole: Any) -> str:
    """Copy so many bytes; return their SHA-256, and add them to that of the whole."""
    digest = hashlib.sha256()
    for chunk in _chunks(source, size):
        target.write(chunk)
        digest.update(chunk)
        whole.update(chunk)
    return digest.hexdigest()


def _chunks(source: IO[bytes], size: int) -> Iterator[bytes]:
    while size:
        chunk = source.read(min(size, CHUNK_BYTES))
        if not chunk:
            raise RefusalError(DAMAGED, "a file became shorter while it was read")
        size -= len(chunk)
        yield chunk


def _check_free(path: Path) -> None:
    if os.path.lexists(path):
        raise RefusalError(NOT_WRITTEN, f"'{path}' exists already; remove it, or choose another name with --output")


def main(arguments: Sequence[str] | None = None) -> int:
    """Cut or join; say in one line what went wrong."""
    parser = argparse.ArgumentParser(prog="pieces.py", description="Cut a file into pieces, and join them again.")
    commands = parser.add_subparsers(dest="command", required=True)
    cutting = commands.add_parser("cut", help="write a folder of pieces")
    cutting.add_argument("file", type=Path)
    cutting.add_argument("--output", type=Path, required=True, help="the new folder")
    cutting.add_argument("--megabytes", type=float, default=PIECE_MB, help=f"most of a piece; default {PIECE_MB}")
    joining = commands.add_parser("join", help="check every piece, and put them together")
    joining.add_argument("folder", type=Path)
    joining.add_argument("--output", type=Path, help="the new file; default: as it was called, in this folder")
    options = parser.parse_args(arguments)
    try:
        if options.command == "join":
            print(f"wrote {join(options.folder, options.output)}")  # noqa: T201 - this is a program
            return 0
        if not 1 <= options.megabytes * MEGABYTE < float("inf"):
            raise RefusalError(USAGE, f"no size of a piece: {options.megabytes:g} MB")
        cut(options.file, options.output, int(options.megabytes * MEGABYTE))
        print(f"wrote {options.output}")  # noqa: T201
    except RefusalError as refusal:
        print(f"error: {refusal}", file=sys.stderr)  # noqa: T201
        return refusal.exit_code
    except OSError as cause:
        print(f"error: cannot write: {cause}", file=sys.stderr)  # noqa: T201
        return NOT_WRITTEN
    return 0


if __name__ == "__main__":
    sys.exit(main())
