"""The commands that measure, carry measurements, and set up where that is done: bench, evaluate, bundle and others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.markup import escape
from rich.table import Table

from samx import console
from samx.registry import DEFAULT_TARGET

if TYPE_CHECKING:
    from samx.evaluation.report import AccuracyReport

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]
Force = Annotated[bool, typer.Option("--force", help="Replace files that are there.")]


def bench(
    paths: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Artifacts; the first is the baseline.")],
    device: Annotated[str, typer.Option(help="Device to run on: cpu, cuda, cpu+ane. Never changed silently.")] = "cpu",
    threads: Annotated[Optional[int], typer.Option(help="CPU threads (default: all).", min=1)] = None,
    scenario: Annotated[
        Optional[list[str]], typer.Option(help="What to measure; repeat for more. An unknown name lists them.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A click, a box, eight prompts and a cold start.")] = False,
    seconds: Annotated[float, typer.Option(help="Timed seconds of each artifact in each scenario.")] = 3.0,
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 0,
    embedding: Annotated[Optional[list[Path]], typer.Option(help="Measure on your own embedding files.")] = None,
    against: Annotated[
        Optional[list[str]], typer.Option(help="Measure others beside: meta,samexporter,huggingface,pytorch.")
    ] = None,
    checkpoint: Annotated[Optional[Path], typer.Option(help="What DIR was made from, for --against.")] = None,
    output: Annotated[Optional[Path], typer.Option("--output", "-o", help="Write the report (JSON) here.")] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Measure artifacts on this machine, in turns, after checking that they compute what PyTorch computes."""
    from samx.commands.bench import bench as run
    from samx.commands.bench import require_complete

    with console.steps() as progress:
        report = run(
            paths, device, threads, scenarios=scenario or (), quick=quick, seconds=seconds, seed=seed,
            embeddings=embedding or (), against=against or (), checkpoint=checkpoint, output=output, overwrite=force,
            progress=progress,
        )  # fmt: skip
    console.show((output, report), measured, as_json=json)
    require_complete(report)


