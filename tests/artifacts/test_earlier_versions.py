"""An artifact that samx 0.1.0 wrote is opened, judged and run as it was: tests/data/artifact-0.1.0.tar.xz.

A toy SAM 2 decoder (128 px, one layer, weights of three values, so that the file is small), exported with
`samx export toy.pth --image-size 128 --split --mask-input`. Beside it lie the outputs that 0.1.0 gave for one case.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

import samx
from samx.commands.inspect import inspect
from samx.commands.validate import validate
from samx.pages import artifact_page
from samx.runtimes.onnxruntime import open_artifact
from samx.validators.child import SUITE_ROLE
from samx.validators.suite import ParitySuite

DATA = Path(__file__).parents[1] / "data"
CASE = "box_and_points"
CLOSE = 1e-5  # logits of about 4: another processor may sum in another order


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the artifact."""
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(DATA / "artifact-0.1.0.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "sam2-toy"


def test_it_says_which_version_wrote_it(earlier: Path) -> None:
    manifest = samx.Artifact.open(earlier).manifest
    assert (manifest.samx, manifest.target, manifest.spec.family) == ("0.1.0", "onnx", "sam2")
    assert "islands" in manifest.options  # an option of that time, by its name of that time


def test_it_gives_the_outputs_that_it_gave(earlier: Path) -> None:
    artifact = samx.Artifact.open(earlier)
    suite = ParitySuite.load(artifact.read(artifact.file_with_role(SUITE_ROLE)), "suite")
    case = next(case for case in suite.cases if case.name == CASE)
    session = open_artifact(artifact, threads=1)
    session.set_image(suite.images[case.image])
    found = session.decode(case.prompts)
    with np.load(DATA / "artifact-0.1.0-masks.npz") as wanted:
        assert set(wanted.files) == set(found)
        for name in wanted.files:
            np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=CLOSE * max(1, abs(wanted[name]).max()))
        assert np.array_equal(found["low_res_masks"] > 0, wanted["low_res_masks"] > 0)


def test_the_gate_judges_it_again(earlier: Path) -> None:
    report = validate(earlier, threads=1)
    assert report.passed
    assert len(report.cases) >= 10


def test_the_front_door_opens_it(earlier: Path) -> None:
    with samx.open(earlier, threads=1) as predictor:
        artifact = samx.Artifact.open(earlier)
        suite = ParitySuite.load(artifact.read(artifact.file_with_role(SUITE_ROLE)), "suite")
        predictor.set_image(embedding=suite.images[0], original_size=(90, 120))
        masks, scores, logits = predictor.predict(box=np.array([10, 10, 80, 70]), multimask_output=True)
    assert (masks.shape, scores.shape, logits.shape) == ((3, 90, 120), (3,), (3, 32, 32))


def test_its_stored_verdict_is_read(earlier: Path) -> None:
    facts = inspect(earlier)
    assert facts["shown"]["parity_report.json"].startswith("parity passed: 17 cases, fp32")
    assert any("parity passed: 17 cases" in line for line in artifact_page(facts))
