"""Measure every program, print a table, keep the figures: `make clients`.

Both decoders have the demo model's weights, and the image encoder of our export; clicks are asked in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from datetime import datetime, timezone
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import samx
from samx.artifacts.commit import write_file
from samx.artifacts.store import Artifact
from samx.benchmarks.contenders.meta import export_meta
from samx.contracts.table import CLIENT_FOLDER, CONTRACTS, FRAME_PX
from samx.demo import demo_checkpoint
from samx.demo.scenes import generate_scene
from samx.errors import SamxError
from samx.models.checkpoint import LoadedDecoder, load_checkpoint
from samx.picture_encoder import PictureEncoder
from samx.processing.rasters import png_bytes
from tools.programs import browser, theirs
from tools.programs.browser import ProgramError

HERE = Path(__file__).parent
# Meta's exporter freezes the crop of one picture's shape, so that the pictures have that of the labelling programs too.
HEIGHT_PX, WIDTH_PX = PICTURE = (1000, 1500)
LABELLING_PICTURE = (684, 1024)  # that AnyLabeling and X-AnyLabeling name, whatever the picture is
SEED = 900_201  # a scene that the demo model was not trained on
CLICK, CLICKS, BOX = ([(700, 660)], [1]), ([(700, 660), (1050, 480)], [1, 0]), ([(880, 310), (1225, 660)], [2, 3])
AGAIN = (CLICKS, ([(1050, 480), (700, 660)], [1, 0]))  # asked with the mask of their first click
PADDING = (0, 0), -1
ROUNDS = 15  # of every prompt in every decoder
LEAST_IOU = 0.9999
SPLIT = "--split"  # beside contracts: what a page of one's own runs
IN_BROWSER = (("meta", False), (SPLIT, False), ("meta", True), (SPLIT, True))  # with a mask handed back or without
HEAD = (
    "| program | contract | least mask IoU | ours, ms | theirs, ms | times as fast | runtime: ours, ms | theirs, ms |"
    f" times as fast |\n{'|---' * 9}|\n"
)
Writes = Callable[[LoadedDecoder, Path, theirs.Picture], None]


class Program(NamedTuple):
    """Name a program, its package, the contract written for it, and what writes the decoder that it is made for."""

    name: str
    package: str
    family: str
    contract: str
    theirs: Writes
    picture: theirs.Picture = PICTURE
    prompts: Sequence[Any] = (CLICK, CLICKS, BOX)
    again: bool = False  # whether the mask of a prompt's first point is handed back with it
    apart: str = ""  # the folder that it is installed into, where another's modules have the same name


LABELLING = (("AnyLabeling", "anylabeling", ""), ("X-AnyLabeling", "x-anylabeling-cvhub", "x-anylabeling"))
PROGRAMS = (
    Program("samexporter", "samexporter", "sam1", "meta", theirs.samexporter_sam1),
    Program("samexporter", "samexporter", "sam2", "samexporter-sam2", theirs.samexporter_sam2),
    *(
        program
        for name, package, apart in LABELLING
        for program in (
            Program(name, package, "sam1", "meta-single", theirs.meta_single, LABELLING_PICTURE, apart=apart),
            Program(name, package, "sam2", "samexporter-sam2", theirs.samexporter_sam2, apart=apart),
        )
    ),
    Program("osam", "osam", "sam1", "osam", theirs.meta_single_flag),
    Program("osam", "osam", "sam2", "rectlabel", theirs.rectlabel),
    Program("sam2-onnx", "sam2-onnx", "sam2", "sam2-onnx", theirs.sam2_onnx),
    Program("sam2-onnx", "sam2-onnx", "sam2", "sam2-onnx", theirs.sam2_onnx, prompts=AGAIN, again=True),
    Program("transformers.js", "", "sam1", "hf-sam1", theirs.hugging_face, prompts=(CLICK, CLICKS)),
    Program("transformers.js", "", "sam2", "hf-sam2", theirs.hugging_face, prompts=(CLICK, CLICKS)),
)


class Bench(NamedTuple):
    """Hold where things lie."""

    programs: Path  # an environment of Python, with npm's packages in it
    folder: Path

    def export(self, family: str, contract: str | None = None, **options: Any) -> Path:
        """Return our artifact, written where it is asked for first."""
        asked = [contract or "", *(name for name, value in options.items() if value)]
        path = self.folder / "-".join([family, *filter(None, asked)])
        if not path.exists():
            samx.export(None, path, family=family, contract=contract, **options)
        return path

    @property
    def picture(self) -> Path:
        """Return the picture."""
        path = self.folder / "picture.png"
        if not path.exists():
            path.write_bytes(png_bytes(generate_scene(SEED, (WIDTH_PX, HEIGHT_PX)).image))
        return path

    def measured(self, program: Program) -> dict[str, Any]:
        """Export both decoders, and let a program's class answer with either."""
        own, other = self.export(program.family, program.contract) / CLIENT_FOLDER, self.folder / f"{program.name}.onnx"
        program.theirs(checkpoint(program.family), other, program.picture)
        given = {
            "program": program.name, "package": program.package, "family": program.family, "prompts": program.prompts,
            "rounds": ROUNDS, "picture": str(self.picture), "again": program.again,
        }  # fmt: skip
        asked = self._of_node if not program.package else self._of_python
        found = asked(program, given, own, other)
        named = {"program": program.name, "family": program.family, "contract": program.contract}
        return {**named, "again": program.again, **found}

    def _of_python(self, program: Program, given: dict[str, Any], own: Path, other: Path) -> dict[str, Any]:
        contract = CONTRACTS[program.contract]
        assert contract.encoder is not None
        given["encoder"] = str(own / contract.encoder.file)
        given["decoders"] = {"ours": str(own / contract.file), "theirs": str(other)}
        environment = {**os.environ, "PYTHONPATH": str(self.programs / program.apart) if program.apart else ""}
        return answer([self.programs / "bin/python", HERE / "ask.py"], given, environment)

    def _of_node(self, program: Program, given: dict[str, Any], own: Path, other: Path) -> dict[str, Any]:
        root, decoder = self.folder / program.family, CONTRACTS[program.contract].file
        for name in ("ours", "theirs"):
            shutil.copytree(own, root / name, dirs_exist_ok=True)
        shutil.copyfile(other, root / "theirs" / decoder)
        given |= {"modules": str(self.programs), "root": str(root), "decoders": {"ours": "ours", "theirs": "theirs"}}
        return answer(["node", HERE / "ask.mjs"], given, dict(os.environ))

    def in_browser(self, contract: str, again: bool) -> dict[str, Any]:
        """Run a contract's graph, or split graphs, by onnxruntime-web, beside Meta's export, whole or cut."""
        whole, cut = export_meta(checkpoint("sam1"), self.folder)
        own = self.export("sam1", "meta")
        split = self.export("sam1", split=True, mask_input=again)
        ours, other = {
            "meta": ([own / CLIENT_FOLDER / CONTRACTS["meta"].file], whole),
            SPLIT: ([split / "image.onnx", split / "prompt.onnx"], cut),
        }[contract]
        (features,) = PictureEncoder(Artifact.open(own))([generate_scene(SEED, (WIDTH_PX, HEIGHT_PX)).image])
        embedding, runtime = features["image_embeddings"], self.programs / "node_modules/onnxruntime-web/dist"
        given = {
            "prompts": [in_frame(*prompt) for prompt in (AGAIN if again else (CLICK, CLICKS, BOX))], "rounds": ROUNDS,
            "shape": embedding.shape, "picture": PICTURE, "again": again,
        }  # fmt: skip
        found = browser.asked(given, {"ours": ours, "theirs": [other]}, runtime, embedding.tobytes())
        return {"program": "onnxruntime-web", "family": "sam1", "contract": contract, "again": again, **found}


