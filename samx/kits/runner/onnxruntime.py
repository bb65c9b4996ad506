"""Running the decoder in ONNX Runtime."""

from __future__ import annotations

from typing import Any

from samx.kits.runner.kit import RUNTIMES, UNAVAILABLE, Arrays, Json, Kit, KitError, library


class OnnxRuntime:
    """Run one graph, or an image graph whose outputs are kept and a prompt graph."""

    def __init__(self, kit: Kit, place: Json) -> None:
        ort, provider = library(place), place["provider"]
        if provider not in ort.get_available_providers():
            raise KitError(UNAVAILABLE, f"this onnxruntime has no {provider}. Install it: {place['install']}")
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if place["device"] != "cpu":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        graphs = [kit.read(name) for name in place["graphs"]]
        self.sessions = [ort.InferenceSession(graph, options, providers=[provider]) for graph in graphs]
        self.place, self.bytes, self.version = place, None, ort.__version__
        self.kept: Arrays = {}

    def set_image(self, image: Arrays) -> None:
        """Keep the image, or what the image graph makes of it."""
        self.kept = image
        for session in self.sessions[:-1]:
            self.kept = self._run(session, self.kept)

    def decode(self, prompts: Arrays) -> Arrays:
        """Run the prompts' graph."""
        return self._run(self.sessions[-1], {**self.kept, **prompts})

    def placement(self) -> tuple[Json, Json]:
        """Count what each execution provider took: nodes, or whole graphs where only one provider was let in."""
        details = {"onnxruntime": self.version, "counted": "graph nodes"}
        if not hasattr(self.sessions[0], "get_provider_graph_assignment_info"):  # before 1.24
            return {self.place["device"]: len(self.sessions)}, {**details, "counted": "graphs"}
        found: Json = {}
        parts = (part for session in self.sessions for part in session.get_provider_graph_assignment_info())
        for part in parts:
            where = self.place["device"] if part.ep_name == self.place["provider"] else part.ep_name
            found[where] = found.get(where, 0) + len(part.get_nodes())
        return found, details

    def _run(self, session: Any, feed: Arrays) -> Arrays:
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, feed), strict=True))


RUNTIMES["onnxruntime"] = OnnxRuntime
