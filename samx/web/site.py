"""The static site: which files it holds, and what its page is told of the model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from math import isfinite
from typing import Any

import samx
from samx.artifacts.manifest import ENCODER_ROLE, EncoderEntry, Manifest
from samx.artifacts.store import Artifact
from samx.errors import ArtifactError, UsageError
from samx.files import MIB
from samx.models.spec import DecoderSpec
from samx.processing.postprocess import first_choice
from samx.registry import BACKENDS, GRAPH_ROLES, INT8, backend
from samx.web.onnxruntime_web import LICENCE, RuntimeFiles
from samx.web.tensors import largest_tensor_bytes

FORMAT, CONFIGURATION = "samx-site", "site.json"
PAGE, MODEL, RUNTIME, EXAMPLE = "page", "model", "runtime", "example.png"
MOST_PX = 64_000_000  # a page holds a picture as 4 bytes a pixel, and its mask; more is more than phones give it
MOST_GRAPH_BYTES = 1_900_000_000  # browsers hold no more in one piece of memory
PORTABLE_OPSET = 18  # opset 23's Attention has no kernel on WebGPU
# What hosts that read such a file send along: a page gets threads where nobody else's page can look into its memory.
HEADERS = """/*
  Cross-Origin-Opener-Policy: same-origin
  Cross-Origin-Embedder-Policy: require-corp
"""


def site_files(artifact: Artifact, runtime: RuntimeFiles, example: bytes | None) -> dict[str, bytes]:
    """Return the site's files by their paths.

    Raises: UsageError, ArtifactError for an artifact that no browser runs; MissingExtraError.
    """
    names = graph_names(artifact)
    graphs = {f"{MODEL}/{name}": artifact.read(name) for name in names}
    library = {f"{RUNTIME}/{name}": data for name, data in runtime.files.items()}
    facts = {
        **model_facts(artifact.manifest), "mode": "local", "example": None if example is None else EXAMPLE,
        "privacy": "It stays in this browser.",
        "graphs": [{**_entry(name, data), "largest_tensor_bytes": largest_tensor_bytes(data)}
                   for name, data in graphs.items()],
        "runtime": {device: _build(names, library) for device, names in runtime.builds.items()},
        "webgpu": _against_webgpu(artifact.manifest), "half": artifact.manifest.precision == "fp16",
    }  # fmt: skip
    files = {
        **page_files(),
        **graphs,
        **library,
        f"{RUNTIME}/LICENSE.txt": LICENCE.encode(),
        "_headers": HEADERS.encode(),
    }
    if example is not None:
        files[EXAMPLE] = example
    return {**files, CONFIGURATION: configuration({**facts, "files": sorted([*files, CONFIGURATION])})}


def page_files() -> dict[str, bytes]:
    """Return the page itself: HTML, style and scripts."""
    return {file.name: file.read_bytes() for file in resources.files("samx.web").joinpath(PAGE).iterdir()}


def configuration(facts: Mapping[str, Any]) -> bytes:
    """Return the file that the page reads first."""
    return (json.dumps({"format": FORMAT, "samx": samx.__version__, **facts}, indent=1) + "\n").encode()


def graph_names(artifact: Artifact) -> list[str]:
    """List the graphs in the order in which they run: the encoder, the image's part, and last that of a click.

    Raises: UsageError, ArtifactError for an artifact that no browser runs.
    """
    manifest = artifact.manifest
    if not backend(manifest.target).in_browsers:
        able = " or ".join(entry.target for entry in BACKENDS if entry.in_browsers)
        raise UsageError(
            f"{artifact.path} does not run in browsers", found=f"target '{manifest.target}'",
            expected=f"target '{able}'", fix=f"Export with --target {able} --split.",
        )  # fmt: skip
    levels_encoder(manifest, str(artifact.path))
    found = {entry.role: name for name, entry in manifest.files.items()}
    names = [found[role] for role in (ENCODER_ROLE, *GRAPH_ROLES) if role in found]
    for name in names:
        if manifest.files[name].bytes > MOST_GRAPH_BYTES or f"{name}.data" in manifest.files:
            raise UsageError(
                f"'{name}' is too large for browsers", found=f"more than {MOST_GRAPH_BYTES // MIB} MiB",
                fix="Serve it from this machine ('samx serve'), or export with --fp16 or a smaller encoder.",
            )  # fmt: skip
    return names


def levels_encoder(manifest: Manifest, where: str) -> EncoderEntry:
    """Return what is said of the image encoder.

    Raises: ArtifactError where there is none that a page can use.
    """
    entry = manifest.encoder
    if entry is None:
        raise ArtifactError(
            f"{where} has no image encoder that takes pictures", fix="Export it with this samx, without --no-encoder."
        )
    if entry.pictures.min > 1:
        found, fix = f"{entry.pictures.min} a call", "Export without --pictures."
        raise UsageError(f"{where} encodes several pictures at once", found=found, expected="1", fix=fix)
    return entry


def model_facts(manifest: Manifest) -> dict[str, Any]:
    """Return what any page is told of a model: its name, and the rules of its family."""
    spec, encoder = manifest.spec, manifest.encoder
    assert encoder is not None  # levels_encoder() looked
    return {
        "words": f"{manifest.checkpoint.kind}, {manifest.precision}, by samx {manifest.samx}",
        "most_megapixels": MOST_PX // 1_000_000, **_rules(spec),
        "picture": {"size_px": encoder.picture_px, "type": spec.picture_type, "valid": spec.keeps_aspect},
    }  # fmt: skip


def _rules(spec: DecoderSpec) -> dict[str, Any]:
    rules = spec.rules
    return {
        "frame": {
            "size_px": spec.image_size, "keeps_aspect": spec.keeps_aspect, "resizes_floats": rules.resizes_floats,
            "antialiases": rules.antialiases, "cubic_masks": rules.cubic_masks, "mask_threshold": spec.mask_threshold,
        },
        "prompts": {
            "box_first": rules.box_first, "pads_boxes": rules.pads_boxes, "tokens": rules.prompt_tokens,
            "mask_input": spec.mask_input, "mask_limit": rules.mask_limit if isfinite(rules.mask_limit) else None,
        },
        "masks": {"first": first_choice(spec), "side": spec.mask_size},
    }  # fmt: skip


def _entry(name: str, data: bytes) -> dict[str, Any]:
    return {"file": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _build(names: Mapping[str, str], library: Mapping[str, bytes]) -> dict[str, Any]:
    """Say where a build of onnxruntime-web lies."""
    paths = {part: f"{RUNTIME}/{name}" for part, name in names.items()}
    return {**paths, "wasm": _entry(paths["wasm"], library[paths["wasm"]])}


def _against_webgpu(manifest: Manifest) -> str:
    """Say why WebGPU is of no use for an export; empty where it is."""
    if manifest.precision == INT8:
        return "its operators of INT8 run on the processor."
    opset = manifest.options.get("opset", PORTABLE_OPSET)
    return "" if opset == PORTABLE_OPSET else f"it has no Attention operator, which opset {opset} writes."
