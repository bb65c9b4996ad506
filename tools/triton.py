"""Serve an artifact with a real Triton server on loopback, and let eight users click: `make triton` runs this.

The server is the one inside nvidia-pytriton's wheel; it loads the repository that `samx bundle --for triton` wrote
as it is, with its own Python backend. Every answer is compared with the predictor's, alone in this process.
A repository of `--backend onnxruntime` needs Triton's backend, which that wheel has not: name the folder that has it
(--backends), or let a model of the Python backend run the same files under the same declarations (--stand-in); with
neither, model.py has to compute itself, and the server has to be told to go on (--server=--exit-on-error=false).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import samx
from samx.demo.scenes import generate_scene
from samx.processing.rasters import png_bytes

PICTURES, SIZE_PX = 2, (640, 480)
SECONDS_TO_START = 120
NEAR = 1e-4  # of a logit from the threshold, where two orders of summing may fall on both sides
LARGE_PX = (1500, 1100)  # of noise: a PNG above gRPC's default limit of 4 MiB
PLANTED = 7  # points of a prompt, or more, that the stand-in fails at
STAND_IN = f"""
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        home = f"{{args['model_repository']}}/{{args['model_version']}}"
        self.session = onnxruntime.InferenceSession(f"{{home}}/model.onnx")

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        given = {{tensor.name(): tensor.as_numpy() for tensor in request.inputs()}}
        if "point_labels" in given and given["point_labels"].shape[1] >= {PLANTED}:
            return triton.InferenceResponse([], triton.TritonError("planted"))
        names = list(request.requested_output_names())
        found = self.session.run(names, given)
        return triton.InferenceResponse([triton.Tensor(*pair) for pair in zip(names, found)])
"""


@dataclass
class Tally:
    """Count what users saw."""

    wrong: int = 0
    near: int = 0  # pixels that differ, with logits at the threshold
    waits_ms: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def library(folder: Path) -> Path:
    """Lay out pytriton's files as a Triton installation has them: the Python backend with its stub."""
    found = importlib.util.find_spec("pytriton")
    if found is None or found.origin is None:
        sys.exit("tools.triton needs nvidia-pytriton; 'make triton' brings it")
    home = Path(found.origin).parent / "tritonserver"
    backend = folder / "backends" / "python"
    shutil.copytree(home / "backends" / "python", backend)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy2(home / "python_backend_stubs" / version / "triton_python_backend_stub", backend)
    return home / "bin" / "tritonserver"


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def copied(models: Path, folder: Path, stand_in: bool) -> Path:
    """Copy a repository, because Python writes into it what it compiled, which 'samx bundle --force' would refuse then.

    The stand-in takes the place of Triton's own backend in the models that are for that, declared as they are.
    """
    copy = Path(shutil.copytree(models, folder / "models"))
    for config in copy.glob("samx_*/config.pbtxt") if stand_in else ():
        lines = config.read_text().replace('backend: "onnxruntime"', 'backend: "python"').splitlines(keepends=True)
        config.write_text("".join(line for line in lines if not line.startswith("default_model_filename")))
        (config.parent / "1" / "model.py").write_text(STAND_IN)
    return copy