def in_frame(points: Sequence[tuple[int, int]], labels: Sequence[int]) -> tuple[Any, Any]:
    """Return a prompt in pixels of the frame, with the padding that programs send beside points."""
    scaled = [(x * FRAME_PX / WIDTH_PX, y * FRAME_PX / WIDTH_PX) for x, y in points]
    if max(labels) > 1:
        return scaled, list(labels)
    return [*scaled, PADDING[0]], [*labels, PADDING[1]]


@lru_cache
def checkpoint(family: str) -> LoadedDecoder:
    """Read the demo model."""
    return load_checkpoint(demo_checkpoint(family))


def answer(command: Sequence[Any], given: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    """Run a program; JSON in, JSON out.

    Raises: ProgramError.
    """
    done = subprocess.run(
        [str(part) for part in command], input=json.dumps(given), capture_output=True, text=True, env=environment,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise ProgramError(f"{given['program']} failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(found: dict[str, Any]) -> str:
    """Return a line of the table."""
    what = f"`{found['contract']}`" + (", a mask handed back" if found.get("again") else "")
    times = [*times_of(found["median_ms"]), *(times_of(found["run_ms"]) if "run_ms" in found else "---")]
    cells = [f"{found['program']} {found['version']}", what, f"{min(found['mask_iou']):.5f}", *times]
    return f"| {' | '.join(cells)} |\n"


def times_of(median_ms: dict[str, float]) -> list[str]:
    """Return what the table says of two times."""
    ours, other = median_ms["ours"], median_ms["theirs"]
    return [f"{ours:.1f}", f"{other:.1f}", f"{other / ours:.2f}"]


def faults(found: dict[str, Any]) -> list[str]:
    """Say what is wrong with a row: masks that differ, or masks of nothing, which agree whatever they are.

    A mask that is handed back and changes nothing is none, or was not read by either decoder.
    """
    wrong = [f"mask IoU {least:.5f}" for least in found["mask_iou"] if least < LEAST_IOU]
    wrong += ["a prompt without a mask" for pixels in found["mask_pixels"] if not max(pixels)]
    wrong += ["a mask handed back to no effect" for same in found.get("unasked_iou", []) if same >= LEAST_IOU]
    return [f"{found['program']} {found['contract']}: {fault}" for fault in wrong]


def main() -> None:
    """Measure, and fail where a program does, or where its masks are not those of its own export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("programs", type=Path, help="environment that has the programs")
    parser.add_argument("output", type=Path, help="JSON to write")
    parser.add_argument("--only", action="append", help="a program")
    parser.add_argument("--folder", type=Path, help="where exports are kept for the next time")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="samx-programs-") as folder:
        bench = Bench(given.programs.resolve(), (given.folder or Path(folder)).resolve())
        bench.folder.mkdir(parents=True, exist_ok=True)
        asked = [(program.name, partial(bench.measured, program)) for program in PROGRAMS]
        asked += [("onnxruntime-web", partial(bench.in_browser, *what)) for what in IN_BROWSER]
        rows, wrong = told([measure for name, measure in asked if given.only is None or name in given.only])
    write_file(given.output, (json.dumps({**where(), "rows": rows}, indent=2) + "\n").encode())
    if wrong:
        raise SystemExit("\n".join(wrong))


def told(asked: Sequence[Callable[[], dict[str, Any]]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Measure, and print a line of each; return what was found, and what is wrong."""
    rows: list[dict[str, Any]] = []
    wrong = []
    sys.stdout.write(HEAD)
    for measure in asked:
        try:
            with redirect_stdout(sys.stderr):
                found = measure()
        except (ProgramError, SamxError) as error:
            wrong.append(str(error))
            continue
        rows.append(found)
        wrong += faults(found)
        sys.stdout.write(row(found))
        sys.stdout.flush()
    return rows, wrong


def where() -> dict[str, Any]:
    """Say when and on what was measured."""
    return {
        "format": "samx-programs", "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "samx": samx.__version__, "python": platform.python_version(), "machine": platform.platform(),
        "processors": os.cpu_count(), "torch": version("torch"), "rounds": ROUNDS,
    }  # fmt: skip


if __name__ == "__main__":
    main()
