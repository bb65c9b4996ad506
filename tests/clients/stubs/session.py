"""Run a graph with ONNX Runtime for a program in Java, over pipes: its inputs' names, then call after call."""

from __future__ import annotations

import struct
import sys
from typing import Any

import numpy as np
import onnxruntime as ort


def text(words: str) -> bytes:
    """Write words as Java's writeUTF does."""
    return struct.pack(">H", len(words)) + words.encode()


def number() -> int:
    """Read a number as Java writes it; the end of the pipe is the end of the work."""
    found = sys.stdin.buffer.read(4)
    return struct.unpack(">i", found)[0] if len(found) == 4 else sys.exit()


def words() -> str:
    """Read words as Java's writeUTF writes them."""
    found = sys.stdin.buffer.read(2)
    return sys.stdin.buffer.read(struct.unpack(">H", found)[0]).decode() if len(found) == 2 else sys.exit()


def array() -> Any:
    """Read a tensor."""
    kind, shape = words(), [number() for _ in range(number())]
    return np.frombuffer(sys.stdin.buffer.read(number()), kind).reshape(shape)


def main() -> None:
    """Serve one program."""
    session = ort.InferenceSession(sys.argv[1])
    takes = [one.name for one in session.get_inputs()]
    gives = [one.name for one in session.get_outputs()]
    out = sys.stdout.buffer
    out.write(struct.pack(">i", len(takes)) + b"".join(map(text, takes)))
    while True:
        out.flush()
        feed = {words(): array() for _ in takes}
        out.write(struct.pack(">i", len(gives)))
        for name, value in zip(gives, session.run(gives, feed), strict=True):
            sizes = b"".join(struct.pack(">i", size) for size in value.shape)
            out.write(text(name) + text(value.dtype.name) + struct.pack(">i", value.ndim) + sizes)
            out.write(struct.pack(">i", value.nbytes) + np.ascontiguousarray(value).tobytes())


if __name__ == "__main__":
    main()
