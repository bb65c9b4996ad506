"""A thousand prompts on one image stay within the stated memory, masks included."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CAP_GIB = 4.0
PROGRAM = """
import resource, sys
from pathlib import Path
import numpy as np
from samx.artifacts.store import Artifact
from samx.runtimes.onnxruntime import open_artifact
from samx.validators.cases import synthetic_images

session = open_artifact(Artifact.open(Path(sys.argv[1])))
session.set_image(synthetic_images(session.spec)[0])
coords = np.random.default_rng(0).uniform(0, 1024, (1000, 2, 2)).astype(np.float32)
outputs = session.decode({"point_coords": coords, "point_labels": np.tile(np.float32([1, -1]), (1000, 1))})
assert outputs["low_res_masks"].shape == (1000, 3, 256, 256)
assert np.isfinite(outputs["low_res_masks"]).all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2)
"""


@pytest.mark.slow
def test_a_thousand_prompts_stay_within_the_cap(demo_artifact: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(demo_artifact)], capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert 1.0 < float(done.stdout) < CAP_GIB
