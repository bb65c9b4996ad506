"""The parity gate: a verdict that is positive and total. Whatever was not shown to be right is wrong."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from samx.artifacts.manifest import Level, utc_now
from samx.artifacts.strict_json import plain
from samx.models.session import Feed, Outputs, Placement, Session
from samx.models.spec import DecoderSpec
from samx.validators.cases import Case
from samx.validators.metrics import Bounds, CaseMetrics, Expected, measure, suite_values
from samx.validators.report import CaseResult, ParityReport, environment
from samx.validators.suite import ParitySuite, output_problems

MESSAGE_CHARACTERS = 400  # of an exception, in a report
UNKNOWN = Placement(runtime="unknown", requested="unknown", operations={}, details={})


def run_gate(
    session: Session,
    suite: ParitySuite,
    bounds: Bounds,
    *,
    level: Level,
    subject: str = "session",
    runtime: str | None = None,
    device: str | None = None,
    nonce: str | None = None,
    keep: Callable[[Outputs], object] | None = None,
) -> ParityReport:
    """Ask the session every case and compare. Failures of the session are findings, never exceptions.

    `keep` is handed the outputs of each case that could be compared.
    """
    failures = _preconditions(session, suite)
    ask, place = _asker(session, suite.images), partial(_place, session, runtime, device)
    asked = [] if failures else zip(suite.cases, suite.expected, strict=True)
    runs = [_judge(case, expected, ask, place, suite.spec, bounds, keep) for case, expected in asked]
    measured = [metrics for _, metrics, _ in runs if metrics is not None]
    totals = suite_values(measured) if measured else {}
    return ParityReport(
        subject=subject,
        level=level,
        nonce=nonce or secrets.token_hex(16),
        created=utc_now(),
        bounds=bounds,
        suite=_facts(suite),
        placement=plain(runs[-1][2] if runs else UNKNOWN),
        environment=environment(),
        metrics=totals,
        failures=(*failures, *bounds.violations(totals)),
        cases=tuple(result for result, _, _ in runs),
    )


def _preconditions(session: Session, suite: ParitySuite) -> list[str]:
    """Return what makes any comparison worthless."""
    failures = [] if suite.cases else ["the suite has no case"]
    if session is suite.reference_session:
        failures.append("the candidate is the reference itself")
    try:
        same_spec = session.spec == suite.spec
    except Exception as error:
        return [*failures, f"the session has no spec: {_message(error)}"]
    return failures if same_spec else [*failures, "the session decodes another spec than the suite's"]


Judged = tuple[CaseResult, CaseMetrics | None, Placement]


def _judge(
    case: Case, expected: Expected, ask: Callable[[Case], Outputs], place: Callable[[], tuple[Placement, list[str]]],
    spec: DecoderSpec, bounds: Bounds, keep: Callable[[Outputs], object] | None,
) -> Judged:  # fmt: skip
    """Ask one case and compare."""
    metrics = None
    try:
        outputs = ask(case)
    except Exception as error:
        failures = [_message(error)]
    else:
        failures = output_problems(spec, outputs, len(case.prompts["point_coords"])) or _borrowed(outputs, expected)
        metrics = None if failures else measure(spec, expected, outputs, bounds)
    if metrics is not None:
        failures = bounds.violations(metrics.values)
        if keep is not None:
            keep(outputs)
    placement, misplaced = place()
    return _result(case, [*failures, *misplaced], metrics), metrics, placement


def _asker(session: Session, images: Sequence[Feed]) -> Callable[[Case], Outputs]:
    """Return what decodes a case, on its image."""
    held: list[int] = []  # the image that the session holds, or none

    def ask(case: Case) -> Outputs:
        if held != [case.image]:
            held.clear()  # whatever it holds if the next line fails
            session.set_image(_copy(images[case.image]))
            held.append(case.image)
        return session.decode(_copy(case.prompts))

    return ask


def _place(session: Session, runtime: str | None, device: str | None) -> tuple[Placement, list[str]]:
    try:
        placement = session.placement()
    except Exception as error:
        return UNKNOWN, [f"the session cannot say where it ran: {_message(error)}"]
    return placement, _misplaced(placement, runtime, device)


def _misplaced(placement: Placement, runtime: str | None, device: str | None) -> list[str]:
    """Return where the work ran, if that is not where it was asked to run."""
    failures = []
    if runtime is not None and placement.runtime != runtime:
        failures.append(f"ran in {placement.runtime}, asked for {runtime}")
    if device is not None and placement.requested != device:
        failures.append(f"the session was opened for {placement.requested}, asked for {device}")
    if not placement.honoured or not all(count > 0 for count in placement.operations.values()):
        ran = ", ".join(f"{count} operations on {name}" for name, count in placement.operations.items())
        failures.append(f"asked for {placement.requested}, ran {ran or 'nothing that was counted'}")
    return failures


def _borrowed(outputs: Outputs, expected: Expected) -> list[str]:
    """Refuse the reference's own arrays: they agree with themselves."""
    own = [expected.logits, *expected.scores.values()]
    shared = [name for name, value in outputs.items() if any(np.may_share_memory(value, array) for array in own)]
    return [f"{name} is the reference's own array" for name in shared]


def _result(case: Case, failures: Sequence[str], metrics: CaseMetrics | None) -> CaseResult:
    prompts, points = case.prompts["point_labels"].shape
    return CaseResult(
        name=case.name,
        image=case.image,
        prompts=prompts,
        points=points,
        failures=tuple(failures),
        metrics=metrics.values if metrics else {},
        mask_iou=metrics.mask_iou if metrics else (),
        undecided_pixels=metrics.undecided if metrics else 0,
    )


def _copy(feed: Feed) -> Feed:
    return {name: value.copy() for name, value in feed.items()}  # a session may write into what it is given


def _facts(suite: ParitySuite) -> dict[str, object]:
    return {
        "cases": len(suite.cases),
        "images": len(suite.images),
        "image_source": suite.image_source,
        "reference": suite.reference,
        "form": "stored" if suite.reference_session is None else "live",
    }


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:MESSAGE_CHARACTERS]
