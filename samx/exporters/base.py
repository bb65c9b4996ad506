"""What a user asks of an export: options that each exporter declares as its own dataclass, and the job it is given.

A field made with option() is everything that the command line, the manifest and the checks know about an option.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, get_type_hints

from samx.errors import UsageError
from samx.models.shape_range import ShapeRange
from samx.models.spec import DecoderSpec

if TYPE_CHECKING:
    from samx.models.checkpoint import LoadedDecoder
    from samx.models.graph import Graphs

T = TypeVar("T")
ONE_PICTURE = ShapeRange(1, 1, 1)
HALF = ("fp16", "int8")  # precisions in which what is not in integers is float16


def option(default: T, help: str, *, flag: str | None = None) -> T:
    """Declare an option: its default, its help, and its flag where that is not its name."""
    return field(default=default, metadata={"help": help, "flag": flag})


@dataclass(frozen=True)
class ExportOptions:
    """Declare what every target can be asked for; an exporter adds its own options in a subclass."""

    points: ShapeRange | None = option(
        None, "Points a prompt, padding counted: MIN:OPT:MAX, or one number. OPT chooses the form."
    )
    prompts: ShapeRange | None = option(
        None, "Prompts a call: MIN:OPT:MAX, or one number. From OPT 4 the image is worked on once."
    )

    @classmethod
    def read(cls, given: Mapping[str, object]) -> ExportOptions:
        """Build a target's options from the ones that were given; any other keeps its default.

        Raises: UsageError for a value of another type.
        """
        types = get_type_hints(cls)
        return cls(**{name: _value(value, types[name], name) for name, value in given.items()})

    def check(self, precision: str, spec: DecoderSpec | None = None) -> None:
        """Refuse what cannot be exported, before the work; called once more when the checkpoint's spec is known.

        Raises: UsageError.
        """

    def exported(self, spec: DecoderSpec) -> DecoderSpec:
        """Return the decoder that is exported where this one is asked for.

        Raises: UsageError where the options and the decoder do not go together.
        """
        return spec

    def remedy(self, precision: str) -> str | None:
        """Say what to try when an export of this precision differs from PyTorch; None: nothing that is known."""

    def check_client_code(self) -> None:
        """Refuse what no client code is written for.

        Raises: UsageError.
        """

    def to_json(self) -> dict[str, Any]:
        """Return the options as plain data."""
        return {name: value.to_json() if isinstance(value, ShapeRange) else value for name, value in vars(self).items()}


def _value(value: object, kind: Any, what: str) -> Any:
    """Return an option's value in its declared type; text stands for a range, a list for a tuple."""
    if kind == ShapeRange | None:
        return value if value is None or isinstance(value, ShapeRange) else ShapeRange.parse(str(value), what)
    if kind == tuple[str, ...] and isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value):
        return tuple(value)
    plain = {bool: bool, int: int, str: str, str | None: str}.get(kind)
    if plain is not None and (type(value) is plain or (value is None and kind == str | None)):
        return value
    expected = getattr(plain, "__name__", "a list of names")
    raise UsageError(f"{what} has a value of another type", found=repr(value), expected=expected)


@dataclass(frozen=True)
class HalfOptions(ExportOptions):
    """Declare what targets have whose float16 can leave groups of operations in float32."""

    half: ClassVar[Sequence[str]] = ("fp16",)  # precisions in which what is not in integers is float16
    keep_float32: tuple[str, ...] = option(
        (), "With fp16: a group of operations to leave alone; see 'samx bisect'.", flag="--keep-float32"
    )

    def check(self, precision: str, spec: DecoderSpec | None = None) -> None:
        """Refuse groups to keep in float32 where everything is."""
        if self.keep_float32 and precision not in self.half:
            raise UsageError("everything is in float32 already", found=f"precision {precision}", expected="--fp16")

    def remedy(self, precision: str) -> str | None:
        """Say what to try when float16 differs."""
        shows = "'samx bisect' shows which operations to leave in float32 with --keep-float32."
        return shows if precision == "fp16" else None

    def kept(self, precision: str) -> tuple[str, ...] | None:
        """Return the groups that stay in float32; None where everything does."""
        return self.keep_float32 if precision in self.half else None


@dataclass(frozen=True)
class ExportJob:
    """Bring together the weights, the spec of the export (its masks, its mask input), its target and its options."""

    loaded: LoadedDecoder
    spec: DecoderSpec
    options: Any  # of the class that the target's exporter declares
    precision: str = "fp32"
    target: str = ""
    pictures: ShapeRange = ONE_PICTURE  # that the image encoder takes in a call


@dataclass(frozen=True)
class Exported:
    """Name the files an exporter wrote, each with its role, and what the manifest shall remember."""

    files: Mapping[str, str]  # file name -> role
    options: Mapping[str, Any]
    tools: Mapping[str, str]
    most_points: int | None = None  # that a prompt may have, padding counted; None: any number
    bare: bool = True  # a prompt may come without padding; False: the graph adds it and cannot do without
    notes: tuple[str, ...] = ()  # what people should read about the files


KEEPS_LITTLE = (
    "With --mask-input the image graph keeps the image's tokens alone: a mask changes them, so that what --split keeps "
    "otherwise is computed in every call. For prompts without masks export without --mask-input too."
)


def export_decoder(exporter: ModuleType, job: ExportJob, directory: Path) -> Exported:
    """Build the decoder's graphs as a target needs them, and write them.

    Raises: UsageError for what does not go together; as the exporter.
    """
    job.options.check(job.precision, job.spec)
    graphs: Graphs = exporter.decoder(job)
    exported: Exported = exporter.write(graphs.graphs, job, directory)
    asked = {"precision": job.precision, **job.options.to_json()}
    notes = (*exported.notes, KEEPS_LITTLE) if graphs.facts.get("split") and job.spec.mask_input else exported.notes
    return replace(exported, options={**asked, **graphs.facts, **exported.options}, notes=notes)
