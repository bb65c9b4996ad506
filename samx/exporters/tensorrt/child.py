"""The builder in a process of its own: that it was killed, mostly for want of memory, is one line and no lost session.

Run by build_apart(), which leaves its order in a folder and finds the answer and the engine there.
"""

from __future__ import annotations

import hashlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samx import children
from samx.artifacts.strict_json import parse, plain, take
from samx.errors import ArtifactError, SamxError, UnavailableError
from samx.exporters.tensorrt.build import build_engine
from samx.formats.tensorrt.library import Message
from samx.formats.tensorrt.plan import PARTS, PLANS, EnginePlan
from samx.formats.tensorrt.stamp import Gpu

ORDER_FILE, ANSWER_FILE, ENGINE_FILE = "order.json", "answer.json", "engine"
CHILD = children.command("samx.exporters.tensorrt.child")


@dataclass(frozen=True)
class Order:
    """Say what is to be built, and within how much memory."""

    model: Path
    plan: EnginePlan
    gpu: Gpu | None
    memory: int | None = None  # bytes


@dataclass(frozen=True)
class Built:
    """Hold an engine, and what the library said and understood, the latter as JSON has it."""

    engine: bytes
    understood: Mapping[str, Any]
    cache: str | None
    messages: tuple[Message, ...]
    seconds: float


def build_apart(order: Order) -> Built:
    """Build an engine in a process of its own.

    Raises: as build_engine(); UnavailableError where the process was killed, SamxError where it ended otherwise.
    """
    with tempfile.TemporaryDirectory(prefix="samx-build-") as folder:
        Path(folder, ORDER_FILE).write_bytes(_bytes({
            "model": str(order.model), "part": order.plan.PART.title, "plan": order.plan.to_json(),
            "gpu": plain(order.gpu), "memory": order.memory,
        }))  # fmt: skip
        code, words = children.run([*CHILD, folder], Path(folder, "output.txt"))
        if code != 0:
            raise _ended(code, words, order)
        answer = parse(Path(folder, ANSWER_FILE).read_bytes(), "the builder's answer")
        if "error" in answer:
            raise SamxError.from_json(answer)
        messages = tuple((severity, text) for severity, text in answer.pop("messages"))
        return Built(Path(folder, ENGINE_FILE).read_bytes(), messages=messages, **answer)


def build_here(order: Order) -> Built:
    """Build an engine in this process.

    Raises: as build_engine(); ArtifactError where the file is not the planned one.
    """
    onnx, opened = order.model.read_bytes(), order.plan.library.start()
    if (found := hashlib.sha256(onnx).hexdigest()) != order.plan.onnx_sha256:
        raise ArtifactError(f"{order.model} changed before it was built", found=found, expected=order.plan.onnx_sha256)
    started = time.perf_counter()
    engine, understood, cache = build_engine(onnx, order.plan, opened, order.gpu, path=order.model, memory=order.memory)
    return Built(engine, plain(understood), cache, tuple(opened.messages), time.perf_counter() - started)


def _ended(code: int | None, words: str, order: Order) -> SamxError:
    what = f"the process that builds the {order.plan.PART.title}'s engine"
    if sys.platform != "win32" and code == -signal.SIGKILL:
        return UnavailableError(
            f"{what} was killed", found="SIGKILL, which is what a system out of memory does",
            fix="Cap its memory ('samx build DIR --memory 2GiB'), end other programs, or export for smaller sizes.",
        )  # fmt: skip
    found = children.ending(code)
    found = f"{found}; its last words: {words}" if words else found
    return SamxError(f"{what} ended without one", found=found, fix="Please report this.")


def _bytes(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, allow_nan=False).encode()


def _read_order(data: bytes) -> Order:
    found = parse(data, "the builder's order")
    plans = {part.title: PLANS[part] for part in PARTS}
    plan = plans[found["part"]].from_json(found["plan"], "the builder's order: plan")
    return Order(
        Path(found["model"]), plan, take(Gpu | None, found["gpu"], "the builder's order: gpu"), found["memory"]
    )


def main(folder: Path) -> None:
    """Build what is ordered in a folder, and leave the engine or the error there."""
    try:
        built = build_here(_read_order((folder / ORDER_FILE).read_bytes()))
        (folder / ENGINE_FILE).write_bytes(built.engine)
        answer = {name: value for name, value in plain(built).items() if name != "engine"}
    except SamxError as error:
        answer = error.to_json()
    (folder / ANSWER_FILE).write_bytes(_bytes(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
