"""Write client code beside an artifact: a file a language, from templates.

A language's folder holds what is the same for every runtime, `sam.*.in`, and a file for each runtime, such as
`onnx.py.in`: comments on what it needs, its imports, and what opens a graph.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samx.artifacts.manifest import EncoderEntry
from samx.errors import CheckpointError, UsageError
from samx.files import ShellTemplate
from samx.models.spec import DecoderSpec
from samx.registry import BACKENDS, Backend

if TYPE_CHECKING:
    from importlib.abc import Traversable

CODE_FOLDER, CODE_ROLE = "code", "code"
COMMON, SUFFIX = "sam", ".in"  # of the template that every runtime of a language has
# Roles of what a client opens, in the order in which it runs it: the last one for every prompt, the others once a
# picture. A Core ML package is a folder.
ROLES = ("encoder", "image", "prompt", "decoder", "package")
PYTHON = "python"
SCALARS = {"fp32": "Float"}  # of Core ML's packages; of any other precision Float16
ONE = "Leave it out, or --client."


def check_languages(asked: Sequence[str], entry: Backend) -> None:
    """Refuse a language that a target has no client code in.

    Raises: UsageError naming what there is.
    """
    for language in asked:
        if language not in languages(entry):
            others = [f"{other.target} {', '.join(found)}" for other in BACKENDS if (found := languages(other))]
            expected = " or ".join(languages(entry)) or f"one of {'; '.join(others)}"
            what = f"target '{entry.target}' has no client code in this language"
            raise UsageError(what, found=language, expected=expected)


def check_decoder(spec: DecoderSpec) -> None:
    """Refuse a decoder whose pictures, prompts or masks are prepared as no client does.

    Raises: UsageError.
    """
    rules = spec.rules
    if not rules.antialiases or rules.cubic_masks or rules.prompt_tokens:
        raise UsageError(
            f"client code is not written for {rules.title}",
            found="bicubic masks, pictures that are not smoothed", expected="a family that is resized bilinearly",
            fix="Leave --client out.",
        )  # fmt: skip


def check_encoder(encoder: EncoderEntry | None, checkpoint: str) -> EncoderEntry:
    """Return an export's image encoder, with which a client begins.

    Raises: CheckpointError where there is none; UsageError for one that takes several pictures a call.
    """
    if encoder is None:
        what = "client code begins with a picture, and samx knows no image encoder of this checkpoint"
        raise CheckpointError(what, found=checkpoint, fix="Leave --client out.")
    if encoder.pictures.min > 1:
        found = f"--pictures {encoder.pictures}"
        raise UsageError("client code encodes one picture a call", found=found, expected="one", fix=ONE)
    return encoder


def languages(entry: Backend) -> dict[str, str]:
    """Return the languages of a target's client code, each with the name of its file."""
    found = {folder.name: [one.name for one in folder.iterdir()] for folder in _templates().iterdir()}
    own = {language: names for language, names in sorted(found.items()) if _named(names, entry.code)}
    return {language: str(_named(names, COMMON)).removesuffix(SUFFIX) for language, names in own.items()}


def write_code(
    asked: Iterable[str], entry: Backend, spec: DecoderSpec, encoder: EncoderEntry, precision: str,
    written: Mapping[str, str], directory: Path,
) -> dict[str, str]:  # fmt: skip
    """Write client code into a directory, for an export's files with their roles; return the new ones with theirs."""
    names, roles = languages(entry), {}
    (directory / CODE_FOLDER).mkdir(exist_ok=True)
    for language in dict.fromkeys(asked):
        facts = _facts(spec, encoder, precision, graphs_of(written))
        literal = repr if language == PYTHON else json.dumps
        words = {name: _literal(value, literal) for name, value in facts.items()}
        words |= {"about": _about(entry, spec, precision), "library": entry.library, "runtime": entry.title}
        words["scalar"] = SCALARS.get(precision, "Float16")
        path = f"{CODE_FOLDER}/{names[language]}"
        (directory / path).write_text(_filled(language, entry.code, words), encoding="utf-8")
        roles[path] = CODE_ROLE
    return roles


def graphs_of(written: Mapping[str, str]) -> list[str]:
    """Name what a client opens, in the order in which it runs it."""
    found = [(ROLES.index(role), name.partition("/")[0]) for name, role in written.items() if role in ROLES]
    return list(dict.fromkeys(name for _, name in sorted(found)))


def _facts(spec: DecoderSpec, encoder: EncoderEntry, precision: str, graphs: Sequence[str]) -> dict[str, object]:
    rules = spec.rules
    precisions = dict.fromkeys(graphs, precision) | {graphs[0]: encoder.precision}
    return {
        "frame": spec.image_size, "picture": encoder.picture_px, "side": spec.mask_size,
        "pads": spec.keeps_aspect, "rounds": not rules.resizes_floats,
        "box_first": rules.box_first, "pads_boxes": rules.pads_boxes,
        "first": int(spec.masks == "all"), "threshold": float(spec.mask_threshold),
        "graphs": list(graphs), "bfloat16": [name for name, found in precisions.items() if found == "bf16"],
        "takes_masks": spec.mask_input, "features": [tensor.name for tensor in spec.image_inputs],
    }  # fmt: skip


def _literal(value: object, literal: Any) -> str:
    """Write a value as the language does; of a list what stands between its brackets."""
    if isinstance(value, list):
        return ", ".join(json.dumps(one) for one in value)
    return str(literal(value))


def _about(entry: Backend, spec: DecoderSpec, precision: str) -> str:
    return f"{spec.rules.title}, target {entry.target}, {precision}"


def _filled(language: str, code: str, words: Mapping[str, str]) -> str:
    folder = _templates() / language
    names = [one.name for one in folder.iterdir()]

    def text(stem: str) -> ShellTemplate:
        return ShellTemplate((folder / str(_named(names, stem))).read_text(encoding="utf-8"))

    return text(COMMON).substitute({**words, "open": text(code).substitute(words).strip("\n")})


def _named(names: Iterable[str], stem: str) -> str | None:
    return next((name for name in names if name.partition(".")[0].lower() == stem), None)


def _templates() -> Traversable:
    return files("samx.clients") / "templates"
