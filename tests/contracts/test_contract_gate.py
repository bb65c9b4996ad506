"""A contract's graph is judged by the calls that its programs make, and a planted fault is seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from contract_files import checkpoint, decoder, decoder_session, image, native, opened
from toys import arrays, image_tensors

import samx
from samx.artifacts.commit import seal
from samx.artifacts.store import Artifact
from samx.contracts import table
from samx.contracts.adapt import adapted, write_client
from samx.contracts.gate import Opened, Verdict, judge
from samx.contracts.table import CONTRACTS, Contract, find
from samx.errors import ParityError, UsageError
from samx.models.spec import family_spec

pytestmark = pytest.mark.long

SEED = 5


def judged(contract: Contract, graph: Opened) -> Verdict:
    family = contract.families[0]
    images = [image(family), arrays(image_tensors(checkpoint(family).spec, seed=1))]
    return judge(contract, graph, decoder_session(contract), images, SEED)


@pytest.mark.parametrize("contract", CONTRACTS.values(), ids=list(CONTRACTS))
def test_a_contracts_graph_passes(contract: Contract) -> None:
    verdict = judged(contract, opened(contract))
    assert verdict.failures == []
    assert verdict.calls >= 4
    assert verdict.pixels > 0
    assert 0.9999 <= verdict.mask_iou_min <= 1
    assert verdict.facts(contract)["calls"] == verdict.calls


def planted(contract: Contract, **changes: Any) -> Opened:
    """Write the graph of another contract, and open it as this one's."""
    wrong, spec = replace(contract, **changes), native(contract)
    model = adapted(onnx.load_from_string(decoder(spec)), wrong, spec)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs, outputs = ([one.name for one in ports] for ports in (session.get_inputs(), session.get_outputs()))
    return Opened(inputs, outputs, lambda values: session.run(None, dict(zip(inputs, values, strict=True))))


def swapped(ports: tuple[Any, ...], first: int, second: int) -> tuple[Any, ...]:
    """Let two ports of the same type and rank hold each other's tensor, under their own names."""
    found = list(ports)
    found[first] = replace(ports[first], holds=ports[second].holds)
    found[second] = replace(ports[second], holds=ports[first].holds)
    return tuple(found)


def changed(ports: tuple[Any, ...], place: int, **changes: Any) -> tuple[Any, ...]:
    """Change what a port takes."""
    return (*ports[:place], replace(ports[place], **changes), *ports[place + 1 :])


SAM2_ONNX = CONTRACTS["sam2-onnx"]
SAM2, RECTLABEL, SINGLE = CONTRACTS["samexporter-sam2"], CONTRACTS["rectlabel"], CONTRACTS["meta-single"]
FAULTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "no padding inside": ("samexporter-sam2", {"padding": "program"}, "differs"),
    "padding twice": ("meta", {"padding": "graph"}, "differs"),
    "padding beside a box": ("cvat", {"padding": "graph"}, "mask IoU"),
    "padding for points alone": ("hf-sam2", {"padding": "graph_without_box"}, "differs"),
    "no clamp": ("samexporter-sam2", {"clamps": False}, "differs"),
    "through the frame": ("rectlabel", {"resizing": "through_frame"}, "mask IoU"),
    "no frame": ("meta", {"resizing": "direct"}, "mask IoU"),
    "masks and low-resolution masks swapped": ("meta", {"outputs": swapped(SINGLE.outputs, 0, 2)}, "shape"),
    "four masks": ("meta-single", {"picks": False}, "shape"),
    "one mask": ("meta", {"picks": True}, "shape"),
    "a clamp that the program has": ("sam2-onnx", {"clamps": True}, "differs"),
    "no padding behind sam2-onnx's names": ("sam2-onnx", {"padding": "program"}, "differs"),
    "labels of float32": ("sam2-onnx", {"inputs": changed(SAM2_ONNX.inputs, 4, dtype="float32")}, "data type"),
    "a flag of one axis": ("sam2-onnx", {"inputs": changed(SAM2_ONNX.inputs, 6, axes=("flags",))}, "nvalid rank"),
    "scores in front of masks": ("sam2-onnx", {"outputs": SAM2_ONNX.outputs[::-1]}, "outputs are"),
    "another order of inputs": ("samexporter-sam2", {"inputs": SAM2.inputs[::-1]}, "inputs are"),
    "another order of outputs": ("rectlabel", {"outputs": RECTLABEL.outputs[::-1]}, "outputs are"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "expected"), FAULTS.values(), ids=list(FAULTS))
