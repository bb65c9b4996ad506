"""The relatives' decoders on every target: exported, opened by the target's own runtime or its graph's, and judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toys import toy_checkpoint

from samx.commands.export import ExportRequest, export
from samx.models import checkpoint
from samx.models.spec import DecoderSpec, family_spec
from samx.registry import BACKENDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SPECS: dict[str, DecoderSpec] = {
    "sam3": family_spec("sam3", image_size=252),
    "sam_hq": family_spec("sam_hq", image_size=256, interm_width=64),
    "sam_hq2": family_spec("sam_hq2", image_size=256),
    "efficientsam": family_spec("efficientsam", image_size=256),
}
# INT8 is searched for minutes, and bfloat16 needs a processor that has it: other tests ask about them.
PAIRS = [(one.target, name) for one in BACKENDS for name in one.precisions if name in ("fp32", "fp16")]


@pytest.mark.parametrize("family", list(SPECS))
@pytest.mark.parametrize(("target", "precision"), PAIRS)
def test_it_is_exported_and_agrees(
    family: str, target: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> Any:
        return toy_checkpoint(SPECS[family])

    monkeypatch.setattr(checkpoint, "load_checkpoint", load)
    request = ExportRequest(tmp_path / "out", Path("toy.pth"), target=target, precision=precision, encoder=False)
    result = export(request)
    assert result.report.passed, result.report.summary()
    assert result.manifest.spec.family == family
    assert result.report.metrics["mask_iou_mean"] > 0.998
