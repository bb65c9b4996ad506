"""Every error samx raises on purpose: one line for the user, one exit code for the shell."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

LONGEST_FACT = 1000  # characters of a line; a file may hold anything


class SamxError(Exception):
    """Say in one line what failed, what was found, what was expected and what to do."""

    exit_code = 1

    def __init__(self, what: str, *, found: object = None, expected: object = None, fix: str | None = None) -> None:
        self.what = what
        self.found = None if found is None else str(found)
        self.expected = None if expected is None else str(expected)
        self.fix = fix
        super().__init__(self._sentence())

    def _sentence(self) -> str:
        facts = [f"found {_cut(self.found)}"] if self.found is not None else []
        facts += [f"expected {_cut(self.expected)}"] if self.expected is not None else []
        line = f"{self.what}: {', '.join(facts)}" if facts else self.what
        line = f"{line}. {self.fix}" if self.fix else line
        return " ".join(line.split())

    def to_json(self) -> dict[str, object]:
        """Give the same facts to machines."""
        return {
            "error": type(self).__name__,
            "exit_code": self.exit_code,
            "message": str(self),
            "what": self.what,
            "found": self.found,
            "expected": self.expected,
            "fix": self.fix,
        }

    @staticmethod
    def from_json(facts: Mapping[str, Any]) -> SamxError:
        """Return the error whose facts another process of samx gave."""
        kind: type[SamxError] = globals().get(facts["error"], SamxError)
        error = kind.__new__(kind)
        SamxError.__init__(error, facts["what"], **{name: facts[name] for name in ("found", "expected", "fix")})
        return error


def _cut(words: str) -> str:
    return words if len(words) <= LONGEST_FACT else f"{words[:LONGEST_FACT]}..."


class UsageError(SamxError):
    """Report a request that cannot be meant: unknown target, unsupported combination."""

    exit_code = 2


class ParityError(SamxError):
    """Report that a candidate does not compute what the reference computes."""

    exit_code = 3

    def __init__(
        self, what: str, *, found: object = None, expected: object = None, fix: str | None = None, report: object = None
    ) -> None:
        super().__init__(what, found=found, expected=expected, fix=fix)
        self.report = report  # the ParityReport, where one was made


class BenchmarkError(SamxError):
    """Report an unstable or regressed measurement."""

    exit_code = 4


class UnavailableError(SamxError):
    """Report a backend or device that is not on this machine."""

    exit_code = 5


def how_to_install(library: str, extra: str) -> str:
    """Say how a library comes here: with the installed samx's extra, or by itself beside samx.pyz or a bare checkout.

    samx is on no package index: where it is not installed, pip would look for somebody else's.
    """
    try:
        distribution("samx")
    except PackageNotFoundError:
        return f"Install the library '{library}' for this Python; a kit's README.txt has the command."
    return f"Install it with: pip install 'samx[{extra}]'"


class MissingExtraError(UnavailableError):
    """Report a library that an optional extra would bring."""

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the library '{library}', which is not installed",
            fix=how_to_install(library, extra),
        )
        self.library = library
        self.extra = extra


class InputError(SamxError):
    """Report input that was read and rejected."""

    exit_code = 6


class CheckpointError(InputError):
    """Report a checkpoint that is missing, damaged or not a supported decoder."""


class PromptError(InputError):
    """Report points, boxes or masks that no decoder could mean."""


class ImageError(InputError):
    """Report a picture or embedding that cannot be used."""


class ArtifactError(InputError):
    """Report an artifact that is incomplete, altered or of another schema."""


class WriteError(SamxError):
    """Report an output that could not be written; nothing was left behind."""

    exit_code = 7


class NoMemoryError(SamxError):
    """Report work that needs more memory than this process may take."""

    exit_code = 8


class Doubt(UserWarning):
    """Warn of a request that was answered, and may not be what was meant."""


def doubt(line: str) -> None:
    """Warn in one line; the command line prints it, a program may filter `Doubt`."""
    warnings.warn(" ".join(line.split()), Doubt, stacklevel=3)
