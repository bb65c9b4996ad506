"""The parity gate: a verdict that is positive and total. Whatever was not shown to be right is wrong."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from samx.artifacts.manifest import Level, utc_now
from samx.artifacts.strict_json import plain
from samx.errors import UsageError
from samx.models.session import Outputs, Placement, Session
from samx.validators.asked import Asked, message
from samx.validators.cases import Case
from samx.validators.draw import Drawn, Question, deal, draw, planned
from samx.validators.metrics import Bounds, CaseMetrics, measure, suite_values
from samx.validators.report import CaseResult, ParityReport, environment
from samx.validators.suite import ParitySuite, output_problems

LEAST_CALLS = 22  # of each session: some faults come after twenty
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
    drawn: Drawn | None = None,
) -> ParityReport:
    """Ask the session every case and compare. Failures of the session are findings, never exceptions.

    `keep` is handed the outputs of each case that could be compared. `drawn` asks in drawn order, and in calls of drawn
    sizes; without it the cases are asked as they are, once.
    """
    failures = _preconditions(session, suite)
    judge = partial(_judge, suite=suite, bounds=bounds, runtime=runtime, device=device, keep=keep)
    runs, facts = ([], {}) if failures else _run(session, suite, judge, drawn, failures)
    measured = [metrics for _, metrics, _ in runs if metrics is not None]
    totals = suite_values(measured) if measured else {}
    return ParityReport(
        subject=subject,
        level=level,
        nonce=nonce or secrets.token_hex(16),
        created=utc_now(),
        bounds=bounds,
        suite={**_facts(suite), **facts},
        placement=plain(runs[0][2] if runs else UNKNOWN),
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
    return failures + _foreign(session, suite)


def _foreign(session: Session, suite: ParitySuite) -> list[str]:
    try:
        same_spec = session.spec == suite.spec
    except Exception as error:
        return [f"the session has no spec: {message(error)}"]
    return [] if same_spec else ["the session decodes another spec than the suite's"]


Judged = tuple[CaseResult, CaseMetrics | None, Placement]
Judge = Callable[[Question, Asked], Judged]


def _run(
    session: Session, suite: ParitySuite, judge: Judge, drawn: Drawn | None, failures: list[str]
) -> tuple[list[Judged], dict[str, object]]:
    """Ask everything; add what is wrong with no case of its own to the failures. Gives the run's facts, too."""
    asked = Asked(session, suite.images)
    if drawn is None:
        return [judge(question, asked) for question in planned(suite)], {}
    rng = np.random.default_rng(drawn.seed)
    mine, theirs = draw(suite, rng, drawn.sizes), []
    if drawn.another is not None:
        mine, theirs = deal(suite, mine, rng)
    runs = [judge(question, asked) for question in mine]
    failures += asked.again(rng) + asked.refuses_half_flags() + asked.go_on(LEAST_CALLS, rng)
    more, facts, found = _ask_another(drawn, theirs, suite, judge, rng, asked)
    failures += found
    counts = sorted({result.prompts for result, _, _ in runs})
    calls = {"seed": drawn.seed, "cases": len(mine) + len(theirs), "prompts_a_call": counts}
    return runs + more, {**calls, "calls": asked.calls, **facts}


def _ask_another(
    drawn: Drawn, questions: Sequence[Question], suite: ParitySuite, judge: Judge, rng: np.random.Generator,
    first: Asked,
) -> tuple[list[Judged], dict[str, object], list[str]]:  # fmt: skip
    """Ask a session with another number of threads its share, and one session many more calls."""
    calls = max(drawn.calls, LEAST_CALLS)
    if drawn.another is None:
        return [], {}, first.go_on(calls, rng)
    try:
        session = drawn.another()
    except UsageError as error:  # there are no threads to choose
        runs = [judge(question, first) for question in questions]
        return runs, {"other_threads": f"not asked: {error.what}"}, first.again(rng) + first.go_on(calls, rng)
    except Exception as error:
        return [], {}, [f"no second session: {message(error)}"]
    if found := _foreign(session, suite):
        return [], {}, found
    asked = Asked(session, suite.images)
    runs = [judge(question, asked) for question in questions]
    found = asked.again(rng) + asked.go_on(calls, rng)
    return runs, {"calls_with_other_threads": asked.calls}, found + first.altered()


def _judge(
    question: Question, asked: Asked, suite: ParitySuite, bounds: Bounds, runtime: str | None, device: str | None,
    keep: Callable[[Outputs], object] | None,
) -> Judged:  # fmt: skip
    """Ask one case and compare."""
    metrics, case = None, question.case
    try:
        outputs = asked.ask(case)
    except Exception as error:
        failures = [message(error)]
    else:
        failures = output_problems(suite.spec, outputs, len(case.prompts["point_coords"])) or _borrowed(outputs, suite)
        metrics = None if failures else measure(suite.spec, question.expected, outputs, bounds, question.prompts)
    if metrics is not None:
        failures = bounds.violations(metrics.values)
        asked.remember(case, outputs)
        if keep is not None:
            keep(outputs)
    placement, misplaced = _place(asked.session, runtime, device)
    return _result(case, [*failures, *misplaced], metrics), metrics, placement


def _place(session: Session, runtime: str | None, device: str | None) -> tuple[Placement, list[str]]:
    try:
        placement = session.placement()
    except Exception as error:
        return UNKNOWN, [f"the session cannot say where it ran: {message(error)}"]
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


def _borrowed(outputs: Outputs, suite: ParitySuite) -> list[str]:
    """Refuse the reference's own arrays: they agree with themselves."""
    own = [array for expected in suite.expected for array in expected.arrays()]
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


def _facts(suite: ParitySuite) -> dict[str, object]:
    return {
        "cases": len(suite.cases),
        "images": len(suite.images),
        "image_source": suite.image_source,
        "reference": suite.reference,
        "drawn": suite.drawn,
        "form": "stored" if suite.reference_session is None else "live",
    }
