"""Start samx: `python -m samx` or `python samx.pyz`. Python 3.6 can read this file, to say what is needed."""

import hashlib
import os
import sys

OLDEST = (3, 10)
UNAVAILABLE, DAMAGED = 5, 6  # exit codes
KIT_FILE = "kit.sha256"  # beside samx.pyz in a kit, as sha256sum writes it
AGAIN = "Copy and unpack the kit again."


class StartError(Exception):
    """Why samx does not start here, in one line, with its exit code."""

    def __init__(self, code: int, line: str) -> None:
        super().__init__(line)
        self.code = code


def check_python() -> None:
    """Refuse a Python that is too old, or has no NumPy.

    Raises: StartError.
    """
    if sys.version_info < OLDEST:
        found, needed = (".".join(map(str, version)) for version in (sys.version_info[:3], OLDEST))
        line = "samx needs Python {} or newer, found {} at {}. Start samx.pyz with a newer one, such as python3.11."
        raise StartError(UNAVAILABLE, line.format(needed, found, sys.executable))
    try:
        import numpy  # noqa: F401
    except ImportError as cause:
        line = "samx needs NumPy, which does not load: {}. Install it: {} -m pip install numpy"
        raise StartError(UNAVAILABLE, line.format(" ".join(str(cause).split()), sys.executable)) from cause


def check_kit(archive: str) -> None:
    """Compare every file of the kit that samx.pyz lies in with its hash; no kit, no comparison.

    Raises: StartError for a file that is missing or changed.
    """
    folder = os.path.dirname(os.path.abspath(archive))
    listed = os.path.join(folder, KIT_FILE)
    if not os.path.isfile(listed):
        return
    with open(listed, encoding="utf-8", errors="replace") as file:
        lines = file.read().splitlines()
    for line in lines:
        sha256, _, name = line.partition("  ")
        if _sha256(os.path.join(folder, *name.split("/"))) != sha256:
            raise StartError(DAMAGED, f"{name or KIT_FILE} of this kit is missing or was changed. {AGAIN}")
    if not lines or lines[-1].partition("  ")[2] != os.path.basename(archive):
        raise StartError(DAMAGED, f"{KIT_FILE} of this kit is not complete. {AGAIN}")


def _sha256(path: str) -> str:
    found = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            for part in iter(lambda: file.read(1 << 20), b""):
                found.update(part)
    except OSError:
        return ""
    return found.hexdigest()


def main() -> None:
    """Check what samx needs, and start it."""
    archive = os.path.dirname(os.path.abspath(__file__))
    try:
        check_python()
        if os.path.isfile(archive):
            os.environ["TYPER_USE_RICH"] = "0"  # its help would need more packages than the archive holds
            check_kit(archive)
    except StartError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.code)
    from samx import cli, cli_plain

    (cli_plain if os.path.isfile(archive) else cli).main()


if __name__ == "__main__":
    main()
