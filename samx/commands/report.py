"""Make of benchmark reports what people look at, and compare them with a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samx.artifacts.commit import write_file
from samx.benchmarks.report.baseline import compare
from samx.benchmarks.report.markdown import markdown as comment
from samx.benchmarks.report.runs import load_runs
from samx.commands.outputs import check_apart
from samx.errors import BenchmarkError, UsageError
from samx.processing.images import check_free


def report(
    reports: Sequence[Path], output: Path | None = None, markdown: Path | None = None, *, baseline: Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Read reports, compare them with the baseline, and write the page and the Markdown that were asked for.

    A regression does not end this call: the files hold it, and require_unregressed() makes an error of it.
    Raises: UsageError for no report, or a file named twice; ArtifactError for a file that is no report; InputError for
    one given twice, or a baseline with which nothing compares; MissingExtraError; WriteError.
    """
    if not reports:
        raise UsageError("no report was named", expected="at least one JSON file of 'samx bench'")
    written = [path for path in (markdown, output) if path is not None]
    check_apart([*reports, *([] if baseline is None else [baseline])], written)
    for path in written:
        check_free(path, overwrite)
    runs, base = load_runs(reports, baseline)
    comparison = None if base is None else compare(runs, base)
    texts = {markdown: comment(runs, comparison)}
    text = texts[markdown]
    if output is not None:
        from samx.benchmarks.report.page import page

        texts[output] = page(runs, comparison)
    for path in written:
        write_file(path, texts[path].encode("utf-8", "replace"))
    done = f"wrote {' and '.join(map(str, written))}" if written else "wrote nothing"
    return {
        "reports": {run.key: str(run.path) for run in runs},
        "devices": {run.key: run.device for run in runs},
        "doubts": {run.key: [{name: doubt[name] for name in ("kind", "text")} for doubt in run.doubts] for run in runs},
        "paths": [str(path) for path in written],
        "regressions": [] if comparison is None else [change.sentence() for change in comparison.regressions],
        "comparison": None if comparison is None else comparison.to_json(),
        "markdown": text,
        "summary": done if comparison is None else f"{comparison.summary()}; {done}",
    }


def require_unregressed(result: Mapping[str, Any]) -> None:
    """Refuse a result that is slower than the baseline for sure.

    Raises: BenchmarkError naming subject, scenario, ratio and interval of each.
    """
    if found := result["regressions"]:
        raise BenchmarkError(
            f"{len(found)} results became slower than the baseline", found="; ".join(found),
            fix="Look at the report, and measure both again before you trust or blame a change.",
        )  # fmt: skip
