"""Write a static site that segments pictures in the browser."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from samx.artifacts.folder import write_folder
from samx.artifacts.store import Artifact
from samx.errors import ImageError
from samx.files import MIB, read_file
from samx.progress import Progress, silent
from samx.web.folder import check_folder
from samx.web.onnxruntime_web import runtime_files
from samx.web.site import EXAMPLE, MODEL, MOST_PX, RUNTIME, graph_names, site_files

EXAMPLE_CAP_BYTES = 16 * MIB
DEMO = "demo model"  # how a manifest's kind of checkpoint ends
SHOWN = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM")  # how files begin that browsers show
EXAMPLE_SEED, EXAMPLE_SIZE_PX = 4, (768, 576)


def web(
    path: Path, output: Path, *, runtime: str | None = None, example: Path | None = None, overwrite: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:  # fmt: skip
    """Write a site of an artifact; return what it holds.

    runtime: a folder with onnxruntime-web's files, or 'npm'. example: a picture that the page offers; None: of the demo
    model a scene that it knows, else none.
    Raises: UsageError, ArtifactError for an artifact that no browser runs; InputError for what is named and is none;
    UnavailableError; MissingExtraError; WriteError.
    """
    check_folder(output, overwrite)
    artifact = Artifact.open(path)
    graph_names(artifact)
    offered = scene(artifact) if example is None else _offered(example)
    library = runtime_files(runtime, progress)
    progress("Looking at the graphs")
    files = site_files(artifact, library, offered)
    write_folder(output, files.items(), partial(check_folder, output, overwrite))
    sizes = {
        "model": _size(files, f"{MODEL}/"), "runtime": _size(files, f"{RUNTIME}/"), "all": _size(files, ""),
    }  # fmt: skip
    sizes["page"] = sizes["all"] - sizes["model"] - sizes["runtime"]
    shown = ", ".join(f"{name} {sizes[name] / MIB:.1f} MiB" for name in ("page", "model", "runtime"))
    serve = f"python3 -m http.server --bind 127.0.0.1 --directory {output}"
    return {
        "path": str(output), "files": sorted(files), "bytes": sizes, "onnxruntime_web": library.version,
        "example": EXAMPLE in files, "summary": f"wrote {output} ({shown}); any file server takes it: {serve}",
    }  # fmt: skip


def _offered(example: Path) -> bytes:
    """Read a picture that a browser shows, and that the page takes.

    Raises: InputError; ImageError.
    """
    from samx.processing.images import read_image

    data = read_file(example, EXAMPLE_CAP_BYTES, f"picture '{example}'")
    if not data.startswith(SHOWN):
        expected, fix = "PNG, JPEG, WebP, GIF or BMP", "Convert it first."
        raise ImageError(f"picture '{example}' is none that browsers show", expected=expected, fix=fix)
    read_image(example, most_px=MOST_PX)
    return data


def _size(files: dict[str, bytes], folder: str) -> int:
    return sum(len(data) for name, data in files.items() if name.startswith(folder))


def scene(artifact: Artifact) -> bytes | None:
    """Draw a picture that the demo model knows; None for any other model."""
    from samx.demo.scenes import generate_scene
    from samx.processing.rasters import png_bytes

    if not artifact.manifest.checkpoint.kind.endswith(DEMO):
        return None
    return png_bytes(generate_scene(EXAMPLE_SEED, EXAMPLE_SIZE_PX).image)
