"""ParitySuite: images, cases, and what the reference computed for them; live, or read back from an artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from samx.artifacts.commit import write_file
from samx.errors import ParityError
from samx.models.session import Feed, FloatArray, Session
from samx.models.spec import DecoderSpec, TensorSpec
from samx.validators import suite_file
from samx.validators.cases import Case, parity_cases
from samx.validators.metrics import Expected, expect
from samx.validators.synthetic import synthetic_images

# A reference whose mask has more of its pixels on the threshold than this says nothing (see metrics.TIE_BAND).
UNDECIDED_CAP = 0.01


@dataclass(frozen=True)
class ParitySuite:
    """Hold the questions and the reference's answers."""

    spec: DecoderSpec
    images: tuple[Feed, ...]
    cases: tuple[Case, ...]
    expected: tuple[Expected, ...]
    image_source: str
    reference: str  # what computed the answers
    seed: int | None  # of synthetic_images, when the images are those
    # The session that computed the answers, so that it cannot be judged by them. A stored suite has none.
    reference_session: object = field(default=None, compare=False, repr=False)

    @classmethod
    def build(
        cls,
        reference: Session,
        images: Sequence[Feed] | None = None,
        cases: Sequence[Case] | None = None,
        image_source: str | None = None,
        *,
        seed: int = 0,
    ) -> ParitySuite:
        """Ask the reference. Without images or cases, make synthetic ones from the seed.

        Raises: ParityError when the reference's own answers are unusable.
        """
        spec = reference.spec
        chosen = synthetic_images(spec, seed) if images is None else images
        asked = parity_cases(spec, seed) if cases is None else cases
        # Rounded first: the stored suite must ask exactly what the reference was asked.
        frozen = tuple(_frozen(feed) for feed in chosen)
        rounded = tuple(Case(case.name, case.image, _frozen(case.prompts)) for case in asked)
        return cls(
            spec=spec,
            images=frozen,
            cases=rounded,
            expected=tuple(_answer(reference, frozen, case) for case in rounded),
            image_source=image_source or (f"synthetic, seed {seed}" if images is None else "given, unnamed"),
            reference=describe(reference),
            seed=seed if images is None else None,
            reference_session=reference,
        )

    def save(self, path: Path) -> int:
        """Write the compact form; gives its size in bytes."""
        data = suite_file.pack(self)
        write_file(path, data)
        return len(data)

    @classmethod
    def load(cls, data: bytes, where: str = "parity suite") -> ParitySuite:
        """Read the compact form.

        Raises: ArtifactError for anything that save() would not have written.
        """
        return cls(**suite_file.unpack(data, where))


def describe(session: Session) -> str:
    """Name a session by its runtime and class."""
    placement = session.placement()
    return f"{placement.runtime} {type(session).__name__} on {placement.requested}"


def output_problems(spec: DecoderSpec, outputs: object, prompts: int) -> list[str]:
    """Say what keeps outputs from being compared: names, types, shapes, values that are not finite."""
    if not isinstance(outputs, dict):
        return [f"outputs are {type(outputs).__name__}, must be a dict of arrays"]
    names = [tensor.name for tensor in spec.outputs]
    missing = [f"output {name} is missing" for name in names if name not in outputs]
    unknown = [f"output {name} is not in the spec" for name in outputs if name not in names]
    present = [tensor for tensor in spec.outputs if tensor.name in outputs]
    return [*missing, *unknown, *(line for tensor in present for line in _array_problems(tensor, outputs, prompts))]


def _array_problems(tensor: TensorSpec, outputs: dict[str, object], prompts: int) -> list[str]:
    value = outputs[tensor.name]
    shape = tuple(prompts if isinstance(size, str) else size for size in tensor.shape)
    if type(value) is not np.ndarray or value.dtype != np.float32:  # exactly: a masked array hides values
        kind = value.dtype if type(value) is np.ndarray else type(value).__name__
        return [f"{tensor.name} has type {kind}, must be float32 array"]
    if value.shape != shape:
        return [f"{tensor.name} has shape {value.shape}, must be {shape}"]
    bad = int(value.size - np.isfinite(value).sum())
    return [f"{tensor.name} has {bad} values that are not finite"] if bad else []


def _answer(reference: Session, images: Sequence[Feed], case: Case) -> Expected:
    reference.set_image(images[case.image])
    outputs = reference.decode(case.prompts)
    problems = output_problems(reference.spec, outputs, len(case.prompts["point_coords"]))
    if not problems:
        expected = expect(reference.spec, {name: _constant(value.copy()) for name, value in outputs.items()})
        worst = float(expected.undecided.mean(axis=-1).max())
        if worst <= UNDECIDED_CAP:
            return expected
        problems = [f"{worst:.1%} of a mask's pixels lie on the threshold"]
    raise ParityError(
        f"the reference cannot answer case '{case.name}'", found=problems[0],
        fix="Nothing can be compared with it; check the checkpoint and the images.",
    )  # fmt: skip


def _frozen(feed: Feed) -> Feed:
    return {name: _constant(suite_file.storable(name, value)) for name, value in feed.items()}


def _constant(array: FloatArray) -> FloatArray:
    array.setflags(write=False)
    return array
