"""Everything that lies in a kit, by name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.resources import files
from string import Template

from samx.artifacts.manifest import MANIFEST_NAME, Manifest
from samx.artifacts.store import Artifact, manifest_bytes
from samx.kits.pyz import PYZ, pyz
from samx.registry import GRAPH_DEVICE, Backend, backend, load

FOLDER, README = "artifact", "README.txt"
KIT_FILE = "kit.sha256"  # which samx/__main__.py compares the kit with


def contents(artifact: Artifact) -> dict[str, bytes]:
    """Make every file of a kit; a name that ends with '/' is a folder.

    Raises: ArtifactError; MissingExtraError where reading the artifact needs a library; UnavailableError.
    """
    manifest = artifact.manifest
    entry = backend(manifest.target)
    more, words = load(entry.kit_files)(artifact, FOLDER) if entry.kit_files else ({}, {})
    words = {"name": artifact.path.resolve().name, **words}
    made = {
        **{f"{FOLDER}/{name}": artifact.read(name) for name in manifest.files},
        f"{FOLDER}/{MANIFEST_NAME}": manifest_bytes(artifact.path),
        PYZ: pyz(),
        README: _readme(entry, manifest, words).encode(),
        **more,
    }
    # Building an engine on the device adds it to the manifest, which then stands for what it lists.
    written = [f"{FOLDER}/{MANIFEST_NAME}"] if entry.compiler else []
    listed = sorted(name for name in made if name not in written and not name.endswith("/"))
    hashes = [f"{hashlib.sha256(made[name]).hexdigest()}  {name}\n" for name in listed]
    return {**made, KIT_FILE: "".join(hashes).encode()}


def filled(name: str, words: Mapping[str, object]) -> str:
    """Fill a template in; '' where there is none of that name."""
    template = files("samx.kits") / "templates" / f"{name}.txt.in"
    return Template(template.read_text(encoding="utf-8")).substitute(words) if template.is_file() else ""


def _readme(entry: Backend, manifest: Manifest, words: Mapping[str, object]) -> str:
    """Write the commands for each device; what a target alone needs said is in the template of its name."""
    commands = [
        filled("device", {
            "device": device, "prepare": "\n    ".join(lines),
            "option": "" if device == GRAPH_DEVICE else f" --device {device}",
        })
        for device, lines in (entry.kit or {}).items()
    ]  # fmt: skip
    known = {"family": manifest.spec.family, "target": manifest.target, "precision": manifest.precision, **words}
    return filled("readme", {**known, "commands": "\n".join(commands), "notes": filled(entry.target, known)})
