"""The page in Chromium: a click, a box, undo, the masks, downloads and refusals, with the model in Python.

With onnxruntime-web's files ('make toolchains' brings them) the same is asked of the static site.
"""

from __future__ import annotations

import base64
import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from web_browser import Minding, Quiet, file_server, phase, real_runtime, serving, started, until, words

import samx
from samx.commands.export import ExportRequest, export
from samx.commands.serve import open_server
from samx.commands.web import web
from samx.demo.scenes import generate_scene

pytestmark = pytest.mark.browser

VECTORS = Path(__file__).parents[1] / "data" / "resize-vectors.json"
SIZE_PX = (640, 420)
LEAST_IOU = 0.999
# Hand a file to the page as the file chooser does.
GIVE = """
const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));
const carried = new DataTransfer(), field = document.getElementById("file");
carried.items.add(new File([bytes], arguments[1]));
field.files = carried.files;
field.dispatchEvent(new Event("change"));
"""
STATE = """
const done = arguments[0];
import(new URL("app.js", location.href)).then(({ state: { prompts, chosen, past, masks } }) =>
  done({ prompts, chosen, past: past.length, scores: masks.map(({ score }) => score) }));
"""
SMALL = """
return [...document.querySelectorAll("button")].filter((e) => e.checkVisibility() && e.offsetHeight < 44).length
"""
UNNAMED = """
return [...document.querySelectorAll("button, canvas[tabindex], input[type=radio]")]
  .filter((e) => !(e.ariaLabel || e.textContent.trim() || e.closest("label")?.textContent.trim())).length
"""
# Ask the page for the PNG that it would download.
SAVED = """
const done = arguments[0], make = URL.createObjectURL, click = HTMLAnchorElement.prototype.click;
URL.createObjectURL = (blob) => { const reader = new FileReader();
  reader.onload = () => { URL.createObjectURL = make; HTMLAnchorElement.prototype.click = click;
    done(reader.result.split(",")[1]); };
  reader.readAsDataURL(blob); return make(blob); };
HTMLAnchorElement.prototype.click = () => {};
document.getElementById("save-mask").dispatchEvent(new Event("click"));
"""
RESIZE = """
const [given, floats, done] = [arguments[0], arguments[1], arguments[2]];
import(new URL("picture.js", location.href)).then(({ resized }) => {
  const [width, height] = given.from, drawn = new Uint8ClampedArray(width * height * 4);
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) for (let c = 0; c < 3; c++)
    drawn[4 * (y * width + x) + c] = (37 * x + 59 * y + 83 * c + 7 * x * y) % 256;
  const read = (top, rows) => drawn.subarray(4 * top * width, 4 * (top + rows) * width);
  done(Array.from(resized(read, given.from, given.to, floats)));
});
"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "split"
    export(ExportRequest(out=folder, options={"split": True}))
    return folder


@pytest.fixture(scope="module")
def predictor(artifact: Path) -> Any:
    found = samx.open(artifact)
    found.set_image(SCENE)
    return found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    running = started(tmp_path_factory.mktemp("profile"))
    yield running
    running.quit()


@pytest.fixture(scope="module", params=["served", "static"])
def address(request: pytest.FixtureRequest, artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "served":
        with serving(open_server(artifact, 0)) as found:
            yield found
        return
    folder = tmp_path_factory.mktemp("site") / "site"
    web(artifact, folder, runtime=str(real_runtime()))
    with serving(file_server(folder)) as found:
        yield found


SCENE = generate_scene(4, SIZE_PX).image


def png(picture: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture
def page(browser: Any, address: str) -> Any:
    """A page with the scene on it."""
    return given(browser, address)


def given(browser: Any, address: str) -> Any:
    """Open a page and hand it the scene."""
    browser.get(address)
    phase(browser, "empty")
    browser.execute_script(GIVE, png(SCENE), "scene.png")
    phase(browser, "ready")
    return browser


def state(page: Any) -> dict[str, Any]:
    found: dict[str, Any] = page.execute_async_script(STATE)
    return found


def answered(page: Any, seconds: float = 60) -> dict[str, Any]:
    """Wait until the last question is answered, and return the state."""
    end = time.monotonic() + seconds
    while not (found := state(page))["scores"]:
        assert time.monotonic() < end, words(page)
    return found


def click(page: Any, x: float, y: float) -> None:
    """Click at shares of the picture, and wait for the masks."""
    pointer(page, "pressed", x, y)
    pointer(page, "released", x, y)
    until(page, "!document.getElementById('masks').hidden")


def pointer(page: Any, kind: str, x: float, y: float) -> None:
    left, top, width, height = page.execute_script(
        "const r = document.getElementById('canvas').getBoundingClientRect(); return [r.left, r.top, r.width, r.height]"
    )
    names = {"pressed": "mousePressed", "released": "mouseReleased", "moved": "mouseMoved"}
    event = {"type": names[kind], "x": left + x * width, "y": top + y * height, "button": "left", "clickCount": 1}
    page.execute_cdp_cmd("Input.dispatchMouseEvent", {**event, "buttons": 1})


def saved(page: Any) -> NDArray[np.bool_]:
    data = page.execute_async_script(SAVED)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L")) > 127


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float(np.count_nonzero(a & b) / np.count_nonzero(a | b))


def test_a_click_gives_the_predictor_s_mask(page: Any, predictor: Any) -> None:
    click(page, 0.6, 0.4)
    told = state(page)
    [point] = told["prompts"]["points"]
    assert (point["x"], point["y"]) == pytest.approx((0.6 * SIZE_PX[0], 0.4 * SIZE_PX[1]), abs=1)
    masks, scores, _ = predictor.predict([(point["x"], point["y"])], [1])
    assert told["scores"] == pytest.approx(scores.tolist(), abs=1e-3)
    assert told["chosen"] == int(scores.argmax())
    found = saved(page)
    assert found.shape == SIZE_PX[::-1]
    assert found.any()
    assert iou(found, masks[scores.argmax()]) >= LEAST_IOU


def test_sam_2_in_the_browser_gives_the_predictor_s_mask(browser: Any, tmp_path: Path) -> None:
    export(ExportRequest(tmp_path / "sam2", family="sam2", image_size=512, options={"split": True}))
    web(tmp_path / "sam2", tmp_path / "site", runtime=str(real_runtime()))
    with serving(file_server(tmp_path / "site")) as address, samx.open(tmp_path / "sam2") as ours:
        ours.set_image(SCENE)
        given(browser, address)
        click(browser, 0.6, 0.4)
        told = state(browser)
        [point] = told["prompts"]["points"]
        masks, scores, _ = ours.predict([(point["x"], point["y"])], [1])
        assert told["scores"] == pytest.approx(scores.tolist(), abs=1e-3)
        wanted = masks[told["chosen"]] > 0
        assert wanted.any()
        assert iou(saved(browser), wanted) >= LEAST_IOU


@pytest.mark.parametrize("handler", [Quiet, Minding])
def test_there_are_threads_where_the_host_sends_the_headers(
    browser: Any, artifact: Path, predictor: Any, tmp_path: Path, handler: type[Quiet]
) -> None:
    threads = min(os.cpu_count() or 1, 8) if handler is Minding else 1
    web(artifact, tmp_path / "site", runtime=str(real_runtime()))
    with serving(file_server(tmp_path / "site", handler)) as address:
        given(browser, f"{address}?device=wasm")
        shown = browser.execute_script("return document.getElementById('where').textContent")
        assert shown == f"this processor, {f'{threads} threads' if threads > 1 else 'one thread'}"
        click(browser, 0.6, 0.4)
        masks, scores, _ = predictor.predict([(0.6 * SIZE_PX[0], 0.4 * SIZE_PX[1])], [1])
        assert iou(saved(browser), masks[scores.argmax()]) >= LEAST_IOU


def test_another_mask_is_chosen_and_a_point_is_taken_back(page: Any, predictor: Any) -> None:
    click(page, 0.6, 0.4)
    one = state(page)
    other = (one["chosen"] + 1) % 3
    page.execute_script(f"document.querySelectorAll('#choices input')[{other}].click()")
    [point] = one["prompts"]["points"]
    masks = predictor.predict([(point["x"], point["y"])], [1])[0]
    assert iou(saved(page), masks[other]) >= LEAST_IOU
    click(page, 0.3, 0.7)
    assert len(state(page)["prompts"]["points"]) == 2
    page.execute_script("document.getElementById('undo').click()")
    until(page, "!document.getElementById('save-mask').disabled")
    assert state(page)["prompts"] == one["prompts"]
    page.execute_script("document.getElementById('undo').click()")
    until(page, "document.getElementById('masks').hidden")
    assert state(page)["past"] == 0


@pytest.mark.parametrize(("family", "size"), [("sam1", None), ("sam2", 512)])
def test_a_mask_that_is_shown_goes_with_the_next_point(
    browser: Any, tmp_path: Path, family: str, size: int | None
) -> None:
    export(ExportRequest(tmp_path / "model", family=family, image_size=size, mask_input=True))
    web(tmp_path / "model", tmp_path / "site", runtime=str(real_runtime()))
    with serving(file_server(tmp_path / "site")) as address, samx.open(tmp_path / "model") as ours:
        ours.set_image(SCENE)
        given(browser, address)
        click(browser, 0.6, 0.4)
        one = answered(browser)
        other = (one["chosen"] + 1) % 3
        browser.execute_script(f"document.querySelectorAll('#choices input')[{other}].click()")
        click(browser, 0.3, 0.7)
        told = answered(browser)
        points = [(point["x"], point["y"]) for point in told["prompts"]["points"]]
        logits = ours.predict(points[:1], [1])[2]
        masks, scores, _ = ours.predict(points, [1, 1], mask_input=logits[other][None])
        assert told["scores"] == pytest.approx(scores.tolist(), abs=1e-3)
        assert iou(saved(browser), masks[scores.argmax()] > 0) >= LEAST_IOU
        assert told["scores"] != pytest.approx(ours.predict(points, [1, 1])[1].tolist(), abs=1e-3)  # without it
        assert told["scores"] != pytest.approx(
            ours.predict(points, [1, 1], mask_input=logits[one["chosen"]][None])[1].tolist(), abs=1e-3
        )
        browser.execute_script("document.getElementById('undo').click()")
        assert answered(browser)["scores"] == pytest.approx(one["scores"], abs=1e-6)


def test_a_box_is_drawn(page: Any, predictor: Any) -> None:
    page.execute_script("document.querySelector('input[value=box]').click()")
    for kind, at in (("pressed", (0.2, 0.2)), ("moved", (0.5, 0.5)), ("moved", (0.8, 0.9)), ("released", (0.8, 0.9))):
        pointer(page, kind, *at)
    until(page, "!document.getElementById('masks').hidden")
    told = state(page)
    box = told["prompts"]["box"]
    assert box == pytest.approx([0.2 * SIZE_PX[0], 0.2 * SIZE_PX[1], 0.8 * SIZE_PX[0], 0.9 * SIZE_PX[1]], abs=1.5)
    masks, scores, _ = predictor.predict(box=box)
    assert iou(saved(page), masks[scores.argmax()]) >= LEAST_IOU


def test_keys_do_what_the_pointer_does(page: Any, predictor: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    page.switch_to.active_element.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_UP, Keys.ENTER)
    until(page, "!document.getElementById('masks').hidden")
    [point] = state(page)["prompts"]["points"]
    assert (point["x"], point["y"]) == (SIZE_PX[0] / 2 + 6.4, SIZE_PX[1] / 2 - 6.4)
    assert "covers" in words(page)


BAD = {
    "nothing": (b"", "is empty"),
    "text": (b"no picture", "no picture that this browser reads"),
    "no pixels": (b"P6 0 0 255\n", "no picture that this browser reads"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_picture_is_a_sentence(page: Any, name: str) -> None:
    data, said = BAD[name]
    page.execute_script(GIVE, base64.b64encode(data).decode(), name)
    until(page, "document.getElementById('alert').textContent")
    assert said in words(page)
    click(page, 0.6, 0.4)  # and the picture before it is still there


def test_100_megapixels_are_a_sentence(page: Any) -> None:
    buffer = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(buffer, "PNG")
    page.execute_script(GIVE, base64.b64encode(buffer.getvalue()).decode(), "large.png")
    until(page, "document.getElementById('alert').textContent")
    assert "10000 x 10000 px are 100 megapixels" in words(page)


@pytest.mark.parametrize("rule", ["rounded", "numbers"])
def test_pictures_are_resized_as_the_stored_vectors_say(page: Any, rule: str) -> None:
    for case in json.loads(VECTORS.read_text())["cases"]:
        found = np.array(page.execute_async_script(RESIZE, {"from": case["from"], "to": case["to"]}, rule == "numbers"))
        expected = np.frombuffer(base64.b64decode(case[rule]), np.uint8)
        if rule == "rounded":
            np.testing.assert_array_equal(found, expected)
        else:
            half = np.abs(found % 1 - 0.5) < 1e-4
            np.testing.assert_array_equal(np.floor(found + 0.5)[~half], expected[~half])


def test_the_page_fits_a_phone_and_names_its_parts(page: Any) -> None:
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        click(page, 0.6, 0.4)
        assert page.execute_script("return document.documentElement.scrollWidth") <= 390
        assert page.execute_script(SMALL) == 0
        assert page.execute_script(UNNAMED) == 0
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_browser_without_vectors_is_told(browser: Any, address: str) -> None:
    hide = "WebAssembly.validate = () => false"
    script = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": hide})
    try:
        browser.get(address)
        if browser.execute_script("return document.documentElement.dataset.mode") != "served":
            assert "no WebAssembly SIMD" in words(browser)
        else:
            phase(browser, "empty")  # nothing is computed in the browser
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)


def test_the_configuration_is_plain(artifact: Path) -> None:
    with open_server(artifact, 0) as server:
        assert json.loads(server.files["site.json"])["mode"] == "served"
