"""Run the small system commands that tell what no file tells."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

from samx.devices.reading import Reading, unread

TIMEOUT_S = 5.0
SHOWN_CHARACTERS = 120


class CommandError(Exception):
    """Say why a command gave nothing."""


Run = Callable[..., str]  # the words of a command -> what it printed; raises CommandError


def run(*words: str) -> str:
    """Run a command and give what it printed.

    Raises: CommandError when it is not there, takes too long or fails.
    """
    environment = {**os.environ, "LC_ALL": "C"}  # what is read here was written in English
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=TIMEOUT_S,
            check=False, env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired as cause:
        raise CommandError(f"{words[0]} did not answer in {TIMEOUT_S:g} s") from cause
    except OSError as cause:
        raise CommandError(f"{words[0]} cannot be run: {cause.strerror or cause}") from cause
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())[:SHOWN_CHARACTERS]
        raise CommandError(f"{' '.join(words)} failed with exit code {done.returncode}: {said or 'no message'}")
    return done.stdout


def answer(run: Run, words: tuple[str, ...], take: Callable[[str], str | None]) -> Reading:
    """Take one text from what a command prints, or say why not."""
    try:
        found = take(run(*words))
    except CommandError as cause:
        return unread(str(cause))
    return Reading(found) if found else unread(f"{' '.join(words)} printed something else")
