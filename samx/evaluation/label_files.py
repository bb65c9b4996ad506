"""Open labels of whichever kind a file or a folder holds."""

from __future__ import annotations

from pathlib import Path

from samx.errors import InputError, UsageError
from samx.evaluation.coco import json_labels
from samx.evaluation.labels import Labels
from samx.evaluation.mask_files import SUFFIXES, mask_labels


def open_labels(data: Path, pictures: Path | None) -> Labels:
    """Find labels: a COCO or SA-1B JSON file, or a folder of SA-1B files or of PNG masks.

    pictures: their folder, where it is not the one that the labels lie in.
    Raises: InputError for what is no labels; UsageError for a folder that is none.
    """
    if pictures is not None and not pictures.is_dir():
        raise UsageError(f"--pictures '{pictures}' is no folder", expected="the folder that the pictures lie in")
    if not data.is_dir():
        return json_labels(data, pictures or data.parent)
    named = {path.stem for path in (pictures or data).iterdir() if path.suffix.lower() in SUFFIXES}
    own = [path for path in sorted(data.iterdir()) if path.suffix.lower() == ".json" and path.stem in named]
    if not own:
        return mask_labels(data, pictures or data)
    parts = [json_labels(path, pictures or data) for path in own]
    if other := next((part for part in parts if part.kind != "sa1b"), None):
        raise InputError(
            f"'{other.source}' in the folder is no SA-1B file", found=other.kind,
            fix="Name the one file: --data FILE.json.",
        )  # fmt: skip
    return Labels("sa1b", data, [picture for part in parts for picture in part.pictures])