@contextmanager
def serving(models: Path, folder: Path, log: Path, backends: Path | None, more: list[str]) -> Iterator[str]:
    """Run the server; yield its address for gRPC."""
    program = library(folder)
    if backends is not None:
        shutil.copytree(backends / "onnxruntime", folder / "backends" / "onnxruntime")
    http, grpc = free_ports(2)
    options = [
        f"--model-repository={models}", f"--backend-directory={folder / 'backends'}", "--allow-metrics=false",
        "--http-address=127.0.0.1", f"--http-port={http}", "--grpc-address=127.0.0.1", f"--grpc-port={grpc}",
        *more,
    ]  # fmt: skip
    packages = program.parents[3]
    libraries = f"{packages / 'nvidia_pytriton.libs'}:{sys.base_prefix}/lib"
    environment = {
        **os.environ, "LD_LIBRARY_PATH": libraries, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(packages),
    }  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen([program, *options], stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        wait_for(process, f"127.0.0.1:{grpc}", log)
        yield f"127.0.0.1:{grpc}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def wait_for(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Wait until the model is ready."""
    import tritonclient.grpc as triton

    deadline = time.monotonic() + SECONDS_TO_START
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if triton.InferenceServerClient(address).is_model_ready("samx"):
                return
        except triton.InferenceServerException:
            pass
        time.sleep(0.2)
    sys.exit(f"the server does not serve the model; the end of its log:\n{log.read_text()[-3000:]}")


def clicks(user: int, count: int) -> list[tuple[int, Any]]:
    """Draw a user's clicks: a picture, and 1 to 4 prompts of one or two points on it."""
    draw = np.random.default_rng(user)
    found = []
    for _ in range(count):
        shape = int(draw.integers(1, 5)), int(draw.integers(1, 3)), 2
        found.append((int(draw.integers(PICTURES)), (draw.random(shape) * SIZE_PX).astype(np.float32)))
    return found


def truth(artifact: Path, pictures: list[bytes], asked: list[list[tuple[int, Any]]], folder: Path) -> dict[Any, Any]:
    """Answer every prompt alone: logits at the picture's size."""
    found: dict[Any, Any] = {}
    predictor = samx.open(artifact)
    for place, data in enumerate(pictures):
        (folder / "picture.png").write_bytes(data)
        predictor.set_image(folder / "picture.png")
        for user, number, points in (
            (u, n, p) for u, row in enumerate(asked) for n, (at, p) in enumerate(row) if at == place
        ):
            labels = np.ones(len(points[0]), np.int32)
            found[user, number] = [predictor.predict(one, labels, return_logits=True)[0] for one in points]
    return found


def user(
    client: Any, address: str, pictures: list[bytes], row: list[tuple[int, Any]], right: list[Any], tally: Tally
) -> None:
    """Click one after the other, each as soon as the last was answered."""
    import tritonclient.grpc as triton

    connection = triton.InferenceServerClient(address)
    for (place, points), logits in zip(row, right, strict=True):
        start = time.perf_counter()
        try:
            labels = np.ones(points.shape[:2], np.int32)
            _, masks = client.ask(connection, pictures[place], points=points, labels=labels)
        except triton.InferenceServerException as error:
            tally.errors.append(str(error))
            continue
        tally.waits_ms.append(1000 * (time.perf_counter() - start))
        compare(masks, logits, tally)


def compare(masks: list[list[Any]], logits: list[Any], tally: Tally) -> None:
    """Count wrong masks, and pixels at the threshold that fell on its other side."""
    for found, right in zip(masks, logits, strict=True):
        if len(found) != len(right):
            tally.wrong += 1
        for mask, values in zip(found, right, strict=False):
            differ = mask != (values > 0)
            far = np.count_nonzero(differ & (np.abs(values) > NEAR))
            tally.near += int(np.count_nonzero(differ))
            tally.wrong += bool(far)


def refusals(client: Any, address: str, picture: bytes, stand_in: bool) -> dict[str, str]:
    """Send what the server has to refuse, and return its words."""
    import tritonclient.grpc as triton

    connection = triton.InferenceServerClient(address)
    key = np.array([[hashlib.sha256(picture).hexdigest().encode()]], object)
    point, label = np.zeros((1, 1, 2), np.float32), np.ones((1, 1), np.int32)
    junk = b"no picture"
    sent = {
        "IMAGE_NOT_KEPT": {"image_key": np.array([[b"?"]], object), "points": point, "labels": label},
        "image_key is not the picture's": {
            "image_key": np.array([[b"?"]], object), "picture": np.array([[picture]], object), "points": point,
            "labels": label,
        },
        "no picture that samx reads": {
            "image_key": np.array([[hashlib.sha256(junk).hexdigest().encode()]], object),
            "picture": np.array([[junk]], object), "points": point, "labels": label,
        },
        "outside": {"image_key": key, "points": point + 5000, "labels": label},
        "a prompt says nothing": {"image_key": key},
        "Expected [-1,-1,2]": {"image_key": key, "points": np.zeros((1, 1, 3), np.float32), "labels": label},
        "data-type": {"image_key": key, "points": np.zeros((1, 1, 2), np.int32), "labels": label},
    }  # fmt: skip
    if stand_in:
        many = {"points": np.zeros((1, PLANTED, 2), np.float32), "labels": np.ones((1, PLANTED), np.int32)}
        sent["'samx_prompt' gives no answer: found planted"] = {"image_key": key, **many}
    found = {}
    for words, given in sent.items():
        try:
            client._infer(connection, given)
            found[words] = "NO ERROR"
        except triton.InferenceServerException as error:
            found[words] = str(error)
    return found


def joined(address: str) -> dict[int, int]:
    """Return how many calls of the model had how many prompts."""
    import tritonclient.grpc as triton

    statistic = triton.InferenceServerClient(address).get_inference_statistics("samx", as_json=True)
    rows = statistic["model_stats"][0].get("batch_stats", [])
    return {int(row["batch_size"]): int(row["compute_infer"]["count"]) for row in rows}


def asked_over_the_server(models: Path, address: str) -> dict[str, int]:
    """Return how often model.py asked each of the server's other models; one that is not loaded was never asked."""
    import tritonclient.grpc as triton

    server, found = triton.InferenceServerClient(address), {}
    for name in sorted(path.parent.name for path in models.glob("samx_*/config.pbtxt")):
        ready = server.is_model_ready(name)
        rows = server.get_inference_statistics(name, as_json=True)["model_stats"] if ready else []
        found[name] = sum(int(row.get("inference_count", 0)) for row in rows)
    return found


def main() -> None:
    """Run everything and print what was found; exit code 1 for a wrong mask, an error, or a refusal that is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("models", type=Path, help="what samx bundle --for triton wrote of it")
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--clicks", type=int, default=8, help="of each user")
    parser.add_argument("--backends", type=Path, help="folder with Triton's own onnxruntime backend")
    parser.add_argument("--stand-in", action="store_true", help="let the Python backend run that backend's models")
    parser.add_argument("--server", action="append", default=[], help="option of tritonserver: --server=--NAME=VALUE")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = [png_bytes(generate_scene(seed, SIZE_PX).image) for seed in range(4, 4 + PICTURES)]
        asked = [clicks(one, given.clicks) for one in range(given.users)]
        right = truth(given.artifact, pictures, asked, folder)
        models = copied(given.models, folder, given.stand_in)
        log = given.output.with_suffix(".log")
        with serving(models, folder, log, given.backends, given.server) as address:
            report = measured(models, address, pictures, asked, right, given.stand_in)
    computed = list(report["asked_over_the_server"].values())
    over_the_server = bool(computed) and all(computed)
    report["computed_elsewhere"] = not over_the_server if given.stand_in or given.backends else any(computed)
    given.output.write_text(json.dumps(report, indent=1) + "\n")
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    bad = report["wrong_masks"] or report["errors"] or report["refusals_missing"] or not report["large_picture_taken"]
    bad = bad or report["computed_elsewhere"]
    sys.exit(int(bool(bad)))


def measured(
    models: Path, address: str, pictures: list[bytes], asked: Any, right: dict[Any, Any], stand_in: bool
) -> dict[str, Any]:
    """Let all users click at the same time."""
    import tritonclient.grpc as triton

    spec = importlib.util.spec_from_file_location("client", models / "client.py")
    assert spec is not None
    assert spec.loader is not None
    client = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(client)
    tallies = [Tally() for _ in asked]
    threads = [
        threading.Thread(
            target=user, args=(client, address, pictures, row, [right[u, n] for n in range(len(row))], tally)
        )
        for u, (row, tally) in enumerate(zip(asked, tallies, strict=True))
    ]  # fmt: skip
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - start
    sizes = joined(address)
    words = refusals(client, address, pictures[0], stand_in)
    noise = png_bytes(np.random.default_rng(0).integers(0, 256, (*LARGE_PX[::-1], 3), dtype=np.uint8))
    point, label = np.full((1, 1, 2), 100, np.float32), np.ones((1, 1), np.int32)
    scores, _ = client.ask(triton.InferenceServerClient(address), noise, points=point, labels=label)
    waits = sorted(wait for tally in tallies for wait in tally.waits_ms)
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs", "users": len(asked),
        "clicks": sum(map(len, asked)), "prompts": sum(len(points) for row in asked for _, points in row),
        "wall_s": round(wall, 2), "median_ms": round(statistics.median(waits), 1) if waits else None,
        "p95_ms": round(waits[int(0.95 * (len(waits) - 1))], 1) if waits else None,
        "calls_by_prompts_joined": sizes, "asked_over_the_server": asked_over_the_server(models, address),
        "wrong_masks": sum(tally.wrong for tally in tallies),
        "pixels_at_threshold": sum(tally.near for tally in tallies),
        "errors": [error for tally in tallies for error in tally.errors], "refusals": words,
        "refusals_missing": [expected for expected, found in words.items() if expected not in found],
        "large_picture_bytes": len(noise), "large_picture_taken": bool(np.isfinite(scores).all()),
    }  # fmt: skip


if __name__ == "__main__":
    main()
