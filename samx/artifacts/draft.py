"""Draft: an artifact in the making, which becomes its target whole, or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from samx.artifacts.commit import seal, staging
from samx.artifacts.manifest import Evidence, Manifest


class Draft:
    """Collect files, facts and evidence in a staging directory; the manifest is written anew with each."""

    def __init__(self, directory: Path, out: Path) -> None:
        self.directory, self.out = directory, out
        self.roles: dict[str, str] = {}  # of each file
        self.notes: list[str] = []  # what people should read about the files
        self._manifest: Manifest | None = None

    @property
    def subject(self) -> str:
        """Return what reports call the artifact."""
        return f"artifact {self.out.name}"

    @property
    def manifest(self) -> Manifest:
        """Return the manifest as it was last sealed."""
        assert self._manifest is not None
        return self._manifest

    def add(
        self, files: Mapping[str, str], *, tools: Mapping[str, str] | None = None, notes: Iterable[str] = ()
    ) -> None:
        """Take up files that lie in the directory, each with its role, the libraries that made them, and notes."""
        self.roles.update(files)
        self.notes.extend(notes)
        if self._manifest is not None:
            self.seal(replace(self._manifest, tools={**self._manifest.tools, **(tools or {})}))

    def seal(self, manifest: Manifest) -> None:
        """Write the manifest over all files.

        Raises: WriteError, ArtifactError as commit.seal().
        """
        self._manifest = seal(self.directory, manifest, self.roles, manifest.files)

    def show(self, evidence: Evidence, files: Mapping[str, str], tools: Mapping[str, str] | None = None) -> None:
        """Add what has been shown, with the files that show it."""
        self._manifest = replace(self.manifest, evidence=(*self.manifest.evidence, evidence))
        self.add(files, tools=tools)


@contextmanager
def draft(out: Path, *, overwrite: bool) -> Iterator[Draft]:
    """Yield a draft that is committed to `out` on normal exit, and vanishes on any exception.

    Raises: WriteError when the target exists and may not be replaced, or the disk does not take it.
    """
    with staging(out, overwrite=overwrite) as directory:
        yield Draft(directory, out)
