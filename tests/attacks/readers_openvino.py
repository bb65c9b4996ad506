"""OpenVINO's reader, with a graph that is right."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from mutations import damaged
from readers import Reader, on_disk


def openvino_graph() -> bytes:
    """Return a graph as OpenVINO writes it: one addition."""
    import openvino as ov

    value = ov.opset13.parameter([1, 2], np.float32, name="a")
    with tempfile.TemporaryDirectory() as made:
        path = Path(made, "graph.xml")
        ov.save_model(ov.Model([ov.opset13.add(value, np.float32(1))], [value], "toy"), str(path))
        return path.read_bytes()


def graph(path: Path) -> object:
    """Look into an OpenVINO graph."""
    from samx.formats.openvino import describe

    path.with_suffix(".bin").write_bytes(bytes(64))
    return describe(path)


READERS: Mapping[str, Reader] = {
    "OpenVINO": Reader(lambda: damaged([openvino_graph()]), on_disk("g.xml", graph)),
}
