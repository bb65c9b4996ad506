"""The gate in a child process: a crash of somebody's driver is a finding, not the end of the command.

Run by gate_in_child(); by hand: python -m samx.validators.child DIR --report FILE
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

from samx import children
from samx.artifacts.manifest import LEVELS, Level
from samx.artifacts.store import Artifact
from samx.contracts.client import encoded
from samx.contracts.gate import Opened
from samx.contracts.gate import judge as judge_contract
from samx.contracts.table import CLIENT_ENCODER_ROLE, CLIENT_ROLE, CONTRACTS, Contract
from samx.errors import ArtifactError, InputError, ParityError, SamxError
from samx.files import REPORT_CAP_BYTES, read_file
from samx.models.session import Session
from samx.processing.images import to_levels
from samx.registry import GRAPH_DEVICE, backend, load
from samx.validators.arrays import UNPACKED_CAP_BYTES
from samx.validators.draw import Drawn
from samx.validators.encoder_gate import judge_encoder
from samx.validators.encoder_suite import EncoderSuite
from samx.validators.gate import run_gate
from samx.validators.metrics import bounds_for, encoder_bounds
from samx.validators.report import EncoderReport, ParityReport
from samx.validators.suite import ParitySuite

SUITE_ROLE, ENCODER_SUITE_ROLE = "parity_cases", "encoder_cases"
DEFAULT_TIMEOUT_S = 1800.0  # the default suite takes seconds on a laptop and minutes on a small board
SEED_BITS = 31
OWN = "samx"  # no other program's: what 0.1.0 wrote, too
PASSED, FAILED = 0, ParityError.exit_code
CHILD = children.command("samx.validators.child")


def gate_in_child(
    artifact: Path,
    *,
    level: Level,
    device: str = "cpu",
    threads: int | None = None,
    suite: Path | None = None,
    pictures: Path | None = None,
    subject: str | None = None,
    seed: int | None = None,
    calls: int = 0,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    command: Sequence[str] = CHILD,
) -> ParityReport:
    """Judge an artifact in a process of its own and give its report, whether passed or failed.

    `seed` repeats a run's draws; one session is asked so many calls at least.
    Raises: ParityError naming what happened when the child did not report and exit as agreed.
    """
    nonce = os.urandom(16).hex()
    with tempfile.TemporaryDirectory(prefix="samx-gate-") as folder:
        report = Path(folder, "report.json")
        arguments = [str(artifact), "--report", str(report), "--nonce", nonce, "--level", level, "--device", device]
        arguments += ["--seed", str(secrets.randbits(SEED_BITS) if seed is None else seed), "--calls", str(calls)]
        arguments += ["--threads", str(threads)] if threads is not None else []
        arguments += ["--suite", str(suite)] if suite is not None else []
        arguments += ["--pictures", str(pictures)] if pictures is not None else []
        arguments += ["--subject", subject] if subject is not None else []
        code, words = children.run([*command, *arguments], Path(folder, "output.txt"), timeout_s)
        return _accept(report, nonce, code, words)


def _accept(path: Path, nonce: str, code: int | None, words: str) -> ParityReport:
    """Take a report only from a child that ended as agreed, and only the one that this run asked for."""
    if code not in (PASSED, FAILED):
        raise _refusal(children.ending(code), words)
    try:
        report = ParityReport.from_bytes(read_file(path, REPORT_CAP_BYTES, "its report", ArtifactError), "its report")
    except ArtifactError as cause:
        found = str(cause) if path.exists() else "it left no report"
        raise _refusal(f"exit code {code}, but {found}", words) from cause
    if report.nonce != nonce:
        raise _refusal(f"exit code {code}, but its report belongs to another run", words)
    if report.passed is not (code == PASSED):
        raise _refusal(f"exit code {code}, but its report says {'passed' if report.passed else 'failed'}", words)
    return report


def _refusal(what: str, words: str) -> ParityError:
    return ParityError(
        "the parity check's process gave no verdict",
        found=f"{what}; its last words: {words}" if words else what,
        expected=f"exit code {PASSED} or {FAILED} and a report",
        fix="No parity was shown; treat the artifact as broken.",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge, report, and give the exit code."""
    options = _parser().parse_args(arguments)
    try:
        report = judge(options)
        report.save(options.report)
    except SamxError as error:
        print(error, file=sys.stderr)  # noqa: T201 - this is a program
        return error.exit_code if error.exit_code != FAILED else InputError.exit_code  # FAILED promises a report
    return PASSED if report.passed else FAILED


def judge(options: argparse.Namespace) -> ParityReport:
    """Open the artifact with its own runtime and run the gate."""
    artifact = Artifact.open(options.artifact)
    manifest = artifact.manifest
    suite = _suite(artifact, options.suite)
    if suite.spec != manifest.spec:
        raise ArtifactError(f"the parity suite is for another decoder than {artifact.path}", fix="Export again.")
    entry = backend(manifest.target)
    open_session = partial(load(entry.runner(options.device).runtime), artifact, device=options.device)
    another = partial(open_session, threads=2 if options.threads == 1 else 1)
    session = open_session(threads=options.threads)
    report = run_gate(
        session,
        suite,
        bounds_for(entry.precisions.get(manifest.precision, manifest.precision), manifest.options),
        level=cast(Level, options.level),
        subject=options.subject or f"artifact {artifact.path.name or artifact.path}",
        device=options.device,
        nonce=options.nonce,
        drawn=Drawn(options.seed, options.calls, another, sizes_built_for(session, options.level)),
    )
    report = judge_client(artifact, session, suite, options, report)
    return replace(report, encoder=judge_encoders(artifact, session, options))


