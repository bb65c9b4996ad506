"""The two libraries that share one API: their names and versions, what binds their engines, what they say at work."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from samx.artifacts.strict_json import refusal
from samx.errors import MissingExtraError, UnavailableError, UsageError
from samx.extras import require

if TYPE_CHECKING:
    import tensorrt_rtx as trt

Version = tuple[int, ...]
Message = tuple[str, str]  # one line of a library's log: its own word (INFO, WARNING, ERROR, INTERNAL_ERROR), its text

ERRORS = ("ERROR", "INTERNAL_ERROR")
SHOWN_CHARACTERS = 400
# A warning about either means that the engine may compute something else than the file says, or for other sizes.
CONCERNS: Mapping[str, re.Pattern[str]] = {
    "precision": re.compile(
        r"precision|overflow|underflow|subnormal|out of (?:the )?range|clamp|truncat|lossy|accuracy|\bcast"
        r"|downcast|\bfp16\b|\bbf16\b|\bfp8\b|\bint8\b|\btf32\b|half|float16|weakly|dynamic range|quantiz|calibrat",
        re.IGNORECASE,
    ),
    "shape": re.compile(r"shape|dimension|\bdims?\b|optimization profile|broadcast|\brank\b", re.IGNORECASE),
}
# What the libraries say about memory while they build. Only said, so None where a version words it otherwise.
FIGURES: Mapping[str, re.Pattern[str]] = {
    "scratch_bytes": re.compile(r"Max Scratch Memory: (\d+) bytes"),
    "weights_bytes": re.compile(r"Total Weights Memory: (\d+) bytes"),
}


@dataclass(frozen=True)
class Library:
    """One of the two libraries, as data that the rest of the package branches on."""

    target: str
    title: str
    module: str
    extra: str
    minimum: Version
    below: Version | None  # the first version that is too new
    update: str  # how to get a version that works
    command: str  # the vendor's own command-line builder
    compute: tuple[str, ...]  # what an engine may be compiled for; the first is the default
    binds: tuple[str, ...]  # what of the building machine an engine needs again to run
    engine_version_parts: int  # how much of the library's version must be the same
    builds_without_gpu: bool
    has_timing_cache: bool
    has_runtime_cache: bool
    tells_validity: bool  # why it refuses an engine
    warnings_fail: bool  # about precision or shapes, where it is known to build our graphs without any

    def open(self) -> ModuleType:
        """Import the library and check its version.

        Raises: MissingExtraError; UnavailableError when it does not load or is of another version.
        """
        try:
            module = require(self.module, self.extra, f"target '{self.target}'")
        except MissingExtraError:
            raise
        except (ImportError, OSError) as cause:
            raise UnavailableError(f"{self.title} does not load", found=cause, fix=self.update) from cause
        self.check_version(str(module.__version__))
        return module

    def check_version(self, version: str) -> None:
        """Refuse a version that samx was not made for.

        Raises: UnavailableError naming the versions that work.
        """
        found = version_of(version)
        if found < self.minimum or (self.below is not None and found >= self.below):
            raise UnavailableError(
                f"{self.title} has a version that samx cannot use", found=version, expected=self.versions,
                fix=self.update,
            )  # fmt: skip

    def start(self) -> Opened:
        """Import the library and give it a logger.

        Raises: as open().
        """
        module = self.open()
        return Opened(self, module, *_recorder(module))

    @property
    def versions(self) -> str:
        """Return which versions work, in words."""
        words = f"{_dotted(self.minimum)} or newer"
        return words if self.below is None else f"{words}, older than {_dotted(self.below)}"

    def engine_version(self, version: str) -> str:
        """Return the part of a version that engines are bound to."""
        return _dotted(version_of(version)[: self.engine_version_parts])


@dataclass(frozen=True)
class Opened:
    """An imported library, the logger that everything made with it needs, and the list that the logger fills."""

    library: Library
    module: ModuleType
    logger: trt.ILogger
    messages: list[Message]

    @property
    def version(self) -> str:
        """Return the library's version."""
        return str(self.module.__version__)


LIBRARIES: tuple[Library, ...] = (
    Library(
        target="trt", title="TensorRT", module="tensorrt", extra="trt", minimum=(10, 3), below=None,
        update="JetPack 6.1 or newer brings it to a Jetson; elsewhere: pip install --upgrade tensorrt",
        command="trtexec", compute=("this_gpu",), binds=("gpu", "compute_capability", "driver", "os"),
        engine_version_parts=4, builds_without_gpu=False, has_timing_cache=True, has_runtime_cache=False,
        tells_validity=False, warnings_fail=False,
    ),
    Library(
        target="trt-rtx", title="TensorRT for RTX", module="tensorrt_rtx", extra="trt-rtx", minimum=(1, 7),
        below=(1, 8), update="Install it with: pip install 'tensorrt-rtx-cu13>=1.7,<1.8'",
        command="tensorrt_rtx", compute=("ampere_plus", "sm75"), binds=(), engine_version_parts=2,
        builds_without_gpu=True, has_timing_cache=False, has_runtime_cache=True,
        tells_validity=True, warnings_fail=True,
    ),
)  # fmt: skip


def library_of(target: str) -> Library:
    """Look up the library that a target needs.

    Raises: UsageError for a target that has no engines.
    """
    known = {library.target: library for library in LIBRARIES}
    if target not in known:
        raise UsageError("this target has no engine to build", found=f"target '{target}'", expected=" or ".join(known))
    return known[target]


def check_compute(target: str, compute: str, where: str) -> None:
    """Refuse a file of a target that is unknown, or of GPUs that it has no engines for.

    Raises: ArtifactError naming `where`.
    """
    known = {library.target: library.compute for library in LIBRARIES}
    if compute not in known.get(target, ()):
        raise refusal(f"{where} is of no known target", f"{target}, {compute}", fix="Export again.")


def version_of(text: str) -> Version:
    """Read the numbers at the start of a version."""
    numbers = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(number) for number in numbers[0].split(".")) if numbers else ()


def _recorder(module: ModuleType) -> tuple[trt.ILogger, list[Message]]:
    messages: list[Message] = []

    class Recorder(module.ILogger):  # type: ignore[misc, name-defined]  # the base class is known at run time only
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, text: str) -> None:
            if severity.name != "VERBOSE":  # thousands of lines about every tactic, and none that concerns a user
                messages.append((severity.name, " ".join(text.split())))

    return Recorder(), messages


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def concerns(messages: Sequence[Message]) -> list[str]:
    """List the warnings and errors that concern precision or shape, each with its topic in front."""
    serious = [text for severity, text in messages if severity in ("WARNING", *ERRORS)]
    return [f"{topic}: {text}" for text in serious for topic, words in CONCERNS.items() if words.search(text)]


def first_error(messages: Sequence[Message]) -> str:
    """Return the first error, short enough for one line: the later ones mostly repeat it."""
    return next((text for severity, text in messages if severity in ERRORS), "no message")[:SHOWN_CHARACTERS]


def figures(messages: Sequence[Message]) -> dict[str, int | None]:
    """Read the memory that an engine will need, as far as the library said it."""
    found = {name: [words.search(text) for _, text in messages] for name, words in FIGURES.items()}
    return {name: max((int(match[1]) for match in hits if match), default=None) for name, hits in found.items()}


def summary(messages: Sequence[Message]) -> dict[str, Any]:
    """Count the messages by severity and keep what is more than information."""
    kept = [{"severity": severity, "text": text} for severity, text in messages if severity != "INFO"]
    return {"counts": dict(Counter(severity for severity, _ in messages)), "messages": kept}
