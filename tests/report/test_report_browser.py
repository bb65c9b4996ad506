"""The page in a real browser: it fits, it can be read in light and dark, it asks nobody, and it says nothing wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_toys import bench_report, device, many_devices, saved, slower

from samx.commands.report import report

pytestmark = pytest.mark.browser

CHROMIUM, DRIVER = "chromium", "chromedriver"
INSTALL = "On Debian, as root: apt-get install chromium chromium-driver"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--hide-scrollbars",
)  # fmt: skip
THEMES = ("light", "dark")
WIDTHS = {"phone": 390, "desktop": 1280}
VIEWS = [(theme, width) for theme in THEMES for width in WIDTHS.values()]
LONG = "a-very-long-name-without-any-space-" * 6

# Elements that reach over the right edge, but for those in a box that scrolls by itself.
OVERFLOWING = """
return [...document.body.querySelectorAll('*')].filter(e => !e.closest('.scroll, pre, svg'))
  .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map(e => `${e.tagName}.${e.className}: ${e.textContent.trim().slice(0, 40)}`)"""
# Words of a chart that lie on each other, or outside the card that holds the chart.
CROWDED = """
const found = [];
for (const svg of document.querySelectorAll('figure svg')) {
  const card = svg.closest('figure').getBoundingClientRect();
  const boxes = [...svg.querySelectorAll('text')].map(e => [e.textContent, e.getBoundingClientRect()]);
  for (const [i, [word, a]] of boxes.entries()) {
    if (a.left < card.left || a.right > card.right) found.push(`${word} leaves its card`);
    for (const [other, b] of boxes.slice(i + 1))
      if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3)
        found.push(`${word} on ${other}`);
  }
}
return found"""
# Words whose colour is too like what is behind them. Source: WCAG 2.2, 1.4.3: 4.5, or 3 for large text.
FAINT = """
const channels = colour => { const c = colour.match(/[\\d.]+/g).map(Number); return c.length < 4 ? [...c, 1] : c; };
const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = e => { for (; e; e = e.parentElement) {
  const c = channels(getComputedStyle(e).backgroundColor); if (c[3] === 1) return c; } return [255, 255, 255, 1]; };
const contrast = (...two) => { const [x, y] = two.map(light).sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
const own = e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
return [...document.body.querySelectorAll('*')].filter(e => own(e) && e.getClientRects().length).map(e => {
  const style = getComputedStyle(e), inside = e.closest('svg');
  const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.7 && style.fontWeight >= 700);
  const value = contrast(channels(inside ? style.fill : style.color), behind(e));
  return value < (large ? 3 : 4.5) ? `${value.toFixed(2)} ${e.tagName}: ${e.textContent.trim().slice(0, 30)}` : null;
}).filter(Boolean)"""
# Coloured marks too like the card. Source: WCAG 2.2, 1.4.11: 3.
FAINT_MARKS = (
    FAINT.split("const own")[0]
    + """
return [...document.querySelectorAll('.swatch, .meter span')].map(e =>
  [contrast(channels(getComputedStyle(e).backgroundColor), behind(e.parentElement)), e.outerHTML])
  .filter(([value]) => value < 3)"""
)
SIZES = "return [...document.querySelectorAll('svg, img')].filter(e => e.checkVisibility()).map(e => {" \
        " const r = e.getBoundingClientRect(); return [r.width, r.height] })"  # fmt: skip
COLOURS = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start Chromium with a profile of its own."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    binary, driver = shutil.which(CHROMIUM), shutil.which(DRIVER)
    if binary is None or driver is None:
        pytest.fail(f"Chromium and its driver are not here, and this test is about them. {INSTALL}")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    yield started
    started.quit()


def hostile() -> list[Any]:
    """Reports whose names are as long as names get."""
    base = bench_report({"fp32": 11.0, "int8": 0.0007}, where=device(LONG))
    names = {record.name: f"{record.name}-{LONG}" for record in base.subjects}
    records = tuple(replace(record, name=names[record.name], checkpoint=LONG) for record in base.subjects)
    results = tuple(replace(entry, subject=names[entry.subject]) for entry in base.results)
    flags = (f"{LONG} was throttled: thermal",)
    return [replace(base, subjects=records, results=results, ratios=(), not_measured=(), command=("samx", LONG),
                    device=replace(base.device, flags=flags))]  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Write the pages that are looked at."""
    folder = tmp_path_factory.mktemp("pages")
    contents = {"devices": many_devices(), "baseline": [slower(bench_report(seed=1), 1.2)], "hostile": hostile()}
    base = saved(bench_report(seed=2), folder / "base.json")
    found = {}
    for name, reports in contents.items():
        paths = [saved(entry, folder / f"{name}-{i}.json") for i, entry in enumerate(reports)]
        output = folder / f"{name}.html"
        report(paths, output, baseline=base if name == "baseline" else None)
        found[name] = output.as_uri()
    return found


