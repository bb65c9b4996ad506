"""_dataset.json in a folder of results: of which pictures, by which model and with which settings they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import samx
from samx.artifacts.manifest import Manifest
from samx.artifacts.strict_json import Document, Sha256
from samx.datasets.stores import Store
from samx.errors import ArtifactError, WriteError
from samx.validators.child import ENCODER_SUITE_ROLE, SUITE_ROLE
from samx.validators.report import PARITY_ROLE

RECORD = "_dataset.json"  # readers of folders of Parquet pass over names that begin so
RECORD_CAP_BYTES = 1 << 20
EVIDENCE = (SUITE_ROLE, ENCODER_SUITE_ROLE, PARITY_ROLE)  # roles of files that tell of a model and change no mask


@dataclass(frozen=True)
class Record(Document):
    """Say what a folder of results belongs to; `samx` is told, and not compared."""

    HEADER = {"format": "samx-dataset", "version": 1}

    source: str
    model: Sha256
    settings: Mapping[str, Any]
    samx: str = samx.__version__

    @property
    def key(self) -> str:
        """Return what stands for all that decides a row."""
        return hashlib.sha256(json.dumps([self.source, self.model, self.settings], sort_keys=True).encode()).hexdigest()

    def check_same(self, there: Record, out: Store) -> None:
        """Refuse to go on with another request's results.

        Raises: WriteError that names what differs.
        """
        differing = [name for name in ("source", "model") if getattr(self, name) != getattr(there, name)]
        names = sorted({*self.settings, *there.settings})
        differing += [name for name in names if self.settings.get(name) != there.settings.get(name)]
        if differing:
            told = "; ".join(f"{name} {there.shown(name)} there, {self.shown(name)} now" for name in differing)
            raise WriteError(
                f"'{out.uri}' holds the results of another request", found=told,
                fix="Ask as then to go on with it, or choose another folder.",
            )  # fmt: skip

    def shown(self, name: str) -> str:
        """Return a value in words."""
        value = getattr(self, name) if name in ("source", "model") else self.settings.get(name, "not given")
        return value[:12] if name == "model" else str(value)


def model_key(manifest: Manifest) -> str:
    """Return what stands for a model: every file that a mask may hang on, and what is known of it."""
    reports = {entry.report for entry in manifest.evidence}
    files = {
        name: entry.sha256 for name, entry in manifest.files.items()
        if entry.role not in EVIDENCE and name not in reports
    }  # fmt: skip
    facts = [manifest.target, manifest.precision, manifest.spec.to_json(), files]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def read_record(out: Store) -> Record | None:
    """Read what a folder belongs to; None for one that is empty or not there.

    Raises: WriteError for a folder of something else, or that cannot be written; ArtifactError for a damaged file.
    """
    out.check_writable()
    names = [name for name in out.names() if not name.startswith(".")]
    if not names and not out.fs.isfile(out.root):
        return None
    if RECORD not in names:
        found = ", ".join(names[:3]) or "a file"
        raise WriteError(f"'{out.uri}' is no folder of results", found=found, expected="an empty or a new folder")
    where = f"'{out.at(RECORD).uri}'"
    return Record.from_bytes(out.at(RECORD).read(RECORD_CAP_BYTES, where, ArtifactError), where)
