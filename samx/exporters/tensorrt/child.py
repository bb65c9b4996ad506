"""The builder in a process of its own: that it was killed, mostly for want of memory, is one line and no lost session.

Run by build_apart(), which leaves its order in a folder and finds the answer there.
"""

from __future__ import annotations

import hashlib
import pickle
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from samx import children
from samx.errors import ArtifactError, SamxError, UnavailableError
from samx.exporters.tensorrt.build import build_engine
from samx.formats.tensorrt.engine import Understood
from samx.formats.tensorrt.library import Message
from samx.formats.tensorrt.plan import EnginePlan
from samx.formats.tensorrt.stamp import Gpu

ORDER_FILE, ANSWER_FILE = "order", "answer"
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
    """Hold an engine, and what the library said and understood."""

    engine: bytes
    understood: Understood
    cache: str | None
    messages: tuple[Message, ...]
    seconds: float


def build_apart(order: Order) -> Built:
    """Build an engine in a process of its own.

    Raises: as build_engine(); UnavailableError where the process was killed, SamxError where it ended otherwise.
    """
    with tempfile.TemporaryDirectory(prefix="samx-build-") as folder:
        Path(folder, ORDER_FILE).write_bytes(pickle.dumps(order))
        code, words = children.run([*CHILD, folder], Path(folder, "output.txt"))
        answer = Path(folder, ANSWER_FILE)
        if code != 0:
            raise _ended(code, words, order)
        found: Built | SamxError = pickle.loads(answer.read_bytes())  # noqa: S301 - this user's own, from a folder of its own
    if isinstance(found, SamxError):
        raise found
    return found


def build_here(order: Order) -> Built:
    """Build an engine in this process.

    Raises: as build_engine(); ArtifactError where the file is not the planned one.
    """
    onnx, opened = order.model.read_bytes(), order.plan.library.start()
    if (found := hashlib.sha256(onnx).hexdigest()) != order.plan.onnx_sha256:
        raise ArtifactError(f"{order.model} changed before it was built", found=found, expected=order.plan.onnx_sha256)
    started = time.perf_counter()
    made = build_engine(onnx, order.plan, opened, order.gpu, path=order.model, memory=order.memory)
    return Built(*made, tuple(opened.messages), time.perf_counter() - started)


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


def main(folder: Path) -> None:
    """Build what is ordered in a folder, and leave the engine or the error there."""
    order: Order = pickle.loads((folder / ORDER_FILE).read_bytes())  # noqa: S301 - of this user's own samx
    answer: Built | SamxError
    try:
        answer = build_here(order)
    except SamxError as error:
        answer = error
    (folder / ANSWER_FILE).write_bytes(pickle.dumps(answer))


if __name__ == "__main__":
    from samx.exporters.tensorrt import child  # under the name that the order's and the answer's classes have

    child.main(Path(sys.argv[1]))