def look(browser: Any, address: str, theme: str, width: int, media: str = "screen") -> Any:
    """Open a page as somebody sees it, everything unfolded."""
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    browser.get(address)
    browser.execute_script("for (const e of document.querySelectorAll('details')) e.open = true")
    return browser


def forget(browser: Any) -> None:
    """Empty the logs."""
    for kind in ("browser", "performance"):
        browser.get_log(kind)


def asked(browser: Any) -> list[str]:
    """List the addresses that were asked for since."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


@pytest.mark.parametrize("name", ["devices", "baseline", "hostile"])
@pytest.mark.parametrize(("theme", "width"), VIEWS)
def test_the_page_fits_and_can_be_read(browser: Any, pages: dict[str, str], name: str, theme: str, width: int) -> None:
    seen = look(browser, pages[name], theme, width)
    assert seen.execute_script("return document.documentElement.scrollWidth") <= width
    assert seen.execute_script(OVERFLOWING) == []
    assert seen.execute_script(CROWDED) == []
    assert seen.execute_script(FAINT) == []
    assert seen.execute_script(FAINT_MARKS) == []
    sizes = seen.execute_script(SIZES)
    assert len(sizes) > 8
    assert all(w > 50 and h > 10 for w, h in sizes)


@pytest.mark.parametrize("name", ["devices", "baseline", "hostile"])
def test_the_page_asks_nobody_and_the_console_is_silent(browser: Any, pages: dict[str, str], name: str) -> None:
    forget(browser)
    seen = look(browser, pages[name], "light", 1280)
    assert seen.get_log("browser") == []
    assert asked(seen) == [pages[name]]


def test_light_and_dark_differ(browser: Any, pages: dict[str, str]) -> None:
    light, dark = (look(browser, pages["devices"], theme, 1280).execute_script(COLOURS) for theme in THEMES)
    assert light[0] != dark[0]
    assert light[1] != dark[1]


def test_on_a_phone_wide_tables_scroll_in_their_box(browser: Any, pages: dict[str, str]) -> None:
    seen = look(browser, pages["devices"], "light", WIDTHS["phone"])
    boxes = seen.execute_script(
        "return [...document.querySelectorAll('.scroll')].map(e => [e.scrollWidth > e.clientWidth, e.tabIndex])"
    )
    assert [True, 0] in boxes
    assert all(index == 0 for _, index in boxes)


def test_on_paper_everything_is_unfolded_and_dark_is_light(browser: Any, pages: dict[str, str]) -> None:
    seen = look(browser, pages["devices"], "dark", 794, media="print")
    seen.execute_script("for (const e of document.querySelectorAll('details')) e.open = false")
    heights = seen.execute_script(
        "return [...document.querySelectorAll('details > :not(summary)')].map(e => e.getBoundingClientRect().height)"
    )
    assert heights
    assert all(height > 0 for height in heights)
    assert seen.execute_script(COLOURS) == ["rgb(255, 255, 255)", "rgb(0, 0, 0)"]


# Faults that the checks above have to see.
PLANTED = {
    "overflow": ("document.querySelector('.lead').style.minWidth = '2000px'", OVERFLOWING),
    "contrast": ("document.querySelector('.lead').style.color = 'rgb(200, 200, 200)'", FAINT),
    "chart contrast": ("document.querySelector('svg text').style.fill = 'rgb(220, 220, 220)'", FAINT),
    "swatch": ("document.querySelector('.swatch').style.background = 'rgb(240, 240, 240)'", FAINT_MARKS),
    "crowd": ("for (const e of document.querySelectorAll('figure svg text')) e.style.fontSize = '40px'", CROWDED),
}  # fmt: skip


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_seen(browser: Any, pages: dict[str, str], fault: str) -> None:
    plant, check = PLANTED[fault]
    seen = look(browser, pages["devices"], "light", 1280)
    assert seen.execute_script(check) == []
    seen.execute_script(plant)
    assert seen.execute_script(check) != []


def test_a_planted_complaint_of_the_console_and_a_planted_request_are_seen(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text("<script>console.error('planted')</script><img src='nowhere.png'>")
    forget(browser)
    seen = look(browser, (tmp_path / "bad.html").as_uri(), "light", 1280)
    assert any("planted" in entry["message"] for entry in seen.get_log("browser"))
    assert (tmp_path / "nowhere.png").as_uri() in asked(seen)
