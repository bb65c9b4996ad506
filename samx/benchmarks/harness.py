"""Go through the scenarios, artifacts in turns, and keep what was measured whatever ends the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from samx.benchmarks import photo
from samx.benchmarks.cold_start import Starter, start
from samx.benchmarks.interleave import Candidate, Clock, Effort, Sampling
from samx.benchmarks.results import NotMeasured, Reading, Result
from samx.benchmarks.scenarios import Scenario, Workload, candidate, copying, finishing
from samx.benchmarks.subjects import Subject, reason_of
from samx.benchmarks.summary import RATIO_SAMPLES
from samx.devices import adapter
from samx.errors import PromptError
from samx.models.session import Placement
from samx.progress import Progress
from samx.runtimes.base import CopiesOnly

INTERRUPTED = "stopped by the user (Ctrl-C)"
COLD_STARTS, QUICK_COLD_STARTS = 10, 3
QUICK_CALLS, QUICK_WARM_UP_CALLS = RATIO_SAMPLES, 1  # of slow calls; quick ones fill their seconds
SIDE_SHARE = 1 / 3  # of the seconds, for what is measured beside the calls themselves
MESSAGE_CHARACTERS = 300  # of an exception, in a report
NO_MASKS = "takes no mask prompt; export with --mask-input"
NO_COPIES = "the decoder runs in the host's memory: nothing is copied to a device"
NO_PROCESS = "a contender is opened in this process alone"
NOT_APART = "its runtime does not tell copies from work"
IN_TURNS = "artifacts took turns, and power is not told apart; measure one alone"
IN_CHILD = "measured in a process of its own, too short for power readings"
ENERGY_UNIT = "mJ"
# Of these kinds, each phase that is measured, with the part of the way that it is.
PHOTO_PHASES: Mapping[str, Mapping[str, str]] = {
    "encode": {"steady": "encode"},
    "photo": {name: name for name in ("steady", "resize", "encode", "decode", "post_processing")},
}
COLD_PHASES = ("import", "load", "first_call")
NOTHING_DECODED: dict[str, Any] = {"prompts": 0, "points": ()}


class _ContenderError(Exception):
    """Name the contender whose call failed while it was timed."""


Energy = Callable[[int, int], adapter.Reading]  # what a device drew between two times of the clock


@dataclass
class Harness:
    """Measure subjects in every scenario. `results` and the rest are filled as it goes."""

    subjects: Sequence[Subject]
    workload: Workload
    device: str
    threads: int | None
    seconds: float
    quick: bool
    clock: Clock
    energy: Energy
    progress: Progress
    starter: Starter = start
    results: list[Result] = field(default_factory=list)
    not_measured: list[NotMeasured] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    placements: dict[str, Placement] = field(default_factory=dict)  # by subject, after its last scenario
    partial: str | None = None
    _begun: set[str] = field(default_factory=set)
    _ways: dict[str, photo.Way] = field(default_factory=dict)  # with the encoder, by subject; the first is the truth
    _parts: dict[str, dict[str, Callable[[], Any]]] = field(default_factory=dict)  # of these
    _doing: str = "start"
    _at: tuple[int, int] = (0, 0)  # the number of the scenario, of how many

    def run(self, scenarios: Sequence[Scenario]) -> None:
        """Measure. An interruption or a lost device ends it; what was measured stays, and `partial` says why."""
        try:
            self._begin()
            for number, scenario in enumerate(scenarios):
                self._at = (number, len(scenarios))
                offered = [subject for subject in self.subjects if self._offers(subject, scenario)]
                if offered:
                    self._measure(scenario)(scenario, offered)
                    self.placements |= {subject.name: subject.session.placement() for subject in offered}
        except KeyboardInterrupt:
            self.partial = f"{INTERRUPTED}, in {self._doing}"
        except Exception as error:  # a driver may raise anything when its device is gone
            words = " ".join(str(error).split())[:MESSAGE_CHARACTERS]
            self.partial = f"ended by an error in {self._doing}: {type(error).__name__}: {words}"

    def _measure(self, scenario: Scenario) -> Callable[[Scenario, Sequence[Subject]], None]:
        own = {"cold": self.cold, "memory": self.memory, "encode": self.pictures, "photo": self.pictures}
        return own.get(scenario.kind, self.steady)

    def _begin(self) -> None:
        """Set each subject's first image, once."""
        for subject in (one for one in self.subjects if one.name not in self._begun):
            self._do(f"the first image of {subject.name}")
            subject.session.set_image(self.workload.images[0])
            self._begun.add(subject.name)
            if not isinstance(subject.session, CopiesOnly):
                reason = NO_COPIES if self.device == "cpu" else NOT_APART
                self.not_measured.append(NotMeasured(subject.name, None, "transfer", reason))

    def _offers(self, subject: Subject, scenario: Scenario) -> bool:
        """Ask once, with the most points of the scenario, whether the subject takes such prompts."""
        self._do(f"{scenario.name} of {subject.name}")
        is_contender, reason = subject.artifact is None, None
        if scenario.kind == "refine" and not self.workload.spec.mask_input:
            reason = NO_MASKS
        elif scenario.kind in PHOTO_PHASES:
            reason = photo.problem(subject, self.device) or self._way_problem(subject)
        elif is_contender and scenario.kind in ("cold", "memory"):
            reason = NO_PROCESS
        else:
            reason = self._refusal(subject, scenario)
        if reason is not None:
            self.not_measured.append(NotMeasured(subject.name, scenario.name, None, reason))
        return reason is None

    def _refusal(self, subject: Subject, scenario: Scenario) -> str | None:
        first = candidate(subject.name, subject.session, scenario, self.workload)
        try:
            first.call(first.inputs(scenario.cycle - 1))
        except PromptError as refusal:
            return str(refusal)
        except Exception as cause:  # such as memory that is not enough; an artifact's ends the run
            if subject.artifact is not None:
                raise
            return reason_of(cause)
        return None

    def _way_problem(self, subject: Subject) -> str | None:
        """Open a subject's encoder, once; a contender's has to agree with the first artifact's."""
        if subject.name in self._ways:
            return None
        self._do(f"the first picture of {subject.name}")
        way = photo.way_of(subject, self.device, self.threads)
        try:
            if subject.artifact is None and (reason := self._disagreement(way)):
                return reason
            self._parts[subject.name] = photo.parts(way)
        except Exception as cause:
            if subject.artifact is not None:
                raise
            return reason_of(cause)
        self._ways[subject.name] = way
        return None

    def _disagreement(self, way: photo.Way) -> str | None:
        truth = next(iter(self._ways.values()), None)
        return photo.NO_TRUTH if truth is None else photo.difference(way, truth)

    def steady(self, scenario: Scenario, subjects: Sequence[Subject]) -> None:
        """Measure calls in turns, then what belongs beside them."""
        for subject in subjects:
            subject.session.set_image(self.workload.images[0])
        self._sample(scenario, "steady", subjects, candidate, self._effort(scenario, self.seconds))
        side = replace(self._effort(scenario, self.seconds * SIDE_SHARE), warm_up_s=0.0)
        able = [subject for subject in subjects if isinstance(subject.session, CopiesOnly)]
        if scenario.transfer and able:
            self._sample(scenario, "transfer", able, copying, side)
        made = [subject for subject in subjects if subject.artifact is not None]
        if scenario.post_processing and made:  # the same code for every subject
            self._sample(scenario, "post_processing", made, finishing, side)

    def pictures(self, scenario: Scenario, subjects: Sequence[Subject]) -> None:
        """Measure pictures on their way to a mask, and the parts of that way; or the encoder alone."""
        for phase, part in PHOTO_PHASES[scenario.kind].items():
            share = 1.0 if phase == "steady" else SIDE_SHARE
            effort = replace(self._effort(scenario, self.seconds * share), warm_up_s=0.0)
            self._sample(scenario, phase, subjects, photo.bound(self._parts, part), effort)

    def _effort(self, scenario: Scenario, seconds: float) -> Effort:
        found = scenario.effort(seconds)
        least, warm = min(found.least, QUICK_CALLS), min(found.warm_up_calls, QUICK_WARM_UP_CALLS)
        return replace(found, least=least, warm_up_calls=warm) if self.quick else found

    def cold(self, scenario: Scenario, subjects: Sequence[Subject]) -> None:
        """Start fresh processes in turns."""
        starts: dict[str, list[dict[str, Any]]] = {subject.name: [] for subject in subjects}
        order, begin = Random(self.workload.seed), self.clock()
        try:
            for number in range(QUICK_COLD_STARTS if self.quick else COLD_STARTS):
                turns = order.sample(subjects, len(subjects))
                found = {subject.name: self._start(subject, scenario, number) for subject in turns}
                for name, cold in found.items():
                    starts[name].append(cold)
        finally:
            for name, cold_ones in starts.items():
                self._keep_cold(scenario, name, cold_ones, begin)

    def memory(self, scenario: Scenario, subjects: Sequence[Subject]) -> None:
        """Decode in a fresh process, and ask what it held at most."""
        for subject in subjects:
            begin = self.clock()
            found = self._start(subject, scenario, 0, scenario.least)
            self._add(scenario, subject.name, "steady", begin, tuple(found["calls_ns"]), warm_up_calls=1,
                      warm_up_ns=found["first_call_ns"], peak_bytes=found["peak"])  # fmt: skip

    def _sample(
        self, scenario: Scenario, phase: str, subjects: Sequence[Subject], bind: photo.Bind, effort: Effort
    ) -> None:
        """Measure in turns; where a contender fails, the others begin again without it."""
        self._do(f"{scenario.name}, {phase.replace('_', ' ')}")
        bound = [self._bound(bind, subject, scenario) for subject in subjects]
        sampling = Sampling(bound, effort, self.clock, self.workload.seed)
        try:
            sampling.run()
        except _ContenderError as failure:
            (name,) = failure.args
            self.not_measured.append(NotMeasured(name, scenario.name, phase, reason_of(failure.__cause__ or failure)))
            sampling.forget()
            left = [subject for subject in subjects if subject.name != name]
            if left:
                self._sample(scenario, phase, left, bind, effort)
        finally:
            self._keep(scenario, phase, sampling, effort)

    def _bound(self, bind: photo.Bind, subject: Subject, scenario: Scenario) -> Candidate:
        made = bind(subject.name, subject.session, scenario, self.workload)
        if subject.artifact is not None:
            return made

        def call(argument: Any) -> Any:
            try:
                return made.call(argument)
            except Exception as cause:
                raise _ContenderError(subject.name) from cause

        return replace(made, call=call)

    def _keep(self, scenario: Scenario, phase: str, sampling: Sampling, effort: Effort) -> None:
        for found in sampling.samples:
            if not found.call_ns:
                continue
            if len(found.call_ns) < effort.least:
                self.flags.append(f"{scenario.name} of {found.name} broke off after {len(found.call_ns)} calls")
            calls, spent_ns = sampling.warm_up(found.name)
            energy_mj = self._energy(sampling, len(found.call_ns) * found.prompts)
            self._add(scenario, found.name, phase, sampling.start_ns, found.call_ns, warm_up_calls=calls,
                      warm_up_ns=spent_ns, end_ns=sampling.end_ns, energy_mj=energy_mj)  # fmt: skip

    def _keep_cold(self, scenario: Scenario, name: str, found: Sequence[dict[str, Any]], begin: int) -> None:
        for phase in COLD_PHASES if found else ():
            samples = tuple(cold[f"{phase}_ns"] for cold in found)
            self._add(scenario, name, phase, begin, samples, **({} if phase == "first_call" else NOTHING_DECODED))

    def _add(
        self, scenario: Scenario, name: str, phase: str, begin: int, samples: tuple[int, ...], **more: Any
    ) -> None:
        points, energy = self.workload.tokens(scenario), _unread(IN_CHILD)
        plain = Result(name, scenario.name, phase, scenario.prompts, points, 0, 0, begin, self.clock(), samples,
                       energy, None)  # fmt: skip
        self.results.append(replace(plain, **more))

    def _start(self, subject: Subject, scenario: Scenario, number: int, calls: int = 0) -> dict[str, Any]:
        self._do(f"{scenario.name} of {subject.name}")
        feed = {**self.workload.images[0], **self.workload.feed(scenario, number)}
        assert subject.artifact is not None  # _offers()
        return self.starter(subject.artifact.path, self.device, self.threads, feed, calls)

    def _energy(self, sampling: Sampling, prompts: int) -> Reading:
        if len(self.subjects) > 1:
            return _unread(IN_TURNS)
        found = self.energy(sampling.start_ns, sampling.end_ns).to_json()
        value = found["value"]
        return {**found, "value": value / prompts} if isinstance(value, (int, float)) else found

    def _do(self, what: str) -> None:
        self._doing = what
        self.progress(f"Measuring {what}", *self._at)


def _unread(reason: str) -> Reading:
    return adapter.unread(reason, ENERGY_UNIT).to_json()
