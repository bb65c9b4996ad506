"""Workers as actors of Ray Data, on this machine or a cluster: each reads its pictures itself."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from samx.datasets.parts import table_of
from samx.datasets.pictures import Picture, Reader, Row, Rows, failed, key_of
from samx.datasets.segmenter import How, Segmenter
from samx.errors import SamxError
from samx.extras import require, silent

RAY = "ray"  # the extra
BLOCK = 8  # pictures that one actor takes at a time, and does again where it dies
WINDOW = 100_000  # pictures that Ray is told of at a time; actors start anew for the next ones
RETRIES = 2  # of a block whose actor died
# Ray reports over the network that it is used unless the first says no. The second keeps back what its core writes of
# every pool of actors that may be restarted. Both are read when Ray is imported; who sets them is heard.
SILENCE = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}


class Actor:
    """Answer blocks of pictures; made by Ray, once for each actor."""

    def __init__(self, how: How) -> None:
        self._segmenter, self._reader = Segmenter(how), Reader()

    def __call__(self, block: Any) -> Any:
        """Return the rows of a block."""
        pictures = (Picture.from_bytes(line.encode(), "a picture") for line in block["picture"].to_pylist())
        return table_of([self._segmenter(picture, self._reader) for picture in pictures])


def on_ray(how: How, size: int | None, pictures: Iterator[Picture]) -> Rows:
    """Yield the rows of pictures, nearly in their order; what is lost with an actor is done again, one by one.

    size: actors; None: one a GPU of the cluster where the device is one, else one for each `how.threads` cores.
    Raises: MissingExtraError; SamxError where no actor can start.
    """
    ray = start()
    actors = size or actors_of(ray.cluster_resources(), how)
    _try_out(ray, how)
    while window := list(islice(pictures, WINDOW)):
        yield from _window(ray, how, actors, window)


def _window(ray: Any, how: How, actors: int, left: list[Picture]) -> Iterator[Row]:
    """Yield the rows of some pictures."""
    for block in (BLOCK, 1):
        seen: set[bytes] = set()
        for row in _rows(ray, how, actors, left, block):
            seen.add(key_of(row["picture"]))
            yield row
        left = [picture for picture in left if key_of(picture.name) not in seen]
        if not left:
            return
    for picture in left:
        yield failed(picture, f"each of the {RETRIES + 1} actors that worked on it died")


def start() -> Any:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine; quiet, and telling nobody.

    Raises: MissingExtraError.
    """
    for name, value in SILENCE.items():
        os.environ.setdefault(name, value)
    ray: Any = require("ray", RAY, "working on Ray")
    require("ray.data", RAY, "working on Ray")
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # blocks that were lost are done again, or told by row
    if not ray.is_initialized():
        local: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
        ray.init(logging_level="ERROR", log_to_driver=False, **local)
    return ray


def actors_of(resources: dict[str, float], how: How) -> int:
    """Return how many actors a cluster takes."""
    on_gpu = how.device != "cpu"
    return max(1, int(resources.get("GPU", 0) if on_gpu else resources.get("CPU", 1) / how.threads))


def _rows(ray: Any, how: How, actors: int, pictures: Sequence[Picture], block: int) -> Iterator[Row]:
    """Run one pass; blocks whose actors died too often are left out."""
    context = ray.data.DataContext.get_current()
    context.max_errored_blocks, context.execution_options.preserve_order = -1, True
    context.enable_progress_bars, context.print_on_execution_start = False, False
    with silent("ray"):  # that the number of retries cannot be said from 2.64 on, which the extra leaves out
        data = ray.data.from_arrow(list(_blocks(pictures, block))).map_batches(
            Actor, fn_constructor_args=(how,), batch_format="pyarrow", batch_size=block,
            compute=ray.data.ActorPoolStrategy(size=actors), num_cpus=how.threads,
            num_gpus=None if how.device == "cpu" else 1, max_task_retries=RETRIES,
        )  # fmt: skip
    try:
        for rows in data.iter_batches(batch_format="pyarrow", batch_size=None):
            yield from rows.to_pylist()
    except ray.exceptions.RayError as cause:
        raise gave_up(cause) from cause


def _blocks(pictures: Sequence[Picture], size: int) -> Iterator[Any]:
    pa: Any = require("pyarrow", "dataset", "working on Ray")
    waiting = iter(pictures)
    while block := list(islice(waiting, size)):
        yield pa.table({"picture": [json.dumps(picture.to_json()) for picture in block]})


def _try_out(ray: Any, how: How) -> None:
    """Open the model once where actors will: what stops all of them is told before the first picture.

    Raises: SamxError.
    """
    on_gpu = how.device != "cpu"
    try:
        told = ray.get(ray.remote(num_cpus=how.threads, num_gpus=int(on_gpu), max_retries=0)(refusal).remote(how))
    except ray.exceptions.RayError as cause:
        raise gave_up(cause) from cause
    if told is not None:
        raise SamxError.from_json(told)


def refusal(how: How) -> dict[str, object] | None:
    """Return what an actor would refuse with."""
    try:
        Segmenter(how)
    except SamxError as error:
        return error.to_json()
    return None


def gave_up(cause: BaseException) -> SamxError:
    """Return Ray's own words as an error."""
    words = str(cause).strip().splitlines()
    return SamxError("Ray gave up", found=words[-1] if words else None, fix="Ask again to go on with what is left.")
