"""A session while it is judged: what it was asked, what it answered, and whether it says the same again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from samx.errors import PromptError
from samx.models.session import Feed, Outputs, Session
from samx.validators.cases import Case

KEPT_PROMPTS = 8  # outputs of calls of so many prompts at most are kept until the end: the others are large
MESSAGE_CHARACTERS = 400  # of an exception, in a report


@dataclass
class Asked:
    """Ask a session, and remember its answers: the arrays themselves, which must not change, and copies of them."""

    session: Session
    images: Sequence[Feed]
    calls: int = 0
    image: int | None = None  # that the session holds
    kept: list[tuple[Case, Outputs, Outputs]] = field(default_factory=list)

    def ask(self, case: Case) -> Outputs:
        """Decode a case, on its image."""
        self.calls += 1
        if self.image != case.image:
            self.image = None  # whatever it holds if the next line fails
            self.session.set_image(_copy(self.images[case.image]))
            self.image = case.image
        return self.session.decode(_copy(case.prompts))

    def remember(self, case: Case, outputs: Outputs) -> None:
        """Keep an answer until the end."""
        if len(case.prompts["point_labels"]) <= KEPT_PROMPTS:
            self.kept.append((case, outputs, {name: value.copy() for name, value in outputs.items()}))

    def again(self, rng: np.random.Generator) -> list[str]:
        """Ask one call once more and once again, on its image set anew. Gives what differs.

        No answer of earlier may have changed since.
        """
        single = self._single()
        if not single:
            return self.altered()
        case, _, copies = single[rng.integers(len(single))]
        self.image = None
        return [line for _ in range(2) for line in self._differs(case, copies)] + self.altered()

    def go_on(self, calls: int, rng: np.random.Generator) -> list[str]:
        """Ask calls once more until so many were made. Gives what differs."""
        single = self._single()
        found: list[str] = []
        while single and self.calls < calls and not found:
            case, _, copies = single[rng.integers(len(single))]
            found = self._differs(case, copies)
        return found + self.altered()

    def altered(self) -> list[str]:
        """Return the calls whose outputs are no longer what they were."""
        wrong = [case.name for case, outputs, copies in self.kept if not _same(outputs, copies)]
        return [f"outputs of {name} changed after they were handed out" for name in wrong]

    def refuses_half_flags(self) -> list[str]:
        """Ask with a flag between 0 and 1, which must be refused: between a mask and none there is nothing."""
        flagged = [case for case, _, _ in self.kept if "has_mask_input" in case.prompts]
        if not flagged:
            return []
        case, half = flagged[0], {"has_mask_input": np.full_like(flagged[0].prompts["has_mask_input"], 0.5)}
        try:
            self.ask(Case(case.name, case.image, {**case.prompts, **half}))
        except PromptError:
            return []
        except Exception as error:
            return [f"has_mask_input = 0.5 must be refused as a prompt: {message(error)}"]
        return ["has_mask_input = 0.5 was answered, must be refused"]

    def _single(self) -> list[tuple[Case, Outputs, Outputs]]:
        """Return the calls of one prompt, which cost least; those of more where there are no others."""
        return [one for one in self.kept if len(one[0].prompts["point_labels"]) == 1] or self.kept

    def _differs(self, case: Case, copies: Outputs) -> list[str]:
        try:
            same = _same(self.ask(case), copies)
        except Exception as error:
            return [f"{case.name} asked again, call {self.calls}: {message(error)}"]
        return [] if same else [f"{case.name} has other outputs when asked again, in call {self.calls}"]


def message(error: Exception) -> str:
    """Return an exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:MESSAGE_CHARACTERS]


def _copy(feed: Feed) -> Feed:
    return {name: value.copy() for name, value in feed.items()}  # a session may write into what it is given


def _same(outputs: Outputs, copies: Outputs) -> bool:
    return outputs.keys() == copies.keys() and all(np.array_equal(outputs[name], copies[name]) for name in copies)
