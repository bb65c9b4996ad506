"""Find masks on all pictures of a data set and write them as Parquet; asked again, go on with what is missing."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from samx.artifacts.store import Artifact
from samx.datasets import on_ray, processes
from samx.datasets.parts import Parts
from samx.datasets.pictures import Picture, Reader, Rows, key_of
from samx.datasets.record import Record, model_key, read_record
from samx.datasets.segmenter import How
from samx.datasets.sources import Source, open_source, survey
from samx.datasets.stores import DATASET, Store
from samx.devices.cpu import usable_cpus
from samx.errors import ImageError, SamxError, UsageError, WriteError
from samx.everything import check_settings
from samx.extras import require
from samx.files import GRAPH_CAP_BYTES, read_file
from samx.models.spec import DecoderSpec
from samx.processing.images import check_pixels
from samx.processing.postprocess import check_choice
from samx.processing.rasters import Levels
from samx.processing.regions import regions_library
from samx.processing.rle import coco_library
from samx.processing.settings import Settings
from samx.progress import Progress, silent
from samx.registry import GRAPH_DEVICE, backend

PER_FILE = 64  # rows: what an interrupted run has to do again at most, beside what was under way
ENGINES = ("processes", "ray")
TOLD_EVERY_S, TOLD_AT_LEAST_S = 2.0, 60.0  # the longer it takes, the less often
AGAIN = "What is written stays; make room, and ask again to go on with the rest."


@dataclass(frozen=True)
class DatasetRequest:
    """Ask for the masks of all pictures at `source`, a path or a URL.

    everything: the automatic mode's settings; None: prompts say what is looked for, a table's column or a JSON file.
    column, names: of a table, of pictures and of what they are called; levels: as read_image().
    workers, threads: None: all that this machine, or Ray's cluster, has; retry: do pictures with an error again.
    """

    source: str
    out: str
    model: Path
    everything: Mapping[str, Any] | None = None
    prompts: str | None = None
    masks: str = "best"
    max_hole_area_px: int = 0
    min_region_area_px: int = 0
    column: str | None = None
    names: str | None = None
    encoder: Path | None = None
    pixels: str | None = None
    levels: Levels | None = None
    device: str = GRAPH_DEVICE
    engine: str = ENGINES[0]
    workers: int | None = None
    threads: int | None = None
    per_file: int = PER_FILE
    retry: bool = False

    def check(self) -> None:
        """Refuse what does not go together, and what is not installed.

        Raises: UsageError, MissingExtraError.
        """
        for what, place in (("the source", self.source), ("--output", self.out)):
            if not place.strip():
                expected = "a folder, a file or a URL; '.' is the current folder"
                raise UsageError(f"{what} is empty", found=repr(place), expected=expected)
        if self.engine not in ENGINES:
            raise UsageError("unknown engine", found=repr(self.engine), expected=" or ".join(ENGINES))
        if self.everything is not None and (self.prompts, self.masks, self._areas) != (None, "best", (0, 0)):
            raise UsageError("prompts and their options are not for --everything", fix="Ask for one or the other.")
        if min(self._areas) < 0:
            raise UsageError("an area is below 0", found=min(self._areas))
        check_pixels(self.encoder, self.pixels)
        coco_library()
        require("pyarrow.parquet", DATASET, "writing Parquet")
        if any(self._areas):
            regions_library()

    def checked_settings(self, spec: DecoderSpec) -> dict[str, Any] | None:
        """Return all of the automatic mode's settings, the family's where none were given.

        Raises: UsageError for what is out of range, or not in the export.
        """
        if self.everything is None:
            check_choice(self.masks, spec)
            return None
        settings = Settings.of(spec, self.everything)
        check_settings(spec, settings)
        return asdict(settings)

    def how(self, threads: int) -> How:
        """Return what workers are told."""
        return How(
            str(self.model.absolute()), self.device, threads, self.everything, self.masks, *self._areas,
            None if self.encoder is None else str(self.encoder.absolute()), self.pixels, self.levels,
        )  # fmt: skip

    def record(self, artifact: Artifact, source: Source) -> Record:
        """Return what the results belong to.

        Raises: UsageError; ImageError for an encoder that cannot be read.
        """
        encoder = None
        if self.encoder is not None:
            encoder = hashlib.sha256(read_file(self.encoder, GRAPH_CAP_BYTES, f"encoder '{self.encoder}'", ImageError))
        decided = {
            **source.facts, **(self.checked_settings(artifact.manifest.spec) or {}),
            "everything": self.everything is not None, "mask": self.masks, "max_hole_area": self.max_hole_area_px,
            "min_region_area": self.min_region_area_px, "encoder": encoder and encoder.hexdigest(),
            "pixels": self.pixels, "range": None if self.levels is None else list(self.levels), "device": self.device,
        }  # fmt: skip
        return Record(source.store.uri, model_key(artifact.manifest), decided)

    @property
    def _areas(self) -> tuple[int, int]:
        return self.max_hole_area_px, self.min_region_area_px


def check_outlives(out: str) -> None:
    """Refuse results that would be gone with this process.

    Raises: UsageError; as Store.of().
    """
    if out.strip() and Store.of(out).is_own_memory:
        fix = "Name a folder or an object store; 'memory:' is for Python programs, which go on afterwards."
        raise UsageError("the results would be lost as the command ends", found=f"--output {out}", fix=fix)


def segment_dataset(asked: DatasetRequest, progress: Progress = silent) -> dict[str, Any]:
    """Write the masks of every picture that has no row yet; return what there is now.

    A picture that cannot be answered has a row with its error, and stops nothing.
    Raises: UsageError, ArtifactError, InputError, WriteError, UnavailableError; all but a full or failing disk before
    the first picture.
    """
    asked.check()
    artifact = Artifact.open(asked.model)
    asked.checked_settings(artifact.manifest.spec)
    if asked.engine == ENGINES[0]:
        backend(artifact.manifest.target).require_device(asked.device)
    source, out = open_source(asked.source, asked.column, asked.names, asked.prompts), Store.of(asked.out)
    if asked.engine == "ray" and source.store.is_own_memory:
        raise UsageError("Ray's actors do not see the memory of this process", found=source.store.uri)
    parts = Parts(out, asked.record(artifact, source))
    there = read_record(out)
    if there is not None:
        parts.record.check_same(there, out)
    total = survey(source, progress)
    again = parts.drop_failures() if asked.retry else 0
    done = parts.done()
    run = Run(parts, total - len(done), progress)
    if next(_left(source, done), None) is not None:
        progress("Starting workers")
        run.write(_rows(asked, _left(source, done)), asked.per_file)
    _check_whole(parts, source)
    return _facts(run, total, len(done), again)


def _left(source: Source, done: set[bytes]) -> Iterator[Picture]:
    return (picture for picture in source.pictures() if key_of(picture.name) not in done)


def _rows(asked: DatasetRequest, pictures: Iterator[Picture]) -> Rows:
    """Have the pictures answered, by workers of one thread each where nothing else was asked for."""
    if asked.engine == "ray":
        return on_ray.on_ray(asked.how(asked.threads or 1), asked.workers, pictures)
    size = asked.workers or (max(1, usable_cpus() // (asked.threads or 1)) if asked.device == GRAPH_DEVICE else 1)
    threads = asked.threads or max(1, usable_cpus() // size)
    return processes.in_processes(asked.how(threads), size, Reader(), pictures)


@dataclass
class Run:
    """Write rows as they come, and count them."""

    parts: Parts
    expected: int
    progress: Progress
    rows: int = 0
    first_error: str | None = None
    seconds: float = 0.0  # from the start of the workers on

    def write(self, rows: Rows, per_file: int) -> None:
        """Write files of so many rows, and a last one.

        Raises: WriteError; as the workers.
        """
        counted, written = self._counted(rows), 0
        try:
            while part := list(islice(counted, per_file)):
                self.parts.write(part)
                written += len(part)
        except WriteError as error:
            found = f"{error.found or 'an error'} after {written} pictures of this run"
            raise WriteError(error.what, found=found, fix=AGAIN) from error
        finally:
            counted.close()

    def _counted(self, rows: Rows) -> Rows:
        started = told = time.monotonic()
        with closing(rows):
            for row in rows:
                if not self.rows:  # workers start, and a first write finds a place that takes nothing
                    self.parts.begin()
                self.rows += 1
                if row["error"] is not None and self.first_error is None:
                    self.first_error = f"{row['picture']}: {row['error']}"
                self.seconds = time.monotonic() - started
                if time.monotonic() - told >= min(TOLD_AT_LEAST_S, max(TOLD_EVERY_S, self.seconds / 50)):
                    told = time.monotonic()
                    speed = f"{self.rows / self.seconds:.2g} pictures a second"
                    self.progress(f"Segmenting, {speed}", self.rows, self.expected)
                yield row


def _check_whole(parts: Parts, source: Source) -> None:
    """See for every picture that it has a row, and for every row that it is the only one.

    Raises: SamxError, ArtifactError.
    """
    missing = [picture.name for picture in islice(_left(source, parts.done()), 3)]
    if missing:
        raise SamxError("pictures have no row", found=", ".join(missing), fix="Ask again: they are done then.")


def _facts(run: Run, total: int, before: int, again: int) -> dict[str, Any]:
    out, totals = run.parts.out, run.parts.totals()
    summary = f"{out.uri} has {totals['masks']:,} masks of {totals['pictures']:,} pictures; {run.rows:,} done now"
    summary += f", {before:,} before" if before else ""
    summary += f" ({again:,} again)" if again else ""
    warnings = []
    if totals["errors"]:
        first = f"; the first now: {run.first_error}" if run.first_error else ""
        warnings.append(f"{totals['errors']:,} pictures have an error and no masks (column 'error'){first}")
    return {
        "out": out.uri, "source_pictures": total, **totals, "done_now": run.rows, "done_before": before,
        "again": again, "files": len(run.parts.names()), "seconds": round(run.seconds, 3), "warnings": warnings,
        "summary": summary,
    }  # fmt: skip
