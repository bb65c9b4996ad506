"""onnxruntime-web, which runs graphs in browsers: its files, from a folder of yours or from npm."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from samx.errors import InputError, UnavailableError, UsageError, doubt
from samx.files import MIB, read_file
from samx.progress import Progress

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"  # the release that the page's tests run
# Of the archive of that release, as the registry states it.
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
BUILDS: Mapping[str, Mapping[str, str]] = {
    "wasm": {
        "main": "ort.wasm.min.mjs", "glue": "ort-wasm-simd-threaded.mjs", "wasm": "ort-wasm-simd-threaded.wasm",
    },
    "webgpu": {
        "main": "ort.webgpu.min.mjs", "glue": "ort-wasm-simd-threaded.asyncify.mjs",
        "wasm": "ort-wasm-simd-threaded.asyncify.wasm",
    },
}  # fmt: skip
NAMES = tuple(name for build in BUILDS.values() for name in build.values())
FROM_NPM, FOLDER_OF_NPM = "npm", Path("node_modules") / PACKAGE / "dist"
FILE_CAP_BYTES, SECONDS = 128 * MIB, 600  # the largest file has 26 MiB
STATED = re.compile(rb"ONNX Runtime Web v(\d+\.\d+\.\d+)")
HEAD_BYTES = 400  # of a script, which state its version
HOW = (
    f"Run 'npm pack {PACKAGE}@{VERSION}', unpack the archive and name its folder: --runtime package/dist. "
    f"Or let samx ask npm: --runtime {FROM_NPM}."
)
LICENCE = """onnxruntime-web, in this folder, is Copyright (c) Microsoft Corporation, and comes under the MIT licence:

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation
the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and
to permit persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


@dataclass(frozen=True)
class RuntimeFiles:
    """Hold onnxruntime-web's files by name, and which of them each of its builds takes."""

    version: str
    files: Mapping[str, bytes]
    builds: Mapping[str, Mapping[str, str]]


def runtime_files(asked: str | None, progress: Progress) -> RuntimeFiles:
    """Take the files from a folder, or from npm where that is asked for; None: from node_modules here.

    Raises: UsageError where nothing was named and nothing is here; InputError for a folder without them;
    UnavailableError where npm is missing or fails.
    """
    if asked == FROM_NPM:
        return _from_npm(progress)
    if asked is None and not FOLDER_OF_NPM.is_dir():
        raise UsageError(f"{PACKAGE} is needed, which runs graphs in browsers", found="no --runtime", fix=HOW)
    return _from_folder(FOLDER_OF_NPM if asked is None else Path(asked))


def _from_folder(folder: Path) -> RuntimeFiles:
    if not folder.is_dir():
        raise InputError(f"there is no folder '{folder}' with {PACKAGE}", fix=HOW)
    missing = [name for name in NAMES if not (folder / name).is_file()]
    if missing:
        raise InputError(f"folder '{folder}' lacks files of {PACKAGE}", found=f"no {', '.join(missing)}", fix=HOW)
    return _checked(lambda name: read_file(folder / name, FILE_CAP_BYTES, f"'{folder / name}'"), f"folder '{folder}'")


def _from_npm(progress: Progress) -> RuntimeFiles:
    """Have npm download the release that is known, and check the archive."""
    npm = shutil.which(FROM_NPM)
    if npm is None:
        raise UnavailableError("npm is not here", fix=HOW.partition(" Or ")[0])
    progress(f"Asking npm for {PACKAGE} {VERSION}")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--silent"]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as cause:
            raise UnavailableError("npm does not answer", found=cause, fix=HOW) from cause
        packed = list(Path(folder).glob("*.tgz"))
        if done.returncode or len(packed) != 1:
            raise UnavailableError(f"npm did not bring {PACKAGE}", found=done.stderr or "no archive", fix=HOW)
        return unpacked(packed[0].read_bytes())


def unpacked(archive: bytes) -> RuntimeFiles:
    """Take the files out of the archive of a release.

    Raises: InputError for any other archive.
    """
    found = base64.b64encode(hashlib.sha512(archive).digest()).decode()
    if found != SHA512:
        raise InputError(f"this is not the archive of {PACKAGE} {VERSION}", found=f"sha512 {found}", expected=SHA512)
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        data = {name: _member(files, f"package/dist/{name}") for name in NAMES}
    return _checked(data.__getitem__, "the archive")


def _member(files: tarfile.TarFile, path: str) -> bytes:
    file = files.extractfile(path)
    assert file is not None  # the hash is that of an archive that has it
    return file.read()


def _checked(read: Callable[[str], bytes], where: str) -> RuntimeFiles:
    """Read the files; their scripts have to be of one version."""
    files = {name: read(name) for name in NAMES}
    stated = {name: STATED.search(files[name][:HEAD_BYTES]) for name in (build["main"] for build in BUILDS.values())}
    versions = {name: match[1].decode() if match else "no version" for name, match in stated.items()}
    if len(set(versions.values())) != 1 or None in stated.values():
        raise InputError(f"{where} has scripts of several versions of {PACKAGE}", found=versions, fix=HOW)
    (version,) = set(versions.values())
    if version != VERSION:
        doubt(f"{PACKAGE} {version} is not the release that samx's page is tested with, {VERSION}")
    return RuntimeFiles(version, files, BUILDS)
