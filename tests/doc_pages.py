"""The pages of the documentation, block by block, and a program that runs one: python tests/doc_pages.py PAGE [--made].

A block is run unless it says what it needs: '# needs: mac' as its first line, or at the end of a line of shell, or
'# excerpt of FILE' for a part of a file of samx. With --made, only lines that take seconds are run, on artifacts that
are there already.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LANGUAGES = ("bash", "python", "pycon", "text", "swift", "toml")  # pycon: docstrings, in docs/api.md
RUN = ("bash", "python")
# What a block or a line may need, so that no test runs it.
NEEDS = {
    "network": "downloads from a package registry",
    "checkout": "the repository's Makefile, whose targets exist",
    "minutes": "takes too long for a test",
    "files": "names stand for files of yours",
    "upstream": "other people's packages and checkpoints",
    "bf16": "a processor that computes in bfloat16",
    "nvidia": "an NVIDIA GPU",
    "jetson": "a Jetson",
    "mac": "a Mac",
    "phone": "an iPhone or iPad",
}
NEED = re.compile(r"# needs: ([\w, -]+?)(?: \(.*\))?$")
EXCERPT = re.compile(r"# excerpt of (\S+)$")
COMMENT = re.compile(r"\s+#.*$|^#.*$")
ALLOWED_EXIT = re.compile(r"# exit code (\d) if ")
QUICK = ("samx inspect", "samx doctor", "samx validate", "samx segment", "python -m samx.demo.picture")


class Line(NamedTuple):
    """A line of shell: the command without its comment, what it needs, and an exit code that is no failure."""

    command: str
    needs: tuple[str, ...]
    may_exit: int = 0


class Block(NamedTuple):
    """A fenced block."""

    language: str
    code: str

    @property
    def needs(self) -> tuple[str, ...]:
        """Return what the whole block needs."""
        return needs(self.code.splitlines()[0]) if self.code.startswith("# needs:") else ()

    @property
    def excerpt(self) -> str | None:
        """Return the file that this is a part of."""
        found = EXCERPT.match(self.code.splitlines()[0]) if self.code else None
        return found[1] if found else None

    def lines(self) -> list[Line]:
        """List the lines of shell."""
        return [line(text, self.needs) for text in self.code.splitlines() if COMMENT.sub("", text)]


def needs(text: str) -> tuple[str, ...]:
    """Read what a line says that it needs."""
    found = NEED.search(text)
    return tuple(found[1].split(", ")) if found else ()


def line(text: str, of_block: tuple[str, ...] = ()) -> Line:
    """Read a line of shell."""
    exits = ALLOWED_EXIT.search(text)
    return Line(COMMENT.sub("", text), (*of_block, *needs(text)), int(exits[1]) if exits else 0)


def blocks(path: Path, *languages: str) -> Iterator[Block]:
    """Yield the blocks of a page, of some languages or all."""
    for language, code in FENCE.findall(path.read_text(encoding="utf-8")):
        if not languages or language in languages:
            yield Block(language, code)


def runnable(path: Path) -> list[Block]:
    """List the blocks of a page that a test has to run, without what needs something."""
    return [block for block in blocks(path, *RUN) if not block.needs and not block.excerpt]


def in_ci(command: str) -> bool:
    """Tell whether .ci/run runs a line."""
    return command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def script(block: Block, only: tuple[str, ...] | None = None, without: Collection[str] = ()) -> str:
    """Write what is to be run of a block as one script; `only`: lines that begin so, `without`: those that name it."""
    lines = [one for one in block.lines() if not one.needs and not in_ci(one.command)]
    kept = [one for one in lines if only is None or one.command.startswith(only)]
    kept = [one for one in kept if not set(shlex.split(one.command)) & set(without)]
    return "\n".join(f"{one.command} || [ $? = {one.may_exit} ]" if one.may_exit else one.command for one in kept)


def run(path: Path, is_made: bool) -> None:
    """Run a page's blocks in order, in this folder, Python in one namespace; print what was run."""
    names: dict[str, Any] = {}
    missing: list[str] = []
    if is_made:
        open_instead_of_exporting()
        missing = [name for name in outputs(path) if not Path(name).exists()]
    for block in runnable(path):
        if block.language == "python":
            exec(compile(block.code, str(path), "exec"), names)  # noqa: S102
            say("python")
        elif commands := script(block, QUICK if is_made else None, missing):
            subprocess.run(["bash", "-euo", "pipefail", "-c", commands], check=True, stdin=subprocess.DEVNULL)
            say(*commands.splitlines())


def say(*what: str) -> None:
    """Write what was run to standard output, for the test that reads it."""
    sys.stdout.write("".join(f"ran: {one}\n" for one in what))
    sys.stdout.flush()


def outputs(path: Path) -> list[str]:
    """List what a page's exports make."""
    found = [shlex.split(one.command) for block in blocks(path, "bash") for one in block.lines()]
    exports = [words for words in found if words[:2] == ["samx", "export"] and "-o" in words]
    return [words[words.index("-o") + 1] for words in exports]


def open_instead_of_exporting() -> None:
    """Let samx.export() open what it would make, which is there already."""
    import samx

    samx.export = lambda checkpoint, out, **_: samx.Artifact.open(Path(out))


def targets(command: str) -> list[str]:
    """Return the targets that a line with make names."""
    words = shlex.split(command)
    return [word for word in words[1:] if "=" not in word] if words[:1] == ["make"] else []


if __name__ == "__main__":
    run(Path(sys.argv[1]), "--made" in sys.argv[2:])
