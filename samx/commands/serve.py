"""Serve the page that segments pictures on this machine, with encoder and decoder run by Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samx.artifacts.store import Artifact
from samx.commands.web import scene
from samx.progress import Progress, silent
from samx.web.answers import Answers
from samx.web.server import Server
from samx.web.site import CONFIGURATION, EXAMPLE, configuration, levels_encoder, model_facts, page_files

PORT = 8765


def open_server(
    path: Path, port: int = PORT, *, device: str = "cpu", threads: int | None = None, progress: Progress = silent
) -> Server:
    """Open an artifact of any target that runs here, and listen; serve_forever() answers.

    Raises: ArtifactError, UsageError, MissingExtraError; UnavailableError for a device or a port that is not there.
    """
    artifact = Artifact.open(path)
    levels_encoder(artifact.manifest, str(path))
    progress(f"Opening {path}")
    answers = Answers(artifact, device, threads)
    return Server(port, served_files(artifact, device), answers)


def served_files(artifact: Artifact, device: str) -> dict[str, bytes]:
    """Return the page's files, told that the model runs in Python."""
    example, files = scene(artifact), page_files()
    facts: dict[str, Any] = {
        **model_facts(artifact.manifest), "mode": "served", "example": None if example is None else EXAMPLE,
        "privacy": "It stays on this machine.", "served": f"{artifact.manifest.target} in Python, {device}",
    }  # fmt: skip
    facts["masks"]["first"] = 0  # what Python answers are the masks to choose from
    facts["prompts"]["mask_input"] = False  # questions carry no previous mask
    start = files["index.html"].replace(b"<html ", b'<html data-mode="served" ', 1)
    shown = {} if example is None else {EXAMPLE: example}
    return {**files, **shown, "index.html": start, CONFIGURATION: configuration(facts)}
