"""A worker of its own process: pictures come in on its standard input, rows go out on its standard output.

Started by samx.datasets.processes. A message is a line of JSON; a picture's bytes follow its line. Reading happens on
the other side, so that any store works, also one that lives in that process.
"""

from __future__ import annotations

import json
import os
import sys
from typing import BinaryIO

from samx.artifacts.strict_json import parse
from samx.datasets.pictures import Picture
from samx.datasets.segmenter import How, Segmenter
from samx.errors import SamxError

READY = {"ready": True}


def main() -> int:
    """Answer until nobody asks any more."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    asked = sys.stdin.buffer
    try:
        segmenter = Segmenter(How.from_bytes(asked.readline(), "the worker's request"))
    except Exception as error:
        told = error if isinstance(error, SamxError) else SamxError("a worker cannot start", found=repr(error))
        tell(answers, {"refused": told.to_json()})
        return told.exit_code
    tell(answers, READY)
    while line := asked.readline():
        tell(answers, _answer(segmenter, parse(line, "a picture's line"), asked))
    return 0


def _answer(segmenter: Segmenter, message: dict[str, object], asked: BinaryIO) -> dict[str, object]:
    size = message["bytes"]
    assert isinstance(size, int)
    data = asked.read(size)
    return segmenter(Picture.from_json(message["picture"], "a picture"), lambda _: data)


def tell(stream: BinaryIO, message: object) -> None:
    """Write a line."""
    stream.write(json.dumps(message, allow_nan=False).encode() + b"\n")
    stream.flush()


if __name__ == "__main__":
    sys.exit(main())
