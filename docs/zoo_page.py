"""Writes docs/zoo.md from the tables of 'samx zoo' in docs/results: `make docs`."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from samx.artifacts.strict_json import parse
from samx.commands.zoo_table import MEANINGS, ZooTable

HERE = Path(__file__).parent
PAGE, TABLES = HERE / "zoo.md", "zoo-*.json"
# Files as their publishers name them.
RELEASES = {
    "SAM": ("sam_vit_b_01ec64.pth", "sam_vit_l_0b3195.pth", "sam_vit_h_4b8939.pth"),
    "SAM 2": ("sam2_hiera_tiny.pt", "sam2_hiera_small.pt", "sam2_hiera_base_plus.pt", "sam2_hiera_large.pt"),
    "SAM 2.1": (
        "sam2.1_hiera_tiny.pt", "sam2.1_hiera_small.pt", "sam2.1_hiera_base_plus.pt", "sam2.1_hiera_large.pt",
    ),
    "SAM 3": ("sam3.pt", "sam3.1_multiplex.pt"),
    "MobileSAM": ("mobile_sam.pt",),
    "EdgeSAM": ("edge_sam.pth", "edge_sam_3x.pth"),
    "RepViT-SAM": ("repvit_sam.pt",),
    "EfficientViT-SAM": (
        "efficientvit_sam_l0.pt", "efficientvit_sam_l1.pt", "efficientvit_sam_l2.pt", "efficientvit_sam_xl0.pt",
        "efficientvit_sam_xl1.pt",
    ),
    "EdgeTAM": ("edgetam.pt",),
    "EfficientTAM": ("efficienttam_s.pt", "efficienttam_ti.pt"),
    "MedSAM": ("medsam_vit_b.pth",),
    "MedSAM2": ("MedSAM2_latest.pt",),
    "LiteMedSAM": ("lite_medsam.pth",),
    "SAM-Med2D": ("sam-med2d_b.pth",),
    "SAM-HQ": ("sam_hq_vit_b.pth", "sam_hq_vit_l.pth", "sam_hq_vit_h.pth", "sam_hq_vit_tiny.pth"),
    "HQ-SAM 2": ("sam2.1_hq_hiera_large.pt",),
    "EfficientSAM": ("efficient_sam_vitt.pt", "efficient_sam_vits.pt"),
}  # fmt: skip
TITLE = """# The zoo: which checkpoints were run

`samx zoo WEIGHTS_DIR` recognises every checkpoint below a folder by its keys, exports each for every target and
precision with its image encoder, compares each with PyTorch from a picture's bytes to the masks, and keeps `zoo.json`
and `zoo.md`. It takes hours; stopped, it goes on where it was. What this page says was measured that way, and no other.

```bash
samx zoo weights/ --targets onnx --precisions fp32   # needs: files, minutes
samx zoo weights/ -o zoo                             # needs: files, minutes (hours, where there are many)
```

A result is one of: {meanings}. In brackets is what was shown: `graph` is the exported graph on a processor, `lowered`
an engine or package that was built, `device` the target's own device.

Files that are named `random_` have upstream's architecture at random weights, demo models are samx's own.

## Released checkpoints that nobody has run

The tests have these architectures at random weights, beside upstream's code as far as it could be had. Of the released
weights **nobody has run** these; send a `zoo.json` of yours.

{missing}

## What was run

{tables}"""


def page() -> str:
    """Return the page."""
    found = {path.name: ZooTable.from_json(parse(path.read_bytes(), path.name), path.name) for path in _files()}
    ran = {PurePosixPath(row.file).name for table in found.values() for row in table.rows if row.outcome == "passed"}
    missing = {title: [name for name in names if name not in ran] for title, names in RELEASES.items()}
    lines = [f"- {title}: " + ", ".join(f"`{name}`" for name in names) for title, names in missing.items() if names]
    parts = [f"From [{name}](results/{name}): {table.to_markdown()}" for name, table in found.items()]
    meanings = "; ".join(f"**{outcome}** ({meaning})" for outcome, meaning in MEANINGS.items())
    return TITLE.format(meanings=meanings, missing="\n".join(lines), tables="\n\n".join(parts) or "Nothing yet.\n")


def _files() -> list[Path]:
    return sorted((HERE / "results").glob(TABLES))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
