"""`samx serve`: loopback alone, questions of its own page alone, limits, and the Predictor's masks."""

from __future__ import annotations

import http.client
import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from web_browser import serving

import samx
from samx.commands.serve import open_server
from samx.demo.scenes import generate_scene
from samx.processing.frames import Frame
from samx.processing.postprocess import picture_mask
from samx.processing.rasters import png_bytes
from samx.web.answers import PICTURE_CAP_BYTES
from samx.web.server import LOOPBACK, Server

PICTURE = generate_scene(4, (320, 200)).image
Answer = tuple[int, bytes]


@pytest.fixture(scope="module")
def server(demo_artifact: Path) -> Iterator[Server]:
    made = open_server(demo_artifact, 0, threads=1)
    with serving(made):
        yield made


def asked(server: Server, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
    connection = http.client.HTTPConnection(LOOPBACK, server.server_port, timeout=60)
    own: Mapping[str, str] = {"Origin": server.address.rstrip("/")} if method == "POST" else {}
    connection.request(method, path, body, {**own, **headers})
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def question(server: Server, **given: Any) -> Answer:
    whole = {"picture": "", "points": [], "labels": [], "box": None, **given}
    return asked(server, "POST", "/masks", json.dumps(whole).encode())


def test_the_masks_are_the_predictor_s(server: Server, demo_artifact: Path) -> None:
    status, data = asked(server, "POST", "/picture", png_bytes(PICTURE))
    assert status == 200
    told = json.loads(data)
    assert (told["width"], told["height"]) == (320, 200)
    status, data = question(server, picture=told["picture"], points=[[180, 80]], labels=[1])
    assert status == 200
    values = np.frombuffer(data, "<f4")
    with samx.open(demo_artifact, threads=1) as predictor:
        predictor.set_image(PICTURE)
        masks, scores, _ = predictor.predict([(180, 80)], [1])
        frame = Frame.of(predictor.spec, 320, 200)
    np.testing.assert_allclose(values[:3], scores, atol=1e-5)
    found = picture_mask(values[3:].reshape(3, 256, 256)[0], frame)
    assert np.count_nonzero(found != masks[0]) <= 2


def test_it_listens_on_loopback_alone(server: Server) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1", "localhost:1", "example.org:{port}"])
def test_another_name_is_refused(server: Server, host: str) -> None:
    assert asked(server, "GET", "/", Host=host.format(port=server.server_port))[0] == 403


@pytest.mark.parametrize("origin", ["http://example.org", "null", "http://127.0.0.1:1", ""])
def test_a_question_of_another_page_is_refused(server: Server, origin: str) -> None:
    assert asked(server, "POST", "/picture", png_bytes(PICTURE), Origin=origin)[0] == 403


def test_too_much_is_refused_before_it_is_read(server: Server) -> None:
    length = str(PICTURE_CAP_BYTES + 1)
    assert asked(server, "POST", "/picture", b"", **{"Content-Length": length})[0] == 413
    assert asked(server, "POST", "/masks", b"x" * 70_000)[0] == 413


def test_what_cannot_be_meant_is_a_sentence(server: Server) -> None:
    status, words = asked(server, "POST", "/picture", b"no picture")
    assert status == 422
    assert b"'picture' is no picture" in words
    assert b"/tmp" not in words
    key = json.loads(asked(server, "POST", "/picture", png_bytes(PICTURE))[1])["picture"]
    assert question(server, picture=key)[0] == 422  # says nothing
    assert question(server, picture=key, points=[[1, 2, 3]], labels=[1])[0] == 422
    assert question(server, picture=key, points=[[9999, 2]], labels=[1])[0] == 422
    assert question(server, picture=key, points="x")[0] == 400
    assert question(server, picture="other", points=[[1, 2]], labels=[1])[0] == 422


def test_files_of_the_page_alone_are_handed_out(server: Server) -> None:
    status, data = asked(server, "GET", "/")
    assert status == 200
    assert b'data-mode="served"' in data
    for path in ("/manifest.json", "/../pyproject.toml", "/picture", "/%2e%2e/x"):
        assert asked(server, "GET", path)[0] == 404
    assert asked(server, "POST", "/other", b"{}")[0] == 404


def test_four_pictures_are_kept(server: Server) -> None:
    keys = [json.loads(asked(server, "POST", "/picture", png_bytes(PICTURE))[1])["picture"] for _ in range(5)]
    statuses = [question(server, picture=key, points=[[1, 2]], labels=[1])[0] for key in keys]
    assert statuses == [422, 200, 200, 200, 200]


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def test_a_picture_that_is_too_large_is_refused_by_its_header(server: Server) -> None:
    """Its pixels are none: decoding them would tell of damage."""
    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"no pixels") + chunk(b"IEND", b"")
    status, words = asked(server, "POST", "/picture", data)
    assert status == 422
    assert "too large: found 10000 x 10000 px, expected at most 64 megapixels" in words.decode()
