"""Go through the scenarios, artifacts in turns, and keep what was measured whatever ends the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Protocol

from samx.benchmarks.clock import Clock
from samx.benchmarks.fresh import Fresh, Start, Starter, start
from samx.benchmarks.interleave import Candidate, Effort, Sampling
from samx.benchmarks.results import NotMeasured, Reading, Result
from samx.benchmarks.scenarios import Questions, Scenario
from samx.benchmarks.subjects import Place, Subject
from samx.benchmarks.work import candidate, copying, finishing
from samx.devices import adapter as device
from samx.errors import PromptError
from samx.models.session import Placement, Session
from samx.progress import Progress
from samx.runtimes.base import CopiesOnly

INTERRUPTED = "stopped by the user (Ctrl-C)"
COLD_STARTS, QUICK_COLD_STARTS = 10, 3
SIDE_SHARE = 1 / 3  # of the seconds, for what is measured beside the calls themselves
MESSAGE_CHARACTERS = 300  # of an exception, in a report
NO_MASKS = "takes no mask prompt; export with --mask-input"
NOT_APART = "its runtime does not tell copies from work"
IN_TURNS = "artifacts took turns, and power is not told apart; measure one alone"
IN_CHILD = "measured in a process of its own, too short for power readings"
ENERGY_UNIT = "mJ"

Bind = Callable[[str, Session, Scenario, Questions], Candidate]


class Energy(Protocol):
    """Tell what a device drew. samx.devices.monitor.Monitor does."""

    def energy_mj(self, start_ns: int, end_ns: int) -> device.Reading:
        """Give the energy between two times of the clock."""
        ...


@dataclass
class Harness:
    """Measure subjects in every scenario. `results` and the rest are filled as it goes."""

    subjects: Sequence[Subject]
    questions: Questions
    place: Place
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
    _doing: str = "start"
    _at: tuple[int, int] = (0, 0)  # the number of the scenario, of how many

    def run(self, scenarios: Sequence[Scenario]) -> None:
        """Measure. An interruption or a lost device ends it; what was measured stays, and `partial` says why."""
        try:
            for subject in self.subjects:
                self._begin(subject)
            for number, scenario in enumerate(scenarios):
                self._at = (number, len(scenarios))
                offered = [subject for subject in self.subjects if self._offers(subject, scenario)]
                if offered:
                    KINDS[scenario.kind](self, scenario, offered)
                    self.placements |= {subject.name: subject.session.placement() for subject in offered}
        except KeyboardInterrupt:
            self.partial = f"{INTERRUPTED}, in {self._doing}"
        except Exception as error:  # a driver may raise anything when its device is gone
            words = " ".join(str(error).split())[:MESSAGE_CHARACTERS]
            self.partial = f"ended by an error in {self._doing}: {type(error).__name__}: {words}"

    def _begin(self, subject: Subject) -> None:
        self._do(f"the first image of {subject.name}")
        subject.session.set_image(self.questions.images[0])
        if not isinstance(subject.session, CopiesOnly):
            self.not_measured.append(NotMeasured(subject.name, None, "transfer", _no_transfer(self.place.device)))

    def _offers(self, subject: Subject, scenario: Scenario) -> bool:
        """Ask once, with the most points of the scenario, whether the artifact takes such prompts."""
        self._do(f"{scenario.name} of {subject.name}")
        reason = NO_MASKS if scenario.kind == "refine" and not self.questions.spec.mask_input else None
        if reason is None:
            first = candidate(subject.name, subject.session, scenario, self.questions)
            try:
                first.call(first.inputs(scenario.cycle - 1))
            except PromptError as refusal:
                reason = str(refusal)
        if reason is not None:
            self.not_measured.append(NotMeasured(subject.name, scenario.name, None, reason))
        return reason is None

    def steady(self, scenario: Scenario, subjects: Sequence[Subject]) -> None:
        """Measure calls in turns, then what belongs beside them."""
        for subject in subjects:
            subject.session.set_image(self.questions.images[0])
        self._sample(scenario, "steady", subjects, candidate, scenario.effort(self.seconds))
        side = replace(scenario.effort(self.seconds * SIDE_SHARE), warm_up_s=0.0)
        able = [subject for subject in subjects if isinstance(subject.session, CopiesOnly)]
        if scenario.transfer and able:
            self._sample(scenario, "transfer", able, copying, side)
        if scenario.post_processing:
            self._sample(scenario, "post_processing", subjects, finishing, side)

    def cold(self, scenario: Scenario, subjects: Sequence[Subject]) -> None:
        """Start fresh processes in turns."""
        starts: dict[str, list[Fresh]] = {subject.name: [] for subject in subjects}
        order, begin = Random(self.questions.seed), self.clock()
        try:
            for number in range(QUICK_COLD_STARTS if self.quick else COLD_STARTS):
                tasks = {subject: self._task(subject, scenario, number) for subject in subjects}
                found = {subject: self.starter(tasks[subject]) for subject in order.sample(subjects, len(subjects))}
                for subject, fresh in found.items():
                    starts[subject.name].append(fresh)
        finally:
            for name, fresh_ones in starts.items():
                self._keep_cold(scenario, name, fresh_ones, begin)

    def memory(self, scenario: Scenario, subjects: Sequence[Subject]) -> None:
        """Decode in a fresh process, and ask what it held at most."""
        for subject in subjects:
            begin = self.clock()
            found = self.starter(self._task(subject, scenario, 0, scenario.least))
            blank = self._blank(scenario, subject.name, "steady", begin)
            self.results.append(replace(
                blank, warm_up_calls=1, warm_up_ns=found.first_call_ns, samples_ns=found.calls_ns,
                peak_bytes=found.peak,
            ))  # fmt: skip

    def _sample(self, scenario: Scenario, phase: str, subjects: Sequence[Subject], bind: Bind, effort: Effort) -> None:
        self._do(f"{scenario.name}, {phase.replace('_', ' ')}")
        bound = [bind(subject.name, subject.session, scenario, self.questions) for subject in subjects]
        sampling = Sampling(bound, effort, self.clock, self.questions.seed)
        try:
            sampling.run()
        finally:
            self._keep(scenario, phase, sampling, effort)

    def _keep(self, scenario: Scenario, phase: str, sampling: Sampling, effort: Effort) -> None:
        for found in sampling.samples:
            if not found.call_ns:
                continue
            if len(found.call_ns) < effort.least:
                self.flags.append(f"{scenario.name} of {found.name} broke off after {len(found.call_ns)} calls")
            calls, spent_ns = sampling.warm_up(found.name)
            blank = self._blank(scenario, found.name, phase, sampling.start_ns)
            self.results.append(replace(
                blank, warm_up_calls=calls, warm_up_ns=spent_ns, end_ns=sampling.end_ns, samples_ns=found.call_ns,
                energy_mj=self._energy(sampling, len(found.call_ns) * found.prompts),
            ))  # fmt: skip

    def _keep_cold(self, scenario: Scenario, name: str, found: Sequence[Fresh], begin: int) -> None:
        phases = {phase: tuple(getattr(fresh, f"{phase}_ns") for fresh in found) for phase in COLD_PHASES}
        for phase, samples in phases.items() if found else ():
            blank = self._blank(scenario, name, phase, begin)
            blank = blank if phase == "first_call" else replace(blank, prompts=0, points=())
            self.results.append(replace(blank, samples_ns=samples))

    def _blank(self, scenario: Scenario, name: str, phase: str, begin: int) -> Result:
        points = self.questions.tokens(scenario)
        reason = _unread(IN_CHILD, ENERGY_UNIT)
        return Result(name, scenario.name, phase, scenario.prompts, points, 0, 0, begin, self.clock(), (), reason, None)

    def _task(self, subject: Subject, scenario: Scenario, number: int, calls: int = 0) -> Start:
        self._do(f"{scenario.name} of {subject.name}")
        prompts, image = self.questions.feed(scenario, number), self.questions.images[0]
        return Start(subject.artifact.path, self.place.device, self.place.threads, image, prompts, calls)

    def _energy(self, sampling: Sampling, prompts: int) -> Reading:
        if len(self.subjects) > 1:
            return _unread(IN_TURNS, ENERGY_UNIT)
        found = self.energy.energy_mj(sampling.start_ns, sampling.end_ns).to_json()
        value = found["value"]
        return {**found, "value": value / prompts} if isinstance(value, (int, float)) else found

    def _do(self, what: str) -> None:
        self._doing = what
        self.progress(f"Measuring {what}", *self._at)


COLD_PHASES = ("import", "load", "first_call")
KINDS: dict[str, Callable[[Harness, Scenario, Sequence[Subject]], None]] = {
    "decode": Harness.steady,
    "image": Harness.steady,
    "refine": Harness.steady,
    "cold": Harness.cold,
    "memory": Harness.memory,
}


def _no_transfer(name: str) -> str:
    return "the decoder runs in the host's memory: nothing is copied to a device" if name == "cpu" else NOT_APART


def _unread(reason: str, unit: str) -> Reading:
    return device.unread(reason, unit).to_json()
