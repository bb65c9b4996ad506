"""A model repository for NVIDIA's Triton server: an artifact, samx in one file, and the few lines that start it."""

from __future__ import annotations

import json
from importlib.resources import files
from string import Template

from samx import registry
from samx.artifacts.manifest import MANIFEST_NAME
from samx.artifacts.store import Artifact, manifest_bytes
from samx.errors import ArtifactError, UsageError
from samx.kits.pyz import PYZ, pyz
from samx.kits.triton_model import FOLDER

MODEL, VERSION = "samx", "1"
LISTING, FORMAT = "samx-triton.json", "samx-triton"  # what tells a repository of samx's from others when it is replaced
MOST_PROMPTS = 64  # that the server joins: 2 KiB each in, 0.8 MiB of logits out


def repository(artifact: Artifact) -> dict[str, bytes]:
    """Make every file of the repository.

    Raises: as check_artifact(); UnavailableError where samx.pyz cannot be made.
    """
    check_artifact(artifact)
    home, manifest = f"{MODEL}/{VERSION}", artifact.manifest
    made = {
        **{f"{home}/{FOLDER}/{name}": artifact.read(name) for name in manifest.files},
        f"{home}/{FOLDER}/{MANIFEST_NAME}": manifest_bytes(artifact.path),
        f"{home}/{PYZ}": pyz(),
        f"{home}/model.py": _template("triton_model.py"),
        f"{MODEL}/config.pbtxt": _template("triton_config.pbtxt", model=MODEL, most=str(MOST_PROMPTS)),
        "client.py": _template("triton_client.py"),
    }
    listing = {"format": FORMAT, "files": sorted([*made, LISTING])}
    return {**made, LISTING: json.dumps(listing, indent=1).encode()}


def check_artifact(artifact: Artifact) -> None:
    """Refuse what a server cannot answer with.

    Raises: UsageError for a target that needs a build on the machine; ArtifactError without an encoder of pictures.
    """
    known = [entry.target for entry in registry.BACKENDS if entry.kit is not None and entry.compiler is None]
    if artifact.manifest.target not in known:
        raise UsageError(
            "Triton's server cannot hold this target", found=f"'{artifact.manifest.target}'",
            expected=" or ".join(known), fix="Export with another --target.",
        )  # fmt: skip
    if artifact.manifest.encoder is None:
        fix = "Export it with this samx, without --no-encoder."
        raise ArtifactError(f"{artifact.path} has no image encoder that takes pictures", fix=fix)


def _template(name: str, **words: str) -> bytes:
    text = (files("samx.kits") / "templates" / f"{name}.in").read_text(encoding="utf-8")
    return Template(text).substitute(words).encode()
