"""Turn the exported graph into the one file that the toy opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from samx.artifacts.commit import write_file
from samx.artifacts.manifest import Evidence, Lowered, Manifest, utc_now
from samx.progress import Progress

GRAPH_FILE, ENGINE_FILE, ENGINE_ROLE = "decoder.onnx", "decoder.toy", "toy_engine"
REPORT_FILE, REPORT_ROLE = "toy_lowering.json", "lowering_report"
MARK = b"toy engine\n"


def lower(directory: Path, manifest: Manifest, progress: Progress) -> Lowered:
    """Write the engine beside the graph."""
    progress("Building the toy")
    graph = (directory / GRAPH_FILE).read_bytes()
    write_file(directory / ENGINE_FILE, MARK + graph)
    write_file(directory / REPORT_FILE, json.dumps({"loudness": manifest.options["loudness"]}).encode())
    evidence = Evidence("lowered", REPORT_FILE, True, "toy 1", "toybox", utc_now())
    return Lowered({ENGINE_FILE: ENGINE_ROLE, REPORT_FILE: REPORT_ROLE}, evidence, {"toy": "1"})


def describe(path: Path) -> dict[str, Any]:
    """Return what an engine says about itself."""
    return {"kind": "toy", "marked": path.read_bytes().startswith(MARK)}
