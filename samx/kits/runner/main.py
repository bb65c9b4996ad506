"""The report and the command line."""
# ruff: noqa: T201 - this is a program

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from samx.kits.runner.decoder import Decoder
from samx.kits.runner.kit import PARITY, PARTIAL, STOPPED, USAGE, WRITE, Json, Kit, KitError, now, utc_now, write
from samx.kits.runner.latency import measure, with_summary
from samx.kits.runner.machine import device_record, readings
from samx.kits.runner.parity import check_parity, parity_record, placed


def bench_report(
    kit: Kit, place: Json, decoder: Decoder, parity: Json, before: Json, options: argparse.Namespace
) -> Json:
    """Measure, and fill in the blank report."""
    blank, rules = kit.says["report"], kit.says["latency"]
    seconds = min(options.seconds, rules["quick_seconds"]) if options.quick else options.seconds
    rows: list[Json] = json.loads(json.dumps(blank["results"]))
    partial = measure(kit, decoder, seconds, rows)
    subject = {**blank["subjects"][0], "parity": parity_record(kit.says["parity"], parity)}
    subject |= {"placement": placed(place, decoder)[0], "bytes": decoder.runs.bytes or place["bytes"]}
    steps = [later - earlier for earlier, later in ((now(), now()) for _ in range(1000)) if later > earlier]
    words = ["python3", "run.py", "--device", place["device"], "--seconds", f"{options.seconds:g}"]
    return {
        **blank, "created": utc_now(), "quick": options.quick, "partial": partial, "seconds": seconds,
        "command": [*words, *(["--quick"] if options.quick else [])], "clock_step_ns": min(steps, default=0),
        "device": device_record(kit, place, before, readings("moving")), "subjects": [subject],
        "results": [with_summary(rules["summary"], row) for row in rows if row["samples_ns"]],
    }  # fmt: skip


def save(path: Path, report: Json) -> None:
    """Write a report."""
    try:
        write(path, (json.dumps(report, allow_nan=False) + "\n").encode())
    except OSError as cause:
        raise KitError(WRITE, f"cannot write {path}: {cause.strerror}. Name another file with -o.") from cause


def run(folder: Path, options: argparse.Namespace) -> None:
    """Verify, compare, measure, write."""
    path = options.output
    if path.exists() or not path.parent.is_dir():
        raise KitError(WRITE, f"{path} {'exists already' if path.exists() else 'has no folder'}. Name another with -o.")
    kit = Kit(folder)
    places = kit.says["devices"]
    device = options.device or next(iter(places))
    if device not in places or not 0 < options.seconds < float("inf"):
        asked = f"--device {device} --seconds {options.seconds:g}"
        raise KitError(USAGE, f"not offered: {asked}; this kit runs on {' or '.join(places)}, more than 0 s")
    place, before = {**places[device], "device": device}, readings("moving")  # before anything here makes load
    print(f"every file is as it was bundled; comparing answers on {device} with PyTorch's", flush=True)
    decoder = Decoder(kit, place)
    parity = check_parity(kit, place, decoder)
    if not parity["passed"]:
        save(path, parity)
        first = [*parity["failures"], *(line for case in parity["cases"] for line in case["failures"])][0]
        raise KitError(PARITY, f"parity was not shown, so nothing was timed: {first}. {path} has all of it")
    print("parity passed; measuring", flush=True)
    report = bench_report(kit, place, decoder, parity, before, options)
    save(path, report)
    _tell(report, path)


def _tell(report: Json, path: Path) -> None:
    for row in report["results"]:
        summary, flags = row["summary"], ", ".join(row["flags"])
        median = f"median {summary['median_ms']:.3f} ms, IQR {summary['iqr_ms']:.3f} ms, {summary['count']} calls"
        print(f"  {row['scenario']}: {median}, {row['prompts_per_second']:.1f} prompts/s {flags}")
    if report["partial"]:
        raise KitError(PARTIAL, f"the measurement is not complete: {report['partial']}. {path} is marked as partial")
    print(f"wrote {path}")


def main(arguments: Sequence[str] | None = None, folder: Path | None = None) -> int:
    """Check and time this kit's decoder on this machine."""
    parser = argparse.ArgumentParser(prog="run.py", description=main.__doc__)
    parser.add_argument("--device", help="where to run; without it, the device that the kit is for")
    parser.add_argument("--seconds", type=float, default=3.0, help="timed, of each scenario (default: 3)")
    parser.add_argument("--quick", action="store_true", help="one second of each")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.json"), help="default: report.json")
    try:
        run(folder or Path(__file__).resolve().parent, parser.parse_args(arguments))
    except KitError as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return refusal.exit_code
    except KeyboardInterrupt:
        print(f"error: {STOPPED}; nothing was written", file=sys.stderr)
        return PARTIAL
    return 0


if __name__ == "__main__":
    sys.exit(main())
