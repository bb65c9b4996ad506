"""What `samx inspect` and `samx doctor` tell people, as lines of text; machines get the same facts as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from textwrap import wrap
from typing import Any

from samx.artifacts.manifest import Evidence, Manifest
from samx.models.spec import TensorSpec
from samx.registry import Backend, backend

WIDTH = 79
MIB = 1024 * 1024
HASH_CHARACTERS = 12
MASKS = {"multimask": "three masks a prompt", "single": "one mask a prompt", "all": "all four masks a prompt"}
SEGMENT = "samx segment photo.jpg --point 300,200 --model {path}"
UNSAID = ("precision", "form_reason")  # options that a page for people leaves to --json
Facts = Mapping[str, Any]


def artifact_page(facts: Facts) -> list[str]:
    """Describe an artifact: what it is, takes and gives, what was shown about it, and what to do next."""
    manifest = Manifest.from_json(facts["manifest"], facts["path"])
    entry, path = backend(manifest.target), facts["path"]
    return [
        *_what_it_is(manifest, entry, facts),
        *_section("Takes once a picture", _tensors(manifest.spec.image_inputs)),
        *_section("Takes with every call", _tensors(manifest.spec.prompt_inputs)),
        *_section("Gives", _tensors(manifest.spec.outputs)),
        *_section("Pictures and masks", _paragraphs(_pictures(manifest))),
        *_section("Shown about it", _paragraphs(_shown(manifest, entry, facts["shown"]))),
        *_section("What to do next", _paragraphs(_next(manifest, entry, path), hanging=4)),
    ]


def _what_it_is(manifest: Manifest, entry: Backend, facts: Facts) -> Iterator[str]:
    spec, checkpoint = manifest.spec, manifest.checkpoint
    yield f"{spec.rules.title} mask decoder for {entry.title}, {manifest.precision}, {MASKS[spec.masks]}"
    yield from wrap(
        f"from {checkpoint.kind}: {checkpoint.name}, sha256 {checkpoint.sha256[:HASH_CHARACTERS]}..., "
        f"by samx {manifest.samx}, {manifest.created}", WIDTH,
    )  # fmt: skip
    options = (f"{name} {_words(value)}" for name, value in manifest.options.items() if name not in UNSAID and value)
    yield from wrap(f"exported with {', '.join(options)}", WIDTH)
    yield f"{len(manifest.files)} files, {facts['bytes'] / MIB:.1f} MiB, every hash as it was written"
    if facts["unlisted_files"]:
        yield from wrap(f"beside it, not part of it and never read: {', '.join(facts['unlisted_files'])}", WIDTH)


def _words(value: Any) -> str:
    """Write an option's value; a shape range as its least and most."""
    return f"{value[0]} to {value[-1]}" if isinstance(value, list) else str(value)


def _section(title: str, lines: Iterable[str]) -> list[str]:
    return ["", f"{title}:", *lines]


def _tensors(tensors: Iterable[TensorSpec]) -> Iterator[str]:
    """Write a tensor a line, and what it means below it."""
    for tensor in tensors:
        shape = ", ".join(map(str, tensor.shape))
        yield f"  {tensor.name}  ({shape})  {tensor.dtype}"
        yield from wrap(tensor.meaning, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _pictures(manifest: Manifest) -> Iterator[str]:
    spec = manifest.spec
    scaled = "the longest side scaled to it, zeros beside" if spec.keeps_aspect else "both sides scaled to it"
    yield f"A picture becomes a frame of {spec.image_size} px: {scaled}."
    yield (
        f"Masks come as logits of {spec.mask_size} x {spec.mask_size} px over the frame; "
        f"above {spec.mask_threshold:g} is the object."
    )
    yield f"A prompt is padded with {spec.rules.padding_words()}."
    encoders = [name for name, file in manifest.files.items() if file.role == "encoder"]
    if encoders:
        yield f"The image encoder lies in it: {encoders[0]}."
    else:
        yield f"No image encoder lies in it. Give the picture's embedding: {spec.embedding_contract}."


def _shown(manifest: Manifest, entry: Backend, summaries: Facts) -> Iterator[str]:
    for evidence in manifest.evidence:
        yield f"{evidence.level} on {evidence.device}: {summaries.get(evidence.report) or _verdict(evidence)}"
    if entry.graph is not None and "device" not in {evidence.level for evidence in manifest.evidence}:
        yield f"Not shown: that it runs on '{entry.device}' ({entry.needs}), and how fast it is there."
    if not manifest.evidence:
        yield "Nothing."


def _verdict(evidence: Evidence) -> str:
    return f"{'done' if evidence.passed else 'FAILED'} by {evidence.runtime}, {evidence.created} ({evidence.report})"


def _next(manifest: Manifest, entry: Backend, path: str) -> Iterator[str]:
    compiled = any(evidence.level == "lowered" for evidence in manifest.evidence)
    device = "" if entry.graph is None else f" --device {entry.device}"
    if entry.finish[compiled]:
        yield entry.finish[compiled].format(out=path, compare=f"'samx validate {path}{device}'")
    yield f"samx validate {path}  compares it with PyTorch's answers again, on this machine"
    has_encoder = any(file.role == "encoder" for file in manifest.files.values())
    yield SEGMENT.format(path=path) + ("" if has_encoder else " --embedding photo.npz") + "  draws a mask"
    yield f"samx bench {path}  measures it here"
    if entry.kit is not None:
        yield f"samx bundle {path}  packs it for a device, with all that samx needs there"


def doctor_page(facts: Facts) -> list[str]:
    """Describe what works on this machine, what does not and why, and what to do next."""
    lines = [f"samx {facts['samx']}, Python {facts['python']}, {facts['platform']}"]
    for title, wanted in (("Works here", True), ("Does not work here", False)):
        found = [ability for ability in facts["abilities"] if ability["available"] is wanted]
        lines += _section(title, (line for ability in found for line in _ability(ability))) if found else []
    return [*lines, *_section("What to do next", _paragraphs(_first_steps(facts["abilities"]), hanging=4))]


def _ability(ability: Facts) -> Iterator[str]:
    devices = f" on {', '.join(ability['devices'])}" if ability["devices"] else ""
    yield f"  {ability['name']}{devices}"
    versions = ", ".join(f"{name} {number}" for name, number in ability["versions"].items())
    advice = ". ".join(text.removesuffix(".") for text in (ability["reason"], ability["fix"]) if text)
    for text in filter(None, (versions, advice)):
        yield from wrap(text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False)


def _first_steps(abilities: Iterable[Facts]) -> Iterator[str]:
    exports, *runs = abilities
    if exports["available"]:
        yield "samx export CHECKPOINT -o DIR  exports your weights; without CHECKPOINT the demo model"
    else:
        yield f"{exports['fix'].removesuffix('.')}, to export; an artifact from elsewhere runs without it"
    if any(ability["available"] for ability in runs):
        yield "samx validate DIR  compares an artifact with PyTorch's answers here"
        yield SEGMENT.format(path="DIR") + "  draws a mask"


def flat_page(facts: Facts) -> list[str]:
    """List facts of any shape, one a line, the names of what they lie in before them."""
    return [f"{name}  {value}" for name, value in _flat(facts)]


def _flat(facts: Facts, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for i, entry in enumerate(value):
                yield from _flat(entry, f"{prefix}{name}[{i}].")
        else:
            yield f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _paragraphs(texts: Iterable[str], hanging: int = 0) -> Iterator[str]:
    indent = " " * (2 + hanging)
    for text in texts:
        yield from wrap(text, WIDTH, initial_indent="  ", subsequent_indent=indent, break_on_hyphens=False)