def test_a_planted_fault_is_seen(name: str, changes: dict[str, Any], expected: str) -> None:
    verdict = judged(CONTRACTS[name], planted(CONTRACTS[name], **changes))
    assert any(expected in line for line in verdict.failures), verdict.failures


Spoil = Callable[[list[Any]], list[Any]]
SPOILS: dict[str, tuple[str, Spoil, str]] = {
    "bounds beyond the mask": ("cvat", lambda found: [found[0] - 1, *found[1:]], "could not|bounds are"),
    "not finite": ("meta", lambda found: [found[0] * np.nan, *found[1:]], "NaN or infinity"),
    "float64": ("evit", lambda found: [found[0].astype(np.float64), found[1]], "must be float32"),
    "an axis too few": ("hf-sam1", lambda found: [found[0][0], found[1]], "axes"),
    "an output less": ("evit", lambda found: found[:1], "zip"),
    "nothing": ("evit", lambda found: [np.zeros_like(value) for value in found], "differs"),
}


@pytest.mark.parametrize(("name", "spoil", "expected"), SPOILS.values(), ids=list(SPOILS))
def test_a_spoilt_answer_is_seen(name: str, spoil: Spoil, expected: str) -> None:
    whole = opened(CONTRACTS[name])
    verdict = judged(CONTRACTS[name], whole._replace(run=lambda values: spoil(whole.run(values))))
    assert any(part in line for line in verdict.failures for part in expected.split("|")), verdict.failures


class Doubtful:
    """A decoder whose predicted IoUs are nearly 0."""

    def __init__(self, whole: Any) -> None:
        self.set_image, self.spec, self.whole = whole.set_image, whole.spec, whole

    def decode(self, prompts: Any) -> Any:
        found = self.whole.decode(prompts)
        return {**found, "iou_predictions": found["iou_predictions"] * np.float32(1e-5)}


@pytest.mark.parametrize(("off", "passes"), [(1e-7, True), (2e-4, False)])
def test_a_predicted_iou_near_0_has_the_scale_of_1(off: float, passes: bool) -> None:
    place = [port.holds for port in SINGLE.outputs].index("iou_predictions")
    whole = opened(SINGLE)

    def run(values: Any) -> Any:
        found = list(whole.run(values))
        found[place] = (found[place] * 1e-5 + off).astype(np.float32)
        return found

    decoder = Doubtful(decoder_session(SINGLE))
    verdict = judge(SINGLE, whole._replace(run=run), decoder, [image(SINGLE.families[0])], SEED)  # type: ignore[arg-type]
    assert (verdict.failures == []) is passes
    assert passes or all("iou_predictions differs" in line for line in verdict.failures)


@pytest.mark.parametrize("ignored", ["mask_input", "has_mask_input"])
def test_a_mask_that_is_not_honoured_is_seen(ignored: str) -> None:
    contract = CONTRACTS["meta"]
    whole, place = opened(contract), [port.holds for port in contract.inputs].index(ignored)

    def run(values: Any) -> Any:
        fed = list(values)
        fed[place] = np.zeros_like(fed[place]) if ignored == "mask_input" else np.abs(fed[place])
        return whole.run(fed)

    assert judged(contract, whole._replace(run=run)).failures


def test_a_runtime_that_raises_is_a_finding() -> None:
    def run(values: Any) -> Any:
        raise RuntimeError("invalid rank\nof an input")

    verdict = judged(CONTRACTS["evit"], opened(CONTRACTS["evit"])._replace(run=run))
    assert verdict.failures[0] == "a point: invalid rank"


