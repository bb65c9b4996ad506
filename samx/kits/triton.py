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
from samx.kits.triton_backend import PARTS_FILE, VERSION, Parts, Port, model_name
from samx.kits.triton_model import FOLDER
from samx.kits.triton_parts import BACKENDS

MODEL = "samx"
LISTING, FORMAT = "samx-triton.json", "samx-triton"  # what tells a repository of samx's from others when it is replaced
TYPES = {"float32": "FP32", "float16": "FP16", "uint8": "UINT8", "int32": "INT32", "int64": "INT64"}
MOST_PROMPTS = 64  # that the server joins: 2 KiB each in, 0.8 MiB of logits out


def repository(artifact: Artifact, backend: str | None = None) -> dict[str, bytes]:
    """Make every file of the repository, with models of one of Triton's own backends where that is named.

    Raises: as check_artifact(); UnavailableError where samx.pyz cannot be made; as the backend's parts.
    """
    check_artifact(artifact, backend)
    home, manifest = f"{MODEL}/{VERSION}", artifact.manifest
    made = {
        **{f"{home}/{FOLDER}/{name}": artifact.read(name) for name in manifest.files},
        f"{home}/{FOLDER}/{MANIFEST_NAME}": manifest_bytes(artifact.path),
        f"{home}/{PYZ}": pyz(),
        f"{home}/model.py": _template("triton_model.py"),
        f"{MODEL}/config.pbtxt": _template("triton_config.pbtxt", model=MODEL, most=str(MOST_PROMPTS)),
        "client.py": _template("triton_client.py"),
        **(_models(artifact, BACKENDS[backend].parts(artifact)) if backend else {}),
    }
    listing = {"format": FORMAT, "files": sorted([*made, LISTING])}
    return {**made, LISTING: json.dumps(listing, indent=1).encode()}


def check_artifact(artifact: Artifact, backend: str | None = None) -> None:
    """Refuse what a server cannot answer with.

    Raises: UsageError for a backend that is unknown, and a target that it does not run, or, without one, that needs a
    build on the machine; ArtifactError without an encoder of pictures.
    """
    if backend is not None and backend not in BACKENDS:
        raise UsageError("Triton has no such backend", found=f"'{backend}'", expected=" or ".join(BACKENDS))
    entries = [entry for entry in registry.BACKENDS if entry.kit is not None]
    fits = [entry for entry in entries if (entry.triton == backend if backend else entry.compiler is None)]
    known = [entry.target for entry in fits]
    if artifact.manifest.target not in known:
        raise UsageError(
            f"Triton's {backend or 'server'} cannot hold this target", found=f"'{artifact.manifest.target}'",
            expected=" or ".join(known), fix="Export with another --target.",
        )  # fmt: skip
    if artifact.manifest.encoder is None:
        fix = "Export it with this samx, without --no-encoder."
        raise ArtifactError(f"{artifact.path} has no image encoder that takes pictures", fix=fix)


def _models(artifact: Artifact, parts: Parts) -> dict[str, bytes]:
    """Make a model of each part."""
    made = {f"{MODEL}/{VERSION}/{PARTS_FILE}": parts.to_bytes()}
    for role, part in parts.parts.items():
        name = model_name(role)
        made |= {f"{name}/{VERSION}/{file}": artifact.read(source) for file, source in part.files.items()}
        made[f"{name}/config.pbtxt"] = _template(
            "triton_part.pbtxt", part=name, model=MODEL, backend=parts.backend, file=next(iter(part.files)),
            inputs=",\n".join(map(_declared, part.inputs)), outputs=",\n".join(map(_declared, part.outputs)),
            instances=BACKENDS[parts.backend].instances,
        )  # fmt: skip
    return made


def _declared(port: Port) -> str:
    sizes = ", ".join(str(axis) if isinstance(axis, int) else "-1" for axis in port.shape)
    return f'  {{ name: "{port.name}" data_type: TYPE_{TYPES[port.dtype]} dims: [ {sizes} ] }}'


def _template(name: str, **words: str) -> bytes:
    text = (files("samx.kits") / "templates" / f"{name}.in").read_text(encoding="utf-8")
    return Template(text).substitute(words).encode()
