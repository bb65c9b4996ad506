"""Measure the fast form in PyTorch beside Meta's decoder: same weights, device and box prompts, in turns.

python -m samx.benchmarks.torch_forms --device cuda --dtype float16 --prompts 1 --prompts 64 --json FILE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich import box
from rich.table import Table

from samx import console
from samx.artifacts.commit import write_file
from samx.benchmarks.environment import busy
from samx.benchmarks.summary import describe
from samx.benchmarks.table import environment_table
from samx.benchmarks.torch_measure import DTYPES, GroupResult, Report, Settings, run
from samx.demo import demo_checkpoint
from samx.processing.images import check_free

# Short, so that the table fits into 80 columns.
HEADINGS = ("decoder", "us", "IQR", "faster", "95%", "peak", "copy", "IoU")
LEGEND = (
    "us a prompt (median); peak, copy: share of a matrix product's and a copy's speed; IoU: of masks, with float32's"
)


def show(report: Report) -> None:
    """Print the circumstances and the tables."""
    console.out.print(environment_table({**report.environment, **report.device}))
    if busy(report.environment):
        console.out.print("[yellow]The machine was busy: these numbers are not for publication.[/]", highlight=False)
    for result in report.results:
        console.out.print(group_table(result))
        for name, reason in result.not_measured.items():
            console.out.print(f"not measured: {name}: {reason}", highlight=False)


def group_table(result: GroupResult) -> Table:
    """Show each way's time, how it compares with the first, its share of the peaks, and how near its masks come."""
    title = f"{result.dtype}, {result.prompts} prompts a call"
    table = Table(
        *HEADINGS, title=title, caption=LEGEND, title_justify="left", caption_justify="left", box=box.SIMPLE, padding=0
    )
    for entry in result.samples:
        found, reached = describe([1e3 * ms for ms in entry.prompt_ms]), result.shares[entry.name]
        ratio = result.ratios.get(entry.name)
        faster = ("", "") if ratio is None else (f"{ratio.value:.2f}", f"{ratio.low:.2f}-{ratio.high:.2f}")
        shares = f"{reached.multiply_adds:.0%}", f"{reached.bytes:.0%}"
        agreed = f"{result.differences[entry.name].mask_iou_mean:.4f}"
        table.add_row(entry.name, f"{found.median_ms:.1f}", f"{found.iqr_ms:.1f}", *faster, *shares, agreed)
    return table


def torch_forms(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda",
    dtype: Annotated[Optional[list[str]], typer.Option(help=" or ".join(DTYPES))] = None,
    prompts: Annotated[Optional[list[int]], typer.Option(help="Prompts a call; several times.", min=1)] = None,
    seconds: Annotated[float, typer.Option(help="Timed seconds a way.", min=0)] = 3.0,
    least: Annotated[int, typer.Option(help="Fewest timed calls a way.", min=1)] = 10,
    compile_: Annotated[
        bool, typer.Option("--compile/--no-compile", help="With torch.compile and AOTInductor.")
    ] = True,
    threads: Annotated[Optional[int], typer.Option(help="Of PyTorch, on a CPU.", min=1)] = None,
    checkpoint: Annotated[Optional[Path], typer.Option(help="Weights (default: the SAM 1 demo model).")] = None,
    json_file: Annotated[Optional[Path], typer.Option("--json", help="Write raw samples and all facts here.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite that file.")] = False,
) -> None:
    """Measure samx's decoder in PyTorch beside Meta's."""
    if json_file is not None:
        check_free(json_file, force)
    path = checkpoint or demo_checkpoint("sam1")
    settings = Settings(device, dtype or ["float32"], prompts or (), seconds, least, compile_, threads, path)
    with console.steps() as progress:
        report = run(settings, progress)
    show(report)
    if json_file is not None:
        write_file(json_file, (json.dumps(report.to_json(), indent=1) + "\n").encode())


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(torch_forms)
    sys.exit(console.run(app, as_json=False))
