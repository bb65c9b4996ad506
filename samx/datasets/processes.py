"""Workers in processes of this machine: rows come in the pictures' order, and a process that dies is replaced."""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue

from samx import children
from samx.datasets.child import READY
from samx.datasets.pictures import Picture, Read, Row, Rows, failed
from samx.datasets.segmenter import How
from samx.errors import SamxError

AHEAD = 16  # pictures a worker that are under way or wait for an earlier one: a slow one holds nobody up for long
TRIES = 2  # a picture may be without fault where its process died; twice is no accident
COMMAND = children.command("samx.datasets.child")
# What numeric libraries read, so that workers do not take each other's cores.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class DiedError(Exception):
    """Tell how a worker's process ended."""


class Worker:
    """A process that answers. It leads a session of its own, so that it is stopped with whatever it starts."""

    def __init__(self, how: How) -> None:
        limits = dict.fromkeys(THREADS, str(how.threads))
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        self.process = subprocess.Popen(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._words,
            env=children.environment(limits), start_new_session=True,
        )  # fmt: skip
        with suppress(OSError):  # it is gone, which wait() tells
            self._send(json.dumps(how.to_json()).encode() + b"\n")

    def wait(self) -> None:
        """Wait until it is ready.

        Raises: the error that it refused with; DiedError.
        """
        found = self._receive()
        if found != READY:
            raise SamxError.from_json(found["refused"])

    def ask(self, picture: Picture, data: bytes) -> Row:
        """Return a picture's row.

        Raises: DiedError.
        """
        line = json.dumps({"picture": picture.to_json(), "bytes": len(data)}).encode() + b"\n"
        try:
            self._send(line + data)
        except OSError as cause:
            raise self._died() from cause
        return self._receive()

    def stop(self) -> None:
        """Stop it, whatever it is at."""
        children.stop(self.process)
        for stream in (self.process.stdin, self.process.stdout, self._words):
            # What it did not read cannot be flushed, and the thread that waits for it may close it at this moment.
            with suppress(OSError, ValueError):
                if stream is not None:
                    stream.close()

    def _send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def _receive(self) -> Row:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._died()
        found: Row = json.loads(line)
        return found

    def _died(self) -> DiedError:
        code = self.process.wait()
        self._words.seek(0)
        words = " ".join(self._words.read().decode(errors="replace").split())[-children.TAIL_CHARACTERS :]
        return DiedError(f"{children.ending(code)}{f'; its last words: {words}' if words else ''}")


class Team:
    """Workers that are free, and how one is replaced."""

    def __init__(self, how: How, size: int, read: Read) -> None:
        self._how, self._read = how, read
        self._stopping = False
        self._lock = threading.Lock()
        self._free: SimpleQueue[Worker] = SimpleQueue()
        self._size = size
        self.workers: list[Worker] = []

    def start(self) -> None:
        """Start all, and wait until they are ready.

        Raises: SamxError where one cannot start.
        """
        for _ in range(self._size):
            self._free.put(self._another())
        for worker in list(self.workers):
            try:
                worker.wait()
            except DiedError as died:
                raise SamxError("a worker cannot start", found=died) from died

    def row(self, picture: Picture) -> Row:
        """Have a picture read and answered; where the process dies, by another one once more."""
        try:
            data = self._read(picture)
        except (SamxError, MemoryError) as error:
            return failed(picture, str(error) or "there is not enough memory for this picture")
        worker = self._free.get()
        try:
            for _ in range(TRIES):
                try:
                    return worker.ask(picture, data)
                except DiedError as died:
                    words = str(died)
                    worker = self._replaced(worker)
            return failed(picture, f"the process that worked on it died {TRIES} times, at last so: {words}")
        finally:
            self._free.put(worker)

    def stop(self) -> None:
        """Stop all."""
        with self._lock:
            self._stopping = True
            for worker in self.workers:
                worker.stop()

    def _another(self) -> Worker:
        with self._lock:
            if self._stopping:
                raise SamxError("stopped")
            worker = Worker(self._how)
            self.workers.append(worker)
        return worker

    def _replaced(self, worker: Worker) -> Worker:
        worker.stop()
        with self._lock:
            if not self._stopping:
                self.workers.remove(worker)
        another = self._another()
        with suppress(DiedError):  # then its first picture finds it so
            another.wait()
        return another


def in_processes(how: How, size: int, read: Read, pictures: Iterator[Picture]) -> Rows:
    """Yield the rows of pictures in their order; few are under way at a time, however many there are.

    Raises: SamxError where no worker can start.
    """
    team = Team(how, size, read)
    pool = ThreadPoolExecutor(size, "samx-pictures")
    try:
        team.start()
        waiting: deque[Future[Row]] = deque()
        for picture in pictures:
            waiting.append(pool.submit(team.row, picture))
            if len(waiting) >= AHEAD * size:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        team.stop()
        pool.shutdown(cancel_futures=True)