@pytest.mark.parametrize(
    ("name", "changes", "found", "expected"),
    [
        ("meta", {"family": "sam2"}, "SAM 2", "sam1"),
        ("rectlabel", {}, "SAM", "sam2"),
        ("sam2-onnx", {}, "SAM", "sam2"),
        ("sam2-onnx", {"family": "sam2", "masks": "single"}, "masks 'single'", "multimask masks"),
        ("sam2-onnx", {"family": "sam2", "frame": "pad"}, "frame 'pad'", "stretch"),
        ("samexporter-sam2", {"family": "sam2", "image_size": 512}, "a frame of 512 px", "1024 px"),
        ("meta", {"image_size": 512}, "a frame of 512 px", "1024 px"),
        ("meta", {"masks": "single"}, "masks 'single'", "all masks"),
        ("meta-single", {"masks": "all"}, "", ""),
        ("evit", {"mask_input": True}, "--mask-input", "no previous mask"),
        ("meta", {"frame": "stretch"}, "frame 'stretch'", "pad"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(name: str, changes: dict[str, Any], found: str, expected: str) -> None:
    changes = {"family": "sam1", **changes}
    spec = family_spec(changes.pop("family"), **changes)
    if not found:
        assert find(name).native(spec).masks == "all"
        return
    with pytest.raises(UsageError) as refused:
        find(name).native(spec)
    assert found in str(refused.value)
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_program_that_reads_the_frames_size_takes_any() -> None:
    assert SAM2_ONNX.native(family_spec("sam2", image_size=512)).mask_input


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"contract": "sam2-onnx"}, "does not fit"),
        ({"contract": "sam2-onnx", "family": "sam2", "precision": "fp16"}, "--fp16"),
        ({"contract": "anything"}, "unknown contract"),
        ({"contract": "meta", "split": True}, "--split"),
        ({"contract": "meta", "precision": "int8"}, "--int8"),
        ({"contract": "rectlabel"}, "does not fit"),
        ({"contract": "meta", "target": "trt"}, "contract"),
    ],
    ids=str,
)
def test_a_contract_is_refused_before_the_work(options: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=expected):
        samx.export(None, tmp_path / "out", encoder=False, **options)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Export the demo model with a contract's graph, as the command does."""
    out = tmp_path_factory.mktemp("contract") / "demo"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(table, "FRAME_PX", 256)  # a sixteenth of the work
        return samx.export(None, out, image_size=256, encoder=False, contract="meta-single", simplify=False)


def copied(artifact: Artifact, folder: Path) -> Path:
    """Copy an artifact's files."""
    for name in artifact.manifest.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(artifact.read(name))
    return folder


def roles(artifact: Artifact) -> dict[str, str]:
    return {name: entry.role for name, entry in artifact.manifest.files.items()}


def test_the_manifest_and_the_report_name_the_contract(exported: Artifact) -> None:
    assert exported.manifest.options["contract"] == "meta-single"
    assert exported.manifest.files["client/decoder.onnx"].role == "client"
    report = samx.validate(exported.path)
    assert report.passed
    assert report.suite["contract"]["name"] == "meta-single"
    assert report.suite["contract"]["calls"] == 10


@pytest.mark.parametrize("changes", [{"padding": "graph"}, {"inputs": SINGLE.inputs[::-1]}], ids=["padding", "order"])
def test_validate_fails_on_another_graph(exported: Artifact, changes: dict[str, Any], tmp_path: Path) -> None:
    folder = copied(exported, tmp_path / "planted")
    wrong = replace(SINGLE, **changes)
    write_client(folder / "decoder.onnx", wrong, exported.manifest.spec, folder)
    seal(folder, exported.manifest, roles(exported))
    report = samx.validate(folder)
    assert not report.passed
    assert report.failures[0].startswith("contract meta-single: ")
    assert all(case.passed for case in report.cases), "the decoder itself is right"


def test_a_contract_that_is_not_known_is_refused(exported: Artifact, tmp_path: Path) -> None:
    folder = copied(exported, tmp_path / "renamed")
    options = {**exported.manifest.options, "contract": "later"}
    seal(folder, replace(exported.manifest, options=options), roles(exported))
    with pytest.raises(ParityError, match="unknown contract"):
        samx.validate(folder)
