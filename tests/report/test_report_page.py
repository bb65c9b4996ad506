"""The page needs nothing but itself, holds every number with its proof, and nothing is written for bad input."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_toys import bench_report, device, many_devices, saved, slower

from samx.benchmarks.results import BenchReport
from samx.commands.report import report, require_unregressed
from samx.errors import ArtifactError, BenchmarkError, InputError, MissingExtraError, SamxError, UsageError, WriteError

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Read a page: its attributes, its text, and whether its elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def write_all(folder: Path, reports: list[BenchReport]) -> list[Path]:
    return [saved(entry, folder / f"{i}.json") for i, entry in enumerate(reports)]


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    report(write_all(folder, many_devices()), folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_asks_nobody_for_anything(html: str) -> None:
    assert re.findall(r"https?:|//[a-z]", html) == []
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []
    links = [value for _, attributes in Page(html).found for name, value in attributes.items()
             if name in ("href", "src", "srcset", "action", "xlink:href")]  # fmt: skip
    assert links
    assert all(str(link).startswith("#") for link in links)
    assert {"script", "img", "iframe", "link", "object"} & {tag for tag, _ in Page(html).found} == set()


def test_the_page_is_whole(html: str) -> None:
    page = Page(html)
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.found if "id" in attributes]
    assert len(set(ids)) == len(ids)
    anchors = {str(a["href"])[1:] for tag, a in page.found if tag == "a"}
    assert anchors <= set(ids)


def test_every_picture_says_what_it_shows(html: str) -> None:
    pictures = [attributes for tag, attributes in Page(html).found if tag == "svg"]
    assert len(pictures) > 15
    assert all(picture["role"] == "img" and picture["aria-label"] for picture in pictures)


def test_every_result_stands_on_the_page_with_its_proof_and_its_place(html: str) -> None:
    rows = re.findall(r"<tr>.*?</tr>", html.partition('class="results"')[2].partition("</table>")[0], re.DOTALL)
    expected = [result for entry in many_devices() for result in entry.results]
    assert len(rows) - 1 == len(expected)  # and the head
    assert all("344 on cpu" in row and re.search(r"(1\.0000|0\.9991|0\.9874)", row) for row in rows[1:])


def test_doubts_energy_and_commands_are_told(html: str) -> None:
    text = Page(html).text
    for words in (
        "held down in 12 of 60 samples", "stopped by the user (Ctrl-C), in batch64", "166 mJ",
        "not measured: cpu: this machine shows no power",
        "samx bench sam1-onnx-fp32 sam1-onnx-int8 --device cpu --threads 2",
        "takes no mask prompt", "this system does not show who chooses the clocks",
    ):  # fmt: skip
        assert words in text, words


def test_a_percentile_of_too_few_calls_is_not_told_and_says_why(html: str) -> None:
    assert "a p90 needs 64 calls or more; here are 10" in html
    assert "a p99 needs 662 calls or more; here are 300" in html


def test_names_are_text(tmp_path: Path) -> None:
    base = bench_report({"fp32": 11.0})
    name = '<script>alert(1)</script>"\x00 $x_1$ {{ 7 * 7 }}'
    named = replace(base, subjects=(replace(base.subjects[0], name=name, target=name),), not_measured=(),
                    results=tuple(replace(r, subject=name, scenario=f"{name} {r.scenario}") for r in base.results),
                    device=device(name), command=("samx", name))  # fmt: skip
    report([saved(named, tmp_path / "a.json")], tmp_path / "page.html", tmp_path / "page.md")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "script" not in {tag for tag, _ in page.found}
    assert "<script>alert(1)</script>" in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert "\x00" not in page.text
    lines = (tmp_path / "page.md").read_text(encoding="utf-8").splitlines()
    assert not any("<script>" in line for line in lines if not line.startswith("    "))  # which begins code


def test_a_report_without_results_makes_a_page(tmp_path: Path) -> None:
    empty = bench_report(partial="stopped by the user", results=(), ratios=())
    report([saved(empty, tmp_path / "a.json")], tmp_path / "page.html")
    text = Page((tmp_path / "page.html").read_text(encoding="utf-8")).text
    assert "No result" in text
    assert "stopped by the user" in text


def test_an_energy_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    content = bench_report({"fp32": 11.0}, energy=2.0).to_bytes()
    (tmp_path / "a.json").write_bytes(re.sub(rb'"value": 22.0,', b'"value": 1e999,', content))
    with pytest.raises(ArtifactError, match=r"a\.json' is not valid JSON: found inf is no number"):
        report([tmp_path / "a.json"], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_regression_is_written_first_and_then_an_error(tmp_path: Path) -> None:
    new = saved(slower(bench_report(seed=1), 1.2), tmp_path / "new.json")
    base = saved(bench_report(seed=2), tmp_path / "base.json")
    result = report([new], tmp_path / "page.html", tmp_path / "page.md", baseline=base)
    with pytest.raises(
        BenchmarkError, match=r"2 results became slower.* in click on .* times as long \(99% interval"
    ) as caught:
        require_unregressed(result)
    assert caught.value.exit_code == 4
    assert "2 of 20 results became slower" in Page((tmp_path / "page.html").read_text(encoding="utf-8")).text
    assert result["markdown"] == (tmp_path / "page.md").read_text(encoding="utf-8")
    assert result["paths"] == [str(tmp_path / "page.md"), str(tmp_path / "page.html")]
    assert len(json.loads(json.dumps(result, allow_nan=False))["regressions"]) == 2


def test_without_a_regression_there_is_no_error(tmp_path: Path) -> None:
    paths = write_all(tmp_path, [bench_report(seed=1), bench_report(seed=2)])
    result = report(paths[:1], baseline=paths[1])
    require_unregressed(result)
    assert result["comparison"] is not None
    assert result["paths"] == []
    assert result["summary"].startswith("none of 20 results became slower than the baseline")
    assert result["summary"].endswith("; wrote nothing")


def test_a_throttled_run_is_flagged_and_no_regression(tmp_path: Path) -> None:
    hot = device(flags=["the processor was slowed down for its heat 3 times"])
    new = saved(slower(bench_report(where=hot), 1.5), tmp_path / "new.json")
    result = report([new], tmp_path / "page.html", baseline=saved(bench_report(seed=2), tmp_path / "b.json"))
    require_unregressed(result)
    text = Page((tmp_path / "page.html").read_text(encoding="utf-8")).text
    assert "2 seemingly slower, in doubtful runs" in text
    assert "doubtful this run: the processor was slowed down for its heat 3 times" in text


def altered(change: Callable[[dict[str, Any]], Any]) -> bytes:
    document = json.loads(bench_report().to_bytes())
    change(document)
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (altered(lambda d: d.update(schema_version=1)), "another format"),
        (bench_report().to_bytes()[:2000], "not valid JSON"),
        (altered(lambda d: d.update(seconds=float("nan"))), "nan is no number"),
        (altered(lambda d: d["results"][0].update(samples_ns=[])), "no samples"),
        (altered(lambda d: d["results"][0]["samples_ns"].__setitem__(0, -5)), "samples_ns 0 is out of range: found -5"),
        (b"", "not valid JSON"),
        (b"[]", "wrong type"),
    ],
    ids=["schema", "truncated", "NaN", "no samples", "negative", "empty", "list"],
)
def test_what_is_no_report_is_refused_and_nothing_is_written(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=words) as caught:
        report([tmp_path / "bad.json"], tmp_path / "page.html")
    assert "bad.json" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "page.html").exists()


def test_the_same_report_twice_is_refused(tmp_path: Path) -> None:
    one, other = (saved(bench_report(), tmp_path / name) for name in ("a.json", "b.json"))
    for named, baseline in (([one, other], None), ([one, one], None), ([one], other)):
        with pytest.raises(InputError, match="given twice"):
            report(named, baseline=baseline)


@pytest.mark.parametrize("name", ["output", "markdown"])
def test_an_existing_file_is_kept_unless_overwriting_is_asked_for(name: str, tmp_path: Path) -> None:
    path = saved(bench_report(), tmp_path / "a.json")
    target = tmp_path / "target"
    target.write_text("mine")
    outputs: dict[str, Any] = {name: target}
    with pytest.raises(WriteError, match="exists already"):
        report([path], **outputs)
    assert target.read_text() == "mine"
    report([path], **outputs, overwrite=True)
    assert target.read_text(encoding="utf-8") != "mine"


def test_a_report_is_never_written_over_even_when_overwriting_is_asked_for(tmp_path: Path) -> None:
    path = saved(bench_report(), tmp_path / "a.json")
    for output, markdown in ((path, None), (None, path), (tmp_path / "x", tmp_path / "x")):
        with pytest.raises(UsageError, match="named twice"):
            report([path], output, markdown, overwrite=True)


def test_no_report_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no report was named"):
        report([])


@pytest.mark.parametrize("library", ["matplotlib.figure", "jinja2"])
def test_a_missing_library_is_named_with_its_extra_and_nothing_is_written(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(bench_report(), tmp_path / "a.json")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=r"samx\[report\]"):
        report([path], tmp_path / "page.html", tmp_path / "page.md")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.json"]
    report([path], markdown=tmp_path / "page.md")  # which needs neither


def test_refusals_are_samx_errors(tmp_path: Path) -> None:
    with pytest.raises(SamxError, match="does not exist"):
        report([tmp_path / "missing.json"])
