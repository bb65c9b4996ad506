"""What the commands show: tables and lines for people, one JSON document for machines."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table
from typer import Exit

from samx import last_resort
from samx.errors import Doubt, SamxError
from samx.progress import Progress

if TYPE_CHECKING:
    from samx.commands.export import ExportResult
    from samx.processing.results import Segments
    from samx.quantization.verdict import Int8Report
    from samx.validators.report import ParityReport

Draw = Callable[[], None]
Facts = dict[str, Any]

STOPPED, NOBODY_READS = 130, 128 + 13  # exit codes: by the user, and as shells tell of SIGPIPE
MIB = 1024 * 1024
MOST_LINES = 20  # of masks that are listed for people


class Screen(Console):
    """Print; when whoever read the output is gone, end without a word."""

    def on_broken_pipe(self) -> None:
        """End the program."""
        last_resort.mute_stdout()
        raise SystemExit(NOBODY_READS)


out = Screen()
err = Screen(stderr=True)


@contextmanager
def steps() -> Iterator[Progress]:
    """Show which step is under way: a spinner and a bar in a terminal, a line each elsewhere."""
    if not err.is_terminal:
        yield _line
        return
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[count]}")
    with Bar(*columns, console=err, transient=True) as bar:
        shown = bar.add_task("", total=None, count="")

        def step(text: str, done: int = 0, total: int = 0, /) -> None:
            bar.update(shown, description=escape(text), completed=done, total=total or None, count=_count(done, total))

        yield step


def _line(text: str, done: int = 0, total: int = 0, /) -> None:
    with suppress(OSError):  # progress that cannot be shown stops no work
        err.print(f"{escape(text)} {_count(done, total)}...", highlight=False, soft_wrap=True)


def _count(done: int, total: int) -> str:
    return f"({done + 1} of {total}) " if done < total else ""


def print_json(document: Any) -> None:
    """Print one JSON document, undecorated."""
    out.print(json.dumps(document, indent=2, default=str), markup=False, highlight=False, soft_wrap=True)


def run(command: Callable[[], Any], as_json: bool) -> int:
    """Run a command and return its exit code; whatever goes wrong becomes one line."""
    try:
        code = _run(command, as_json)
    except MemoryError:
        return last_resort.no_memory()
    lost = last_resort.stdout_error()
    if lost is None:
        return code
    last_resort.mute_stdout()
    return NOBODY_READS if isinstance(lost, BrokenPipeError) else _told(last_resort.unwritten(lost), False)


def _run(command: Callable[[], Any], as_json: bool) -> int:
    try:
        with warnings.catch_warnings():
            warnings.showwarning = partial(_show_warning, warnings.showwarning)
            warnings.simplefilter("default", Doubt)
            command()
    except SamxError as error:
        return _told(error, as_json)
    except Exit as ended:
        return ended.exit_code
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except KeyboardInterrupt:
        err.print("stopped; no output was left behind")
        return STOPPED
    except Exception as error:
        return _told(last_resort.in_words(error), as_json) if last_resort.stdout_error() is None else 0
    return 0


def _told(error: SamxError, as_json: bool) -> int:
    """Print an error, where there is anybody to read it."""
    with suppress(OSError):
        if as_json:
            print_json(error.to_json())
    with suppress(OSError):
        err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
    return error.exit_code


def _show_warning(other: Callable[..., None], message: Warning | str, category: type[Warning], *rest: Any) -> None:
    if issubclass(category, Doubt):
        err.print(f"[yellow]note:[/] {escape(str(message))}", soft_wrap=True, highlight=False)
    else:
        other(message, category, *rest)


def show(result: Any, view: Callable[[Any], tuple[Any, Draw]], *, as_json: bool) -> None:
    """Show a result through one of the views below: its data, or its picture for people."""
    data, draw = view(result)
    if as_json:
        print_json(data)
    else:
        draw()


def exported(result: ExportResult) -> tuple[Any, Draw]:
    """View an export."""
    from samx.validators.report import to_table

    manifest = result.manifest
    data = {
        "path": str(result.path),
        "manifest": manifest.to_json(),
        "parity": result.report.to_json(),
        "notes": result.notes,
        "next_step": result.next_step,
        **({} if result.int8 is None else {"int8": result.int8.to_json()}),
    }

    def draw() -> None:
        out.print(to_table(result.report))
        size = sum(entry.bytes for entry in manifest.files.values()) / MIB
        levels = ", ".join(evidence.level for evidence in manifest.evidence)
        out.print(f"[green]exported[/] {escape(manifest.checkpoint.kind)} to [bold]{escape(str(result.path))}[/] "
                  f"({size:.1f} MiB); evidence: {levels}, on this machine", highlight=False)  # fmt: skip
        if result.int8 is not None:
            out.print(_groups(result.int8))
        for note in result.notes:
            out.print(escape(note), highlight=False, soft_wrap=True)
        if result.next_step:
            out.print(escape(result.next_step), highlight=False)

    return data, draw


def _groups(report: Int8Report) -> Table:
    """Show what each group costs alone, and which way was chosen."""
    plan = report.search.plan
    chosen = {*((group, "integer") for group in plan.integer), *((group, "stored") for group in plan.stored)}
    table = Table("group", "how", "mean IoU", "5th pct.", "KiB saved", "chosen", title="INT8: what a group costs alone")
    for row in report.search.rows:
        cost = f"{-row.mean_iou_lost:+.4f}", f"{-row.p05_iou_lost:+.4f}", f"{row.bytes_saved / 1024:.0f}"
        table.add_row(row.group, row.how, *cost, "yes" if (row.group, row.how) in chosen else "")
    return table


def told(facts: Facts) -> tuple[Any, Draw]:
    """View facts of which people read the warnings and the summary."""

    def draw() -> None:
        for line in facts.get("warnings", ()):
            out.print(f"[yellow]warning:[/] {escape(line)}", highlight=False, soft_wrap=True)
        out.print(escape(facts["summary"]), highlight=False, soft_wrap=True)

    return facts, draw


def bisected(facts: Facts) -> tuple[Any, Draw]:
    """View a bisection."""
    heads = ("group", "alone: IoU", "logit", "score", "spared: IoU", "logit", "score")
    frames = [("everything in float16", facts["everything"]), ("as exported", facts["exported"])]
    shown = {"mask_iou_mean": 5, "logit_error": 4, "iou_prediction_error": 5}  # with so many decimals

    def draw() -> None:
        table = Table(*heads, title=f"float16 against PyTorch in float32, {facts['checkpoint']}")
        for name, *errors in [*frames, *((row["group"], row["alone"], row["spared"]) for row in facts["rows"])]:
            table.add_row(name, *(f"{error[key]:.{digits}f}" for error in errors for key, digits in shown.items()))
        out.print(table)
        out.print("alone: only this group in float16; spared: exported, and this group in float32 too", highlight=False)

    return facts, draw


def judged(report: ParityReport) -> tuple[Any, Draw]:
    """View a parity report."""
    from samx.validators.report import to_table

    def draw() -> None:
        out.print(to_table(report))
        for line in report.all_failures():
            out.print(f"[red]failed:[/] {escape(line)}", highlight=False)
        out.print(escape(report.summary()), highlight=False)

    return report.to_json(), draw


def save_reports(report: ParityReport, json_file: Path | None, junit: Path | None, markdown: Path | None) -> None:
    """Write the reports that were asked for."""
    from samx.artifacts.commit import write_file
    from samx.validators.report import to_junit, to_markdown

    if json_file is not None:
        report.save(json_file)
    if junit is not None:
        write_file(junit, to_junit(report).encode())
    if markdown is not None:
        write_file(markdown, to_markdown(report).encode())


def segmented(result: tuple[Sequence[Path], Segments]) -> tuple[Any, Draw]:
    """View the masks that were found."""
    from samx.commands.segment import mask_rows

    paths, found = result
    rows = mask_rows(found)

    def draw() -> None:
        for number, row in enumerate(rows[:MOST_LINES]):
            out.print(f"mask {row.get('mask', number)}: predicted IoU {row['predicted_iou']:.3f}, stability "
                      f"{row['stability']:.3f}, {row['area_px']} px", highlight=False)  # fmt: skip
        if len(rows) > MOST_LINES:
            out.print(f"and {len(rows) - MOST_LINES} more", highlight=False)
        for path in paths:
            out.print(f"[green]wrote[/] [bold]{escape(str(path))}[/]", highlight=False, soft_wrap=True)

    return {"files": [str(path) for path in paths], "masks": rows}, draw


def inspected(facts: Facts) -> tuple[Any, Draw]:
    """View what an artifact, a graph or a package is."""
    from samx.pages import artifact_page, flat_page

    return facts, lambda: _print(artifact_page(facts) if facts["kind"] == "artifact" else flat_page(facts))


def examined(facts: Facts) -> tuple[Any, Draw]:
    """View what this machine can do."""
    from samx.pages import doctor_page

    return facts, lambda: _print(doctor_page(facts))


def _print(lines: list[str]) -> None:
    out.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