def report(
    reports: Annotated[list[Path], typer.Argument(metavar="JSON...", help="Reports of 'samx bench' or of kits.")],
    output: Annotated[Optional[Path], typer.Option("--output", "-o", help="Write one HTML page here.")] = None,
    markdown: Annotated[Optional[Path], typer.Option(help="Write Markdown here, for a pull request.")] = None,
    baseline: Annotated[
        Optional[Path], typer.Option(help="Report to compare with; exit code 4 if something became slower for sure.")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Make one page of the reports of several devices, and compare them with an earlier one."""
    from samx.commands.report import report as run
    from samx.commands.report import require_unregressed

    result = run(reports, output, markdown, baseline=baseline, overwrite=force)
    console.show(result, reported, as_json=json)
    require_unregressed(result)


def evaluate(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="Exported artifact.")],
    data: Annotated[
        Path, typer.Option(help="Labels: a COCO or SA-1B JSON file, or a folder of SA-1B files or of PNG masks.")
    ],
    pictures: Annotated[
        Optional[Path], typer.Option(metavar="DIR", help="Folder of the pictures, where it is not that of the labels.")
    ] = None,
    prompt: Annotated[
        str, typer.Option(help="Made of each label: box, centre, or points:N (the centre and others of its pixels).")
    ] = "box",
    checkpoint: Annotated[
        Optional[Path], typer.Option(help="Weights that DIR was made from; not needed for the demo model.")
    ] = None,
    limit: Annotated[Optional[int], typer.Option(help="Measure so many pictures, drawn by --seed.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of the pictures and points that are drawn.", min=0)] = 0,
    max_drop: Annotated[
        Optional[float], typer.Option(help="Exit code 3 if a mean fell by more against PyTorch, of 1 (default 0.01).")
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Go on without labelled pictures that are not there.")
    ] = False,
    output: Annotated[
        Optional[Path], typer.Option("--output", "-o", help="Write an HTML page here, with the worst pictures.")
    ] = None,
    report: Annotated[Optional[Path], typer.Option(help="Write the JSON report here, object by object.")] = None,
    device: Annotated[str, typer.Option(help="Device to run on: cpu, cuda. Never changed silently.")] = "cpu",
    threads: Annotated[Optional[int], typer.Option(help="CPU threads (default: all).", min=1)] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Measure how good an artifact's masks are on your own labelled pictures, PyTorch beside it."""
    from samx.commands.evaluate import Asked
    from samx.commands.evaluate import evaluate as run
    from samx.evaluation.report import MOST_DROP

    asked = Asked(data, pictures, prompt, limit, seed, MOST_DROP if max_drop is None else max_drop, skip_missing)
    with console.steps() as progress:
        found = run(
            path, asked, checkpoint=checkpoint, device=device, threads=threads, output=output, report=report,
            overwrite=force, progress=progress,
        )  # fmt: skip
    console.show((found, [one for one in (output, report) if one is not None]), compared, as_json=json)
    raise typer.Exit(0 if found.passed else 3)


def bundle(
    path: Annotated[
        Optional[Path], typer.Argument(metavar="DIR", help="Artifact to pack; none: samx.pyz alone.")
    ] = None,
    output: Annotated[
        Optional[Path], typer.Option("--output", "-o", help="What to write (default: kit.zip, samx.pyz or models).")
    ] = None,
    server: Annotated[
        Optional[str], typer.Option("--for", metavar="triton", help="Write the folder that a Triton server serves.")
    ] = None,
    backend: Annotated[
        Optional[str],
        typer.Option(metavar="onnxruntime|tensorrt", help="Let Triton's own backend compute, where it is loaded."),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Pack an artifact for a device without samx: with samx.pyz, which is samx in one file that Python runs."""
    from samx.commands.bundle import bundle as run
    from samx.commands.bundle import bundle_triton, require_server

    require_server(server, backend)
    if server is not None:
        console.show(bundle_triton(path, output or Path("models"), force, backend), console.told, as_json=json)
        return
    result = run(path, output or Path("samx.pyz" if path is None else "kit.zip"), force)
    console.show(result, console.told, as_json=json)


def zoo(
    folder: Annotated[
        Path, typer.Argument(metavar="WEIGHTS_DIR", help="Folder of checkpoints, searched to its bottom.")
    ],
    targets: Annotated[
        Optional[str], typer.Option(help="Targets, separated by commas; default: all of 'samx doctor'.")
    ] = None,
    precisions: Annotated[
        Optional[str], typer.Option(help="Precisions, separated by commas; default: all that a target has.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for zoo.json and zoo.md.")] = Path("zoo"),
    again: Annotated[bool, typer.Option("--again", help="Do anew what the table has already.")] = False,
    json: Json = False,
) -> None:
    """Export and judge every checkpoint of a folder, on every target and precision; go on where it was stopped."""
    from samx.commands.zoo import require_passed
    from samx.commands.zoo import zoo as run

    with console.steps() as progress:
        table = run(folder, output, _words(targets), _words(precisions), again, progress)
    console.show((output, table), kept, as_json=json)
    require_passed(table)


def init_ci(
    repository: Annotated[Path, typer.Argument(metavar="DIR", help="Repository to write into.")] = Path(),
    checkpoint: Annotated[
        Optional[Path], typer.Option(help="Weights in the repository that are exported; none: the demo model.")
    ] = None,
    target: Annotated[str, typer.Option(help="Backend to export for; 'samx doctor' lists them.")] = DEFAULT_TARGET,
    precision: Annotated[Optional[str], typer.Option(help="One that the target has; default: its first.")] = None,
    wheel: Annotated[
        Optional[str], typer.Option(help="Where samx's wheel lies in the repository; default: wheels/samx-*.whl.")
    ] = None,
    branch: Annotated[str, typer.Option(help="Whose measurements others are compared with.")] = "main",
    force: Force = False,
    json: Json = False,
) -> None:
    """Write a script and a workflow that gate an export in CI: parity, JUnit, times, a comment."""
    from samx.commands.init_ci import init_ci as run

    facts = run(repository, checkpoint, target=target, precision=precision, wheel=wheel, branch=branch, overwrite=force)
    console.show(facts, console.told, as_json=json)


def _words(given: str | None) -> list[str]:
    return [word for word in (given or "").replace(",", " ").split() if word]


COMMANDS: dict[Callable[..., None], str] = {
    bench: "samx bench sam1-demo-onnx --quick  ·  samx bench DIR OTHER --threads 1 -o cpu.json  ·  "
    "samx bench sam1-demo-onnx --against meta,pytorch  ·  "
    "samx bench sam1-demo-trt --device cuda --scenario click --scenario everything",
    report: "samx report cpu.json orin.json -o report.html  ·  "
    "samx report cpu.json --baseline before.json --markdown comment.md",
    evaluate: "samx evaluate DIR --data instances_val2017.json --pictures val2017 --limit 200 -o accuracy.html  ·  "
    "samx evaluate DIR --data labelled/ --prompt centre --checkpoint sam_vit_b.pth --max-drop 0.02",
    zoo: "samx zoo weights/  ·  samx zoo weights/ --targets onnx,trt-rtx --precisions fp32,fp16 -o zoo",
    init_ci: "samx init-ci  ·  samx init-ci --checkpoint weights/tiny.pt --target trt --precision fp16",
    bundle: "samx bundle sam1-demo-trt -o kit.zip  ·  samx bundle -o samx.pyz  ·  "
    "samx bundle DIR --for triton --backend onnxruntime -o models",
}


def add_to(app: typer.Typer) -> None:
    """Add these commands to an application."""
    for command, examples in COMMANDS.items():
        app.command(command.__name__.replace("_", "-"), epilog=examples)(command)


def measured(result: tuple[Path | None, Any]) -> tuple[Any, console.Draw]:
    """View a measurement."""
    from samx.benchmarks.bench_table import tables

    path, found = result

    def draw() -> None:
        for part in tables(found, console.out.width):
            console.out.print(part)
        _wrote([] if path is None else [path])

    return found.to_json(), draw


def compared(result: tuple[AccuracyReport, list[Path]]) -> tuple[Any, console.Draw]:
    """View a measurement against labels; the objects are in the file."""
    from samx.evaluation.report import to_tables

    found, paths = result
    data = {name: value for name, value in found.to_json().items() if name != "objects"}

    def draw() -> None:
        for part in to_tables(found):
            console.out.print(part)
        console.out.print(escape(found.summary()), highlight=False, soft_wrap=True)
        _wrote(paths)

    return {**data, "files": [str(path) for path in paths]}, draw


def kept(result: tuple[Path, Any]) -> tuple[Any, console.Draw]:
    """View a table of checkpoints."""
    from samx.commands.zoo import PAGE, TABLE

    out, table = result

    def draw() -> None:
        shown = Table("file", "target", "precision", "result", "mask IoU", box=None)
        for row in table.rows:
            value = row.metrics.get("mask_iou_mean")
            cells = (
                row.file,
                row.target or "",
                row.precision or "",
                row.outcome,
                "" if value is None else f"{value:.4f}",
            )
            shown.add_row(*map(escape, cells))
        console.out.print(shown)
        _wrote([out / TABLE, out / PAGE])

    return table.to_json(), draw


def reported(facts: console.Facts) -> tuple[Any, console.Draw]:
    """View reports that were brought together."""

    def draw() -> None:
        if not facts["paths"]:
            console.out.print(facts["markdown"], markup=False, highlight=False, soft_wrap=True)
        _wrote(facts["paths"])

    return facts, draw


def _wrote(paths: Iterable[object]) -> None:
    for path in paths:
        console.out.print(f"[green]wrote[/] [bold]{escape(str(path))}[/]", highlight=False)
