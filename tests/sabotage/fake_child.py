"""A parity child with a runtime of its own, told by its first argument how to misbehave."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from samx import registry
from samx.artifacts.store import Artifact
from samx.errors import PromptError
from samx.models.session import Feed, Outputs, Placement
from samx.validators import child
from samx.validators.arrays import feed_digest
from samx.validators.report import ParityReport

TARGET = "fake"
BACKEND = replace(registry.BACKENDS[0], target=TARGET, runtime="fake_child:open_replay")
BEHAVIOUR = "honest"


def keys(image: Feed, prompts: Feed) -> list[str]:
    """Name every prompt on an image."""
    rows = [{name: value[i] for name, value in prompts.items()} for i in range(len(prompts["point_coords"]))]
    return [feed_digest({**image, **row}) for row in rows]


class ReplaySession:
    """Answer from the artifact's recorded outputs, prompt by prompt."""

    def __init__(self, artifact: Artifact, device: str) -> None:
        self.spec = artifact.manifest.spec
        self.device = device
        with np.load(io.BytesIO(artifact.read("answers.npz")), allow_pickle=False) as stored:
            self.answers = dict(stored)
        self.image: Feed = {}

    def set_image(self, image: Feed) -> None:
        self.image = image

    def decode(self, prompts: Feed) -> Outputs:
        IN_DECODE.get(BEHAVIOUR, lambda: None)()
        if not np.isin(prompts["has_mask_input"], (0, 1)).all():
            raise PromptError("has_mask_input is no flag")
        names, asked = [tensor.name for tensor in self.spec.outputs], keys(self.image, prompts)
        outputs = {name: np.stack([self.answers[f"{key}.{name}"] for key in asked]) for name in names}
        if BEHAVIOUR == "wrong":
            outputs["low_res_masks"] = -outputs["low_res_masks"]
        return outputs

    def placement(self) -> Placement:
        return Placement("replay", self.device, {"cpu" if BEHAVIOUR == "fallback" else self.device: 1}, {})


def open_replay(artifact: Artifact, *, device: str, threads: int | None) -> ReplaySession:
    """Open the recorded answers."""
    return ReplaySession(artifact, device)


def _raise() -> None:
    raise RuntimeError("driver says no")


IN_DECODE: dict[str, Callable[[], object]] = {
    "segv": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "abort": os.abort,
    "exit 0 early": lambda: os._exit(0),
    "exit 3 early": lambda: os._exit(3),
    "sys.exit": lambda: sys.exit(0),
    "hang": lambda: time.sleep(600),
    "raise": _raise,
}


def _report_path(arguments: list[str]) -> Path:
    return Path(arguments[arguments.index("--report") + 1])


def _change_report(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def _of_another_run(data: bytes) -> bytes:
    return replace(ParityReport.from_bytes(data, "report"), nonce="f" * 32).to_bytes()


AFTERWARDS: dict[str, Callable[[bytes], bytes]] = {
    "stale": _of_another_run,
    "truncated": lambda data: data[:-40],
    "empty": lambda data: b"",
    "forged verdict": lambda data: data.replace(b'"passed": false', b'"passed": true'),
}


def main() -> int:
    """Run the real child with the fake runtime, then spoil what it leaves."""
    global BEHAVIOUR
    BEHAVIOUR, arguments = sys.argv[1], sys.argv[2:]
    registry.BACKENDS = (*registry.BACKENDS, BACKEND)
    sys.modules["fake_child"] = sys.modules["__main__"]
    if BEHAVIOUR == "no report":
        return 0
    if BEHAVIOUR == "crash before":
        raise RuntimeError("library missing")
    honest, BEHAVIOUR = (
        BEHAVIOUR,
        {"forged verdict": "wrong", "exit 0 though failed": "wrong"}.get(BEHAVIOUR, BEHAVIOUR),
    )
    code = child.main(arguments)
    if honest in AFTERWARDS:
        _change_report(_report_path(arguments), AFTERWARDS[honest])
    if honest == "segv after":
        os.kill(os.getpid(), signal.SIGSEGV)
    forced = {"exit 0 though failed": 0, "forged verdict": 0, "exit 3 though passed": 3, "exit 1 though passed": 1}
    return forced.get(honest, code)


if __name__ == "__main__":
    sys.exit(main())
