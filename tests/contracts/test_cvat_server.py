"""CVAT's server half answers with the embedding that the browser reads, in the form in which it reads it."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import yaml
from contract_files import Array
from PIL import Image

from samx.contracts.encoder import adapted_encoder, write_companions
from samx.contracts.table import CLIENT_FILE_ROLE, CLIENT_FOLDER, CONTRACTS
from samx.demo import demo_checkpoint
from samx.demo.model import load_demo
from samx.exporters.onnx import write_onnx
from samx.models.encoders.picture import picture_graph
from samx.processing.frames import Frame
from samx.processing.images import read_image, to_levels

CVAT, PHOTO = CONTRACTS["cvat"], Path(__file__).parents[2] / "samx" / "validators" / "photos" / "cat.jpg"
# What Nuclio gives a function; requests on standard input, answers on standard output.
NUCLIO = """
import json, sys, types
import main
made = []
class Response:
    def __init__(self, body, headers, content_type, status_code):
        made.append({"body": json.loads(body), "type": content_type, "status": status_code})
context = types.SimpleNamespace(user_data=types.SimpleNamespace(), Response=Response)
main.init_context(context)
for body in json.load(sys.stdin):
    main.handler(context, types.SimpleNamespace(body=body))
json.dump(made, sys.stdout)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the demo model's encoder, and in client/ what the contract makes of it."""
    made = tmp_path_factory.mktemp("cvat")
    model = load_demo("sam1", demo_checkpoint("sam1"))
    write_onnx([picture_graph(model.encoder, model.spec)], made, simplify=False)
    (made / CLIENT_FOLDER).mkdir()
    encoder = adapted_encoder(
        onnx.load(made / "encoder.onnx"), CVAT, model.spec, np.zeros((1, 256, 64, 64), np.float32)
    )
    onnx.save(encoder, made / CLIENT_FOLDER / "encoder.onnx")
    names = [f"client/{name}" for name in ("function.yaml", "main.py", "model_handler.py")]
    assert write_companions(CVAT, model.spec, "demo", made) == dict.fromkeys(names, CLIENT_FILE_ROLE)
    return made


def answers(folder: Path, requests: list[Any]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", NUCLIO], cwd=folder / CLIENT_FOLDER, input=json.dumps(requests), capture_output=True,
        text=True, check=False, env={"PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def as_the_browser_reads(blob: str) -> Array:
    return np.frombuffer(base64.b64decode(blob), np.float32).reshape(1, 256, 64, 64)


def own(folder: Path, path: Path) -> Array:
    picture = read_image(path)
    frame = Frame.of(load_demo("sam1", demo_checkpoint("sam1")).spec, picture.shape[1], picture.shape[0])
    valid = np.array([[frame.valid_height_px, frame.valid_width_px]], np.int32)
    session = ort.InferenceSession(str(folder / "encoder.onnx"))
    found: Array = session.run(None, {"picture": to_levels(picture, frame)[None], "valid": valid})[0]
    return found


def test_the_embedding_is_that_of_samx(folder: Path, tmp_path: Path) -> None:
    clear = tmp_path / "clear.png"
    with Image.open(PHOTO) as photo:
        photo.convert("RGBA").resize((90, 160)).save(clear)
    requests = [{"image": base64.b64encode(path.read_bytes()).decode()} for path in (PHOTO, clear)]
    for path, answer in zip((PHOTO, clear), answers(folder, requests), strict=True):
        assert (answer["status"], answer["type"], list(answer["body"])) == (200, "application/json", ["blob"])
        wanted = own(folder, path)
        np.testing.assert_allclose(
            as_the_browser_reads(answer["body"]["blob"]), wanted, atol=1e-5 * np.abs(wanted).max()
        )


def test_the_pictures_differ(folder: Path) -> None:
    """Show that the comparison above can fail."""
    with Image.open(PHOTO) as photo:
        turned = folder / "turned.png"
        photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(turned)
    assert not np.allclose(own(folder, PHOTO), own(folder, turned), atol=1e-2)


def test_a_request_without_a_picture_is_an_answer(folder: Path) -> None:
    thin = folder / "thin.png"
    Image.new("RGB", (3000, 1)).save(thin)
    requests = [{}, {"image": "?"}, {"image": base64.b64encode(b"no picture").decode()}, "text",
                {"image": base64.b64encode(thin.read_bytes()).decode()}]  # fmt: skip
    found = answers(folder, requests)
    assert [answer["status"] for answer in found] == [400] * len(requests)
    assert all("no picture" in answer["body"]["error"] for answer in found)


def test_the_function_is_the_one_that_the_plugin_asks(folder: Path) -> None:
    function = yaml.safe_load((folder / CLIENT_FOLDER / "function.yaml").read_text())
    assert function["metadata"]["name"] == "pth-facebookresearch-sam-vit-h"
    assert function["metadata"]["annotations"] == {
        "name": "demo (samx)", "version": 2, "type": "interactor", "spec": None, "min_pos_points": 0,
        "min_neg_points": 0, "startswith_box_optional": True,
        "help_message": "At least one point on the object, any number off it, or a box",
    }  # fmt: skip
    assert function["spec"]["handler"] == "main:handler"
    assert {trigger["kind"] for trigger in function["spec"]["triggers"].values()} == {"http"}
