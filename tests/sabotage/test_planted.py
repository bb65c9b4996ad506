"""Faults of backends, planted into toy sessions and into real exports: each must be caught, every time."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from exports import export_job, job_for
from planted import KINDS, OF_THREADS
from toy_sessions import IMAGE_SIZE, SPECS, ToySession
from toys import toy_checkpoint

from samx.artifacts.commit import seal, staging
from samx.artifacts.manifest import CheckpointEntry, Manifest
from samx.artifacts.store import Artifact
from samx.commands.proof import EXPORT_CALLS
from samx.models.session import Session
from samx.models.spec import DecoderSpec, family_spec
from samx.registry import BACKENDS, backend, load
from samx.runtimes.torch import reference_session
from samx.validators.draw import Drawn
from samx.validators.gate import run_gate
from samx.validators.metrics import BOUNDS
from samx.validators.report import ParityReport
from samx.validators.suite import ParitySuite

SEED = secrets.randbits(31)  # anew in each run; a failure names it
Open = Callable[[], Session]


@cache
def toys(family: str) -> tuple[Open, ParitySuite]:
    """Open toy sessions, and what they are judged by: as it is read back from an artifact."""
    reference = ToySession(SPECS[family])
    suite = ParitySuite.build(reference, drawn=SEED)
    return lambda: ToySession(SPECS[family], reference.memory), ParitySuite.load(suite.to_bytes())


def judge(open_session: Open, suite: ParitySuite, another: Open | None = None, seed: int = SEED) -> ParityReport:
    drawn = Drawn(seed, EXPORT_CALLS, another or open_session)
    report = run_gate(open_session(), suite, BOUNDS["fp32"], level="graph", drawn=drawn)
    assert ParityReport.from_bytes(report.to_bytes(), "report") == report
    return report


def planted(kind: str, open_session: Open, seed: int = SEED) -> Open:
    return lambda: KINDS[kind](open_session(), np.random.default_rng(seed))


def test_there_are_many_kinds() -> None:
    assert len(KINDS) + len(OF_THREADS) >= 45


@pytest.mark.parametrize("family", SPECS)
def test_honest_sessions_pass_whatever_is_drawn(family: str) -> None:
    open_session, suite = toys(family)
    for seed in range(SEED, SEED + 8):
        report = judge(open_session, suite, seed=seed)
        assert report.passed, (seed, report.all_failures())
        counts = report.suite["prompts_a_call"]
        assert {1, 2, 3} < set(counts)
        assert max(counts) > 64
        assert any(9 <= count <= 15 for count in counts)
        assert report.suite["seed"] == seed
        assert report.suite["calls_with_other_threads"] == EXPORT_CALLS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", SPECS)
def test_planted_fault_is_caught(family: str, kind: str) -> None:
    open_session, suite = toys(family)
    report = judge(planted(kind, open_session), suite)
    assert not report.passed, f"seed {SEED}"
    assert report.all_failures()


HQ_SPECS = {
    "sam_hq": family_spec("sam_hq", image_size=IMAGE_SIZE, interm_width=24),
    "sam_hq2": family_spec("sam_hq2", image_size=IMAGE_SIZE),
}


class LeavesOut(ToySession):
    """Decode without a part of HQ-SAM's."""

    def __init__(self, spec: DecoderSpec, part: str) -> None:
        super().__init__(spec)
        for weight in self.decoder.mask_decoder.get_submodule(part).parameters():
            weight.zero_()


@cache
def hq_toys(family: str) -> tuple[Open, ParitySuite]:
    reference = ToySession(HQ_SPECS[family])
    suite = ParitySuite.load(ParitySuite.build(reference, drawn=SEED).to_bytes())
    return lambda: ToySession(HQ_SPECS[family], reference.memory), suite


@pytest.mark.parametrize("family", HQ_SPECS)
def test_an_honest_hq_sam_passes(family: str) -> None:
    open_session, suite = hq_toys(family)
    report = judge(open_session, suite)
    assert report.passed, report.all_failures()


@pytest.mark.parametrize(
    ("family", "part"),
    [
        ("sam_hq", "hf_mlp"), ("sam_hq", "compress_vit_feat"), ("sam_hq", "embedding_encoder"),
        ("sam_hq", "embedding_maskfeature"), ("sam_hq2", "hf_mlp"), ("sam_hq2", "embedding_maskfeature.3"),
    ],
)  # fmt: skip
def test_a_part_of_hq_sam_that_is_left_out_is_caught(family: str, part: str) -> None:
    _, suite = hq_toys(family)
    assert not judge(lambda: LeavesOut(HQ_SPECS[family], part), suite).passed


@pytest.mark.parametrize("kind", OF_THREADS)
@pytest.mark.parametrize("family", SPECS)
def test_fault_of_some_numbers_of_threads_is_caught(family: str, kind: str) -> None:
    open_session, suite = toys(family)
    sessions = [planted("wrong after 20 calls", open_session) if wrong else open_session
                for wrong in OF_THREADS[kind]]  # fmt: skip
    assert not judge(sessions[0], suite, sessions[1]).passed


# --- Real exports: of toy weights, because what is planted does not depend on them ------------------------------------

TARGETS = [entry.target for entry in BACKENDS if entry.device == "cpu" and entry.kit]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Artifact, ParitySuite]]:
    """Export each family's toy for a target, once."""
    return cache(lambda family, target: _exported(family, target, tmp_path_factory.mktemp("planted") / target))


def _exported(family: str, target: str, path: Path) -> tuple[Artifact, ParitySuite]:
    spec = SPECS[family]
    loaded = toy_checkpoint(spec)
    with staging(path, overwrite=False) as directory:
        made = export_job(job_for(target, loaded, spec), directory)
        manifest = Manifest(target, "fp32", spec, CheckpointEntry("toy.pth", family, "0" * 64, 3), made.options)
        seal(directory, manifest, made.files)
    suite = ParitySuite.build(reference_session(loaded, spec), drawn=SEED)
    return Artifact.open(path), ParitySuite.load(suite.to_bytes())


def _opener(artifact: Artifact, threads: int) -> Open:
    return partial(load(backend(artifact.manifest.target).runtime), artifact, threads=threads)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("family", SPECS)
def test_honest_export_passes(exported: Callable[..., tuple[Artifact, ParitySuite]], family: str, target: str) -> None:
    artifact, suite = exported(family, target)
    report = judge(_opener(artifact, 2), suite, _opener(artifact, 1))
    assert report.passed, (SEED, report.all_failures())
    assert report.suite["calls_with_other_threads"] == EXPORT_CALLS


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("family", SPECS)
def test_fault_planted_into_an_export_is_caught(
    exported: Callable[..., tuple[Artifact, ParitySuite]], family: str, target: str, kind: str
) -> None:
    artifact, suite = exported(family, target)
    found = judge(planted(kind, _opener(artifact, 2)), suite, planted(kind, _opener(artifact, 1)))
    assert not found.passed, f"seed {SEED}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", OF_THREADS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("family", SPECS)
def test_fault_of_an_exports_threads_is_caught(
    exported: Callable[..., tuple[Artifact, ParitySuite]], family: str, target: str, kind: str
) -> None:
    artifact, suite = exported(family, target)
    openers = [
        planted("wrong after 20 calls", opener) if wrong else opener
        for wrong, opener in zip(OF_THREADS[kind], (_opener(artifact, 2), _opener(artifact, 1)), strict=True)
    ]
    assert not judge(openers[0], suite, openers[1]).passed
