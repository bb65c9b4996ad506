"""What the pages say to type works as it is written. Pages of seconds here; all of them, whole, with -m slow."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from doc_pages import NEEDS, PAGES, ROOT, Block, blocks, line, runnable, script
from PIL import Image

from samx.demo.picture import write_picture

pytestmark = pytest.mark.long

# Run on artifacts that are there already, with what each has to print.
MADE = {
    "README.md": ("ran: samx validate vit-b", "ran: samx doctor", "ran: python"),
    "docs/app-developers.md": ("ran: samx inspect sam1-demo-onnx", "(768, 1024)", "overlay.png"),
    "docs/onnx.md": ("ran: python",),
    "docs/predictor.md": ("(2, 3, 960, 1280)",),
    "docs/adding-a-family.md": ("[1, 2, 0]",),
    "docs/pytorch.md": ("ran: python",),
    "docs/devices/server.md": ("ran: python",),
}
NAMES = ("decoder", "vit-b", "sam1-demo-onnx")  # of the demo's artifact in the pages
COMMANDS = {"samx": "from samx.cli import main; main()", "python": None, "python3": None}


def tools(folder: Path) -> dict[str, str]:
    """Put this samx and this Python first on the path of a page's commands."""
    folder.mkdir()
    for name, code in COMMANDS.items():
        call = f'exec "{sys.executable}"' + (f" -c '{code}'" if code else "") + ' "$@"\n'
        (folder / name).write_text(f"#!/bin/sh\n{call}", encoding="utf-8")
        (folder / name).chmod(0o755)
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": paths, "NO_COLOR": "1"}


def pictures(folder: Path) -> None:
    """Draw the pictures that pages name, and an embedding."""
    write_picture(folder / "scene.png")
    photo = Image.open(folder / "scene.png").convert("RGB").resize((1280, 960))
    photo.save(folder / "photo.jpg")
    photo.save(folder / "photo.png")
    features = np.random.default_rng(0).normal(0, 0.5, (1, 256, 64, 64)).astype(np.float32)
    np.savez(folder / "photo.npz", image_embeddings=features)


def checkpoints(folder: Path) -> None:
    """Save the demo's weights as Meta saves its own, as released files are named; SAM 1's with a small encoder."""
    import torch
    from safetensors.torch import load_file
    from upstream_encoders import meta_vit

    from samx.demo import demo_checkpoint

    encoder = {f"image_encoder.{name}": tensor for name, tensor in meta_vit(1024, out=256).state_dict().items()}
    demo = load_file(demo_checkpoint("sam1"))
    decoder = {name: tensor for name, tensor in demo.items() if not name.startswith("image_encoder.")}  # not its own
    torch.save({**decoder, **encoder}, folder / "sam_vit_b_01ec64.pth")
    torch.save({"model": load_file(demo_checkpoint("sam2"))}, folder / "sam2.1_hiera_tiny.pt")


def ran(page: str, folder: Path, *options: str) -> str:
    """Run a page in a folder, and return what it printed."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "doc_pages.py"), str(ROOT / page), *options], cwd=folder,
        env=tools(folder / "tools"), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("page", MADE)
def test_a_page_works_on_artifacts_that_are_there(
    page: str, demo_artifact: Path, float_encoder: Path, tmp_path: Path
) -> None:
    pictures(tmp_path)
    for name in NAMES:
        shutil.copytree(demo_artifact, tmp_path / name)
    shutil.copy(float_encoder, tmp_path / "vit-b-encoder.onnx")
    said = ran(page, tmp_path, "--made")
    assert [part for part in MADE[page] if part not in said] == []


def has_work(page: Path) -> bool:
    return any(block.language == "python" or script(block) for block in runnable(page))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", [str(page.relative_to(ROOT)) for page in PAGES if has_work(page)])
def test_a_page_works_as_it_is_written(page: str, demo_artifact: Path, float_encoder: Path, tmp_path: Path) -> None:
    """From nothing but pictures and checkpoints; pages that measure or open what another page makes find it made."""
    pictures(tmp_path)
    checkpoints(tmp_path)
    shutil.copy(float_encoder, tmp_path / "vit-b-encoder.onnx")
    exported = {block.code for block in runnable(ROOT / page)}
    if any("-o photo.npz" in code for code in exported):
        (tmp_path / "photo.npz").unlink()
    for name in NAMES:
        if not any(f"-o {name}\n" in code or (f'"{name}")' in code and "samx.export" in code) for code in exported):
            shutil.copytree(demo_artifact, tmp_path / name)
    assert "ran: " in ran(page, tmp_path)


class TestRules:
    def test_what_needs_something_is_not_run(self) -> None:
        block = Block("bash", "samx doctor  # all of it\nsamx build x  # needs: nvidia\nmake test\nsamx inspect a\n")
        assert script(block) == "samx doctor\nsamx inspect a"
        assert script(block, ("samx inspect",)) == "samx inspect a"
        assert Block("bash", "# needs: mac\nsamx doctor\n").needs == ("mac",)

    def test_an_exit_code_that_a_comment_allows_is_no_failure(self) -> None:
        block = Block("bash", "samx report a --baseline b   # exit code 4 if something became slower for sure\n")
        assert script(block) == "samx report a --baseline b || [ $? = 4 ]"

    def test_several_needs_and_a_remark_are_read(self) -> None:
        assert line("make gpu  # needs: checkout, nvidia (8 minutes)").needs == ("checkout", "nvidia")
        assert {*line("x  # needs: checkout, nvidia (8 minutes)").needs} <= set(NEEDS)

    def test_a_page_that_fails_is_seen(self, tmp_path: Path) -> None:
        page = tmp_path / "page.md"
        page.write_text("```bash\nsamx inspect nothing\n```\n", encoding="utf-8")
        with pytest.raises(AssertionError, match="nothing"):
            ran(str(page), tmp_path)
        page.write_text("```python\nassert 1 == 2, 'planted'\n```\n", encoding="utf-8")
        shutil.rmtree(tmp_path / "tools")
        with pytest.raises(AssertionError, match="AssertionError: planted"):
            ran(str(page), tmp_path)

    def test_most_blocks_are_run(self) -> None:
        """Marks are for what cannot be run, not for what nobody tried."""
        pages = [page for page in PAGES if page.name != "cli.md"]
        all_blocks = [block for page in pages for block in blocks(page, "bash", "python")]
        assert sum(not block.needs and not block.excerpt for block in all_blocks) > 0.6 * len(all_blocks)
