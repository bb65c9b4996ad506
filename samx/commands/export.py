"""Export a decoder, prove it, and leave it as an artifact; or leave nothing."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from samx.artifacts.commit import check_target, write_file
from samx.artifacts.draft import Draft, draft
from samx.artifacts.manifest import CheckpointEntry, EncoderEntry, Manifest
from samx.clients import code
from samx.commands import video
from samx.commands.proof import NOTHING, compile_draft, prove
from samx.commands.references import beside_own_size, in_torch, with_both_signs
from samx.demo import demo_checkpoint
from samx.errors import UsageError
from samx.extras import require_export
from samx.models.session import Feed
from samx.models.shape_range import ShapeRange
from samx.models.spec import DecoderSpec, FrameRule, MaskChoice, PixelRule, check_choice
from samx.processing.embeddings import read_embedding
from samx.progress import Progress, silent
from samx.quantization import int8
from samx.quantization.search import QuantisationJob
from samx.registry import DEFAULT_TARGET, GRAPH_DEVICE, INT8, Backend, backend, load
from samx.validators.cases import default_frames, parity_cases
from samx.validators.child import ENCODER_SUITE_ROLE, SEED_BITS, SUITE_ROLE
from samx.validators.encoder_suite import EncoderSuite
from samx.validators.other_size import told
from samx.validators.report import ParityReport
from samx.validators.suite import ParitySuite

if TYPE_CHECKING:
    from samx.exporters.base import Exported, ExportJob, ExportOptions
    from samx.quantization.encoder import Int8Encoder
    from samx.quantization.rollout import HeldOut
    from samx.quantization.verdict import Int8Report

SUITE_FILE, REPORT_FILE = "parity_cases.npz", "parity_report.json"
ENCODER_SUITE_FILE = "encoder_cases.npz"
# Enough to ask about every edge; each embedding is 2 MiB of the artifact (SAM 2: 8 MiB).
MOST_EMBEDDINGS = 4


@dataclass(frozen=True)
class ExportRequest:
    """Say what to export, how, and where to."""

    out: Path
    checkpoint: Path | None = None  # None: the demo model of `family`
    family: str = "sam1"
    target: str = DEFAULT_TARGET
    precision: str | None = None  # None: the target's default
    masks: MaskChoice = "multimask"
    mask_input: bool = False
    object_pointer: bool = False  # what a video's loop keeps, as one more output
    memory_encoder: bool = False  # of that loop too, as a graph of its own
    object_embeddings: bool = False  # a decoder too that takes one for each object, as a graph of its own
    encoder: bool = True  # the image encoder too, where the checkpoint has one that is known
    encoder_precision: str | None = None  # None: the decoder's, where the target's encoder has it; never int8
    encoder_pictures: Path | None = None  # folder that calibrates an encoder of int8; None: demo scenes
    pictures: ShapeRange | None = None  # that it takes in a call; None: one
    image_size: int | None = None  # this and the next two: None where the checkpoint or its family tells
    frame: str | None = None
    pixels: str | None = None
    decoder: str | None = None  # how its keys begin, in a checkpoint of several
    embeddings: Sequence[Path] = ()
    client: Sequence[str] = ()  # languages of client code beside the files
    calibration: Path | None = None  # of int8, and what judges bf16; None: demo scenes, for a demo model
    exclude: tuple[str, ...] = ()  # groups of products that stay in floating point in int8
    min_iou: float | None = None  # mean mask IoU that int8 must keep; None: what the gate asks for
    overwrite: bool = False
    options: Mapping[str, object] = field(default_factory=dict)  # of the target, those that were given


@dataclass(frozen=True)
class ExportResult:
    """Hold what was left at the target, and the report that let it stay."""

    path: Path
    manifest: Manifest
    report: ParityReport
    next_step: str | None = None  # what is left to do on the device
    notes: tuple[str, ...] = ()  # what people should read about the files
    int8: Int8Report | None = None


def export(request: ExportRequest, progress: Progress = silent) -> ExportResult:
    """Export, judge and commit; on any failure the target is as it was.

    Raises: UsageError, CheckpointError, ImageError, WriteError; ParityError when the export computes something else.
    """
    entry = backend(request.target)
    precision = request.precision or entry.default_precision
    job = _job(request, entry, precision, _checked(request, entry, precision), progress)
    with draft(request.out, overwrite=request.overwrite) as made:
        work = _Export(request, entry, job, made, progress)
        report = work.fill()
        report = compile_draft(made, entry, work.remedy(), progress) or report
    next_step = entry.next_step(made.manifest, request.out)
    return ExportResult(request.out, made.manifest, report, next_step, tuple(made.notes), work.int8_report)


def _checked(request: ExportRequest, entry: Backend, precision: str) -> ExportOptions:
    """Refuse everything that can be refused before the work.

    Raises: UsageError, MissingExtraError, UnavailableError, CheckpointError, WriteError.
    """
    entry.check_precision(precision)
    entry.check_options(request.options)
    options: ExportOptions = load(entry.options).read(request.options)
    check_choice("frame", request.frame, FrameRule)
    check_choice("pixels", request.pixels, PixelRule)
    require_export("export")
    own_images = bool(request.embeddings)
    encoder_precision = entry.encoder_precision(request.encoder_precision, precision)
    least = None if encoder_precision == INT8 else request.min_iou  # else it may be of a decoder in floating point
    int8.check_options(entry, precision, request.calibration, request.exclude, least, own_images)
    int8.check_encoder(encoder_precision, _checkpoint(request), request.encoder_pictures, request.min_iou)
    entry.require_export()
    options.check(precision)
    encoded = {"--pictures": request.pictures, "--encoder-precision": request.encoder_precision}
    for name, given in {**encoded, "--client": request.client or None}.items():
        if given is not None and not request.encoder:
            raise UsageError("asked of an encoder that is left out", found=f"{name} with --no-encoder")
    if request.client:
        code.check_languages(request.client, entry)
        options.check_client_code()
    check_target(request.out, request.overwrite)
    if len(request.embeddings) > MOST_EMBEDDINGS:
        found = len(request.embeddings)
        raise UsageError("too many embeddings to judge on", found=found, expected=f"at most {MOST_EMBEDDINGS}")
    return options


def _job(
    request: ExportRequest, entry: Backend, precision: str, options: ExportOptions, progress: Progress
) -> ExportJob:
    """Read the checkpoint, and refuse what does not fit it."""
    from samx.exporters.base import ExportJob
    from samx.models.checkpoint import load_checkpoint

    checkpoint = _checkpoint(request)
    progress(f"Reading {checkpoint.name}")
    loaded = load_checkpoint(
        checkpoint, image_size=request.image_size, frame=request.frame, pixels=request.pixels, decoder=request.decoder,
        object_pointer=request.object_pointer,
    )  # fmt: skip
    spec = options.exported(replace(loaded.spec, masks=request.masks, mask_input=request.mask_input))
    options.check(precision, spec)
    _check_room(options, spec)
    if request.client:
        code.check_decoder(spec)
    return ExportJob(loaded, spec, options, precision, entry.target)


def _check_room(options: ExportOptions, spec: DecoderSpec) -> None:
    """Refuse an export that no prompt of the family fits into.

    Raises: UsageError.
    """
    rules = spec.rules
    if options.points is not None and options.points.max < rules.prompt_tokens:
        raise UsageError(
            f"every prompt of {rules.title} has {rules.prompt_tokens} points, padding counted",
            found=f"--points {options.points}", expected=f"up to {rules.prompt_tokens} or more",
        )  # fmt: skip


def _checkpoint(request: ExportRequest) -> Path:
    return request.checkpoint or demo_checkpoint(request.family)


class _Export:
    """Take an export's steps, one after the other, on one draft."""

    def __init__(self, request: ExportRequest, entry: Backend, job: ExportJob, made: Draft, progress: Progress) -> None:
        self.request, self.entry, self.job, self.made, self.progress = request, entry, job, made, progress
        self.checkpoint = _checkpoint(request)
        self.images = [read_embedding(path, job.spec) for path in request.embeddings]  # told before minutes of work
        self.judged_as = entry.precisions[job.precision]
        self.on_held_out = self.judged_as in int8.HELD_OUT
        self.calibration = (
            int8.calibration_set(job, self.judged_as, self.checkpoint, request.calibration, progress)
            if self.on_held_out else None
        )  # fmt: skip
        self.int8_report: Int8Report | None = None
        pieces = {"memory_encoder": request.memory_encoder, "object_decoder": request.object_embeddings}
        asked = [role for role, is_asked in pieces.items() if is_asked]
        self.with_pieces = video.step(self.checkpoint, job, asked) if asked else None

    def fill(self) -> ParityReport:
        """Write every file of the artifact, and judge its graph.

        Raises: ParityError when it computes something else.
        """
        self.progress(f"Exporting the {self.entry.title} graph")
        from samx.exporters.base import export_decoder

        exported = export_decoder(importlib.import_module(self.entry.exporter), self.job, self.made.directory)
        job = self._quantisation(exported)
        quantised = None if job is None else int8.quantise(self.entry, job)
        exported = exported if quantised is None else quantised.exported
        exported = exported if self.with_pieces is None else self.with_pieces(exported, self.made.directory)
        encoder = self._encoder()
        written = self._client_code(exported, encoder) if self.request.client else {}
        held = self._held_out(exported.most_points) if self.on_held_out else None
        suite = self._suite(exported, held)
        suite.save(self.made.directory / SUITE_FILE)
        pictures = self._pictures(exported.most_points) if encoder.files else {}
        encoder = self._beside_own_size(encoder) if encoder.files else encoder
        self.made.add(
            {**exported.files, **encoder.files, **written, SUITE_FILE: SUITE_ROLE, **pictures},
            notes=[*self.job.loaded.notes, *exported.notes, *encoder.notes, *suite.unseen()],
        )
        self.made.seal(self._manifest(exported, encoder))
        self.progress("Comparing the export with PyTorch")
        report = prove(self.made, "graph", GRAPH_DEVICE, REPORT_FILE, self.remedy())
        if job is not None and quantised is not None and held is not None:
            self.int8_report = int8.judge(self.entry, job, quantised, held, self.made)
        return report

    def _quantisation(self, exported: Exported) -> QuantisationJob | None:
        """Return what INT8 is made from; None for another precision."""
        if self.judged_as != INT8 or self.calibration is None:
            return None
        request = self.request
        cache_file = request.out.with_name(request.out.name + int8.CACHE_SUFFIX)
        return QuantisationJob(
            self.job, exported, self.made.directory, self.calibration, int8.budget(request.min_iou), request.exclude,
            cache_file, self.progress,
        )  # fmt: skip

    def _held_out(self, most_points: int | None) -> HeldOut:
        return int8.held_out_prompts(
            self.job, self.checkpoint, self.calibration, MOST_EMBEDDINGS, most_points, self.progress
        )

    def _suite(self, exported: Exported, held: HeldOut | None) -> ParitySuite:
        """Ask the reference about prompts of every kind that the export takes, or about those that a set holds out."""
        from samx.runtimes.torch import reference_session

        self.progress("Asking the PyTorch reference")
        reference = reference_session(self.job.loaded, self.job.spec)
        if held is not None:
            return ParitySuite.build(reference, *held.stored(MOST_EMBEDDINGS), held.source)
        images, source = with_both_signs(self.job, *self._images())
        frames = default_frames(self.job.spec, len(images)) if images else None
        seed = secrets.randbits(SEED_BITS)
        cases = parity_cases(
            self.job.spec, frames=frames, most_points=exported.most_points, drawn=seed, bare=exported.bare
        )
        return ParitySuite.build(reference, images, cases, source, drawn=seed)

    def _pictures(self, most_points: int | None) -> dict[str, str]:
        """Ask the references about pictures, from the pixels to the masks; gives the file's role."""
        self.progress("Asking the PyTorch encoder about pictures")
        model = in_torch(self.checkpoint, self.job)
        suite = EncoderSuite.build(
            model.encode, model.session, model.picture_px, seed=secrets.randbits(SEED_BITS), most_points=most_points
        )
        write_file(self.made.directory / ENCODER_SUITE_FILE, suite.to_bytes())
        return {ENCODER_SUITE_FILE: ENCODER_SUITE_ROLE}

    def _beside_own_size(self, encoder: Exported) -> Exported:
        """Say what another image size than the checkpoint's own changes, where it is one."""
        own_px = self.job.loaded.own_px
        if own_px in (None, self.job.spec.image_size):
            return encoder
        self.progress(f"Comparing the masks with those at {own_px} px")
        found = beside_own_size(self.checkpoint, self.job)
        options = {**encoder.options, "other_size": found}
        return replace(encoder, options=options, notes=(*encoder.notes, told(found)))

    def _images(self) -> tuple[list[Feed] | None, str | None]:
        """Choose the embeddings to judge on: the user's, the demo scenes', or synthetic ones (None)."""
        from samx.demo.model import demo_images, is_demo

        if self.images:
            return self.images, ", ".join(path.name for path in self.request.embeddings)
        if is_demo(self.checkpoint):
            return demo_images(self.checkpoint, self.job.spec), "demo scenes, demo encoder"
        return None, None

    def _encoder(self) -> Exported:
        from samx.exporters.base import Exported
        from samx.exporters.encoder import export_encoder

        if not self.request.encoder:
            return Exported({}, {}, {})
        self.progress("Exporting the image encoder")
        request = self.request
        write = self._int8_encoder().write if request.encoder_precision == INT8 else None
        return export_encoder(
            self.checkpoint, self.job, request.pictures, self.made.directory, request.encoder_precision, write
        )

    def _client_code(self, exported: Exported, encoder: Exported) -> dict[str, str]:
        """Write a client in each language that was asked for; gives the files' roles."""
        job, said = self.job, encoder.options.get("encoder")
        entry = None if said is None else EncoderEntry.from_json(said, "the encoder")
        return code.write_code(
            self.request.client, self.entry, job.spec, code.check_encoder(entry, self.checkpoint.name), job.precision,
            {**exported.files, **encoder.files}, self.made.directory,
        )  # fmt: skip

    def _int8_encoder(self) -> Int8Encoder:
        from samx.quantization.encoder import CACHE_SUFFIX, Int8Encoder

        request = self.request
        return Int8Encoder(
            partial(in_torch, self.checkpoint, self.job), int8.budget(request.min_iou),
            request.encoder_pictures, request.out.with_name(request.out.name + CACHE_SUFFIX), self.progress,
        )  # fmt: skip

    def _manifest(self, exported: Exported, encoder: Exported) -> Manifest:
        loaded = self.job.loaded
        chosen = {} if loaded.prefix is None else {"decoder": loaded.prefix}
        return Manifest(
            target=self.entry.target, precision=self.job.precision, spec=self.job.spec,
            options={**exported.options, **encoder.options, **chosen}, tools={**encoder.tools, **exported.tools},
            checkpoint=CheckpointEntry(loaded.name, loaded.kind, loaded.sha256, loaded.bytes),
        )  # fmt: skip

    def remedy(self) -> str:
        """Say what to try when the export differs."""
        if "int8" in self.made.manifest.options:
            return str(self.made.manifest.options["int8"]["remedy"])
        remedy = self.job.options.remedy(self.job.precision)
        return NOTHING if remedy is None else f"{NOTHING} {remedy}"