def sizes_built_for(session: Session, level: str) -> tuple[int, ...]:
    """Return the numbers of prompts that an engine was tuned and bounded for; none where a graph stands for it."""
    prompts = getattr(session, "profile_prompts", None) if level == "device" else None
    return () if prompts is None else tuple(sorted({prompts.min, prompts.opt, prompts.max}))


def judge_client(
    artifact: Artifact, session: Session, suite: ParitySuite, options: argparse.Namespace, report: ParityReport
) -> ParityReport:
    """Add to a report how the graph for other programs answers their calls, where the artifact has one.

    Raises: ArtifactError for a contract that is not known, or whose file is missing; as the runtime.
    """
    contract, entry = _contract(artifact), backend(artifact.manifest.target)
    if contract is None:
        return report
    decoder = session if options.device == GRAPH_DEVICE else load(entry.runtime)(artifact, device=GRAPH_DEVICE)
    verdict = judge_contract(
        contract, _open_client(artifact, CLIENT_ROLE, options), decoder, suite.images, options.seed
    )
    failures = [f"contract {contract.name}: {line}" for line in verdict.failures]
    facts = {**report.suite, "contract": verdict.facts(contract)}
    return replace(report, failures=(*report.failures, *failures), suite=facts)


def _contract(artifact: Artifact) -> Contract | None:
    """Return the contract of a graph for other programs; what Core ML calls by that word is in its packages."""
    name = artifact.manifest.options.get("contract")
    if name in (None, OWN) or backend(artifact.manifest.target).client is None:
        return None
    if name not in CONTRACTS:
        raise ArtifactError(f"{artifact.path} has an unknown contract", found=name, expected=" or ".join(CONTRACTS))
    return CONTRACTS[name]


def _open_client(artifact: Artifact, role: str, options: argparse.Namespace) -> Opened:
    opener = backend(artifact.manifest.target).client
    assert opener is not None, "of other targets there is no contract"
    opened: Opened = load(opener)(artifact, role, options.threads)
    return opened


def judge_encoders(artifact: Artifact, session: Session, options: argparse.Namespace) -> EncoderReport | None:
    """Judge the image encoder of an artifact, and by the same pictures the one in other programs' signature.

    Raises: as judge_own_encoder().
    """
    report, contract = judge_own_encoder(artifact, session, options), _contract(artifact)
    roles = [file.role for file in artifact.manifest.files.values()]
    if report is None or contract is None or CLIENT_ENCODER_ROLE not in roles:
        return report
    run = _open_client(artifact, CLIENT_ENCODER_ROLE, options).run
    theirs = judge_encoder(
        partial(encoded, contract, run),
        session,
        _pictures(artifact, options.pictures),
        report.bounds,
    )
    failures = [f"contract {contract.name}: {line}" for line in theirs.all_failures()]
    return replace(report, failures=(*report.failures, *failures))


def judge_own_encoder(artifact: Artifact, session: Session, options: argparse.Namespace) -> EncoderReport | None:
    """Judge the image encoder of an artifact; None where there is none that takes levels.

    Raises: ArtifactError where there is one and nothing to judge it by; as the encoder's runtime.
    """
    manifest, entry = artifact.manifest, backend(artifact.manifest.target)
    if manifest.encoder is None:
        return None
    suite = _pictures(artifact, options.pictures)
    if suite.spec != manifest.spec or suite.picture_px != manifest.encoder.picture_px:
        raise ArtifactError(f"the pictures are for another encoder than {artifact.path}'s", fix="Export again.")
    opener, device = entry.encoder_opener(options.device)
    own, decoder = (entry.precisions.get(name, name) for name in (manifest.encoder.precision, manifest.precision))
    taken = manifest.encoder.pictures
    return judge_encoder(
        load(opener)(artifact, device, options.threads), session, suite, encoder_bounds(own, decoder),
        batches=sorted({taken.min, taken.opt, taken.max}), resize=to_levels,
    )  # fmt: skip


def _suite(artifact: Artifact, path: Path | None) -> ParitySuite:
    if path is None:
        return ParitySuite.load(artifact.read(artifact.file_with_role(SUITE_ROLE)), f"{artifact.path}: parity suite")
    return ParitySuite.load(read_file(path, UNPACKED_CAP_BYTES, f"parity suite {path}", ArtifactError), str(path))


def _pictures(artifact: Artifact, path: Path | None) -> EncoderSuite:
    if path is None:
        stored = artifact.read(artifact.file_with_role(ENCODER_SUITE_ROLE))
        return EncoderSuite.load(stored, f"{artifact.path}: pictures")
    return EncoderSuite.load(read_file(path, UNPACKED_CAP_BYTES, f"pictures {path}", ArtifactError), str(path))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m samx.validators.child", description=main.__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--suite", type=Path, help="instead of the one in the artifact")
    parser.add_argument("--pictures", type=Path, help="instead of those in the artifact, for its encoder")
    parser.add_argument("--subject", help="what the report calls the artifact; its directory's name by default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--level", choices=LEVELS, default="graph")
    parser.add_argument("--nonce")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--calls", type=int, default=0, help="to ask of one session at least")
    return parser


if __name__ == "__main__":
    sys.exit(main())
