"""What people are told about an artifact and about their machine."""

from __future__ import annotations

from typing import Any

import pytest

from samx.artifacts.manifest import CheckpointEntry, Evidence, FileEntry, Manifest
from samx.models.spec import DecoderSpec, sam1_spec, sam2_spec
from samx.pages import WIDTH, artifact_page, doctor_page, flat_page

HASH = "ab" * 32
NOW = "2026-11-22T10:00:00+00:00"


def facts(spec: DecoderSpec, *, target: str = "onnx", encoder: bool = False, **changes: Any) -> dict[str, Any]:
    files = {
        "decoder.onnx": FileEntry(HASH, 1024, "decoder"),
        "parity_report.json": FileEntry(HASH, 9, "parity_report"),
    }
    files |= {"encoder.onnx": FileEntry(HASH, 9, "encoder")} if encoder else {}
    evidence = (Evidence("graph", "parity_report.json", True, "onnxruntime", "cpu", NOW),)
    checkpoint = CheckpointEntry("mine.pt", "Meta SAM 2.1", HASH, 99)
    manifest = Manifest(
        target, "fp32", spec, checkpoint, files=files, options={"prompts": [1, 8, 64], "form_reason": "many words"},
        **{"evidence": evidence, **changes},
    )  # fmt: skip
    shown = {"parity_report.json": "parity passed: 13 cases"}
    return {"path": "tiny", "bytes": 1024, "unlisted_files": [], "manifest": manifest.to_json(), "shown": shown}


def text(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


def test_it_names_the_weights_the_target_and_what_was_shown() -> None:
    page = text(artifact_page(facts(sam1_spec())))
    assert page.startswith("SAM mask decoder for ONNX Runtime, fp32, three masks a prompt from Meta SAM 2.1: mine.pt")
    assert "graph on cpu: parity passed: 13 cases" in page
    assert "prompts 1 to 64" in page
    assert "many words" not in page


@pytest.mark.parametrize("spec", [sam1_spec(), sam2_spec(mask_input=True)])
def test_it_names_every_tensor_with_its_shape(spec: DecoderSpec) -> None:
    page = artifact_page(facts(spec))
    for tensor in (*spec.inputs, *spec.outputs):
        assert any(line.startswith(f"  {tensor.name}  ({', '.join(map(str, tensor.shape))})") for line in page)


def test_sam2s_encoder_contract_is_said() -> None:
    page = text(artifact_page(facts(sam2_spec())))
    assert "no_mem_embed added" in page
    assert "after conv_s0" in page
    assert "--embedding photo.npz" in page


def test_an_encoder_inside_is_named_and_no_embedding_asked_for() -> None:
    page = text(artifact_page(facts(sam2_spec(), encoder=True)))
    assert "The image encoder lies in it: encoder.onnx." in page
    assert "--embedding" not in page


def test_what_was_not_shown_is_said_and_what_is_left_to_do() -> None:
    page = text(artifact_page(facts(sam1_spec(), target="trt")))
    assert "Not shown: that it runs on 'cuda' (an NVIDIA GPU), and how fast it is there." in page
    assert "'samx build tiny' builds the engine, 'samx validate tiny --device cuda' compares it" in page


def test_evidence_on_the_device_ends_the_doubt() -> None:
    shown = Evidence("device", "parity_report.json", True, "tensorrt", "cuda", NOW)
    assert "Not shown" not in text(artifact_page(facts(sam1_spec(), target="trt", evidence=(shown,))))


def test_no_evidence_is_said() -> None:
    assert "Shown about it: Nothing." in text(artifact_page(facts(sam1_spec(), evidence=())))


def test_a_strangers_file_beside_it_is_named() -> None:
    assert "never read: notes.txt" in text(artifact_page({**facts(sam1_spec()), "unlisted_files": ["notes.txt"]}))


def test_pages_fit_a_terminal() -> None:
    lines = [*artifact_page(facts(sam2_spec(mask_input=True), target="coreml")), *doctor_page(machine())]
    assert max(map(len, lines)) <= WIDTH


def machine(exports: bool = True, runs: bool = True) -> dict[str, Any]:
    def ability(name: str, available: bool, fix: str) -> dict[str, Any]:
        reason, advice = (None, None) if available else ("not installed: it", fix)
        versions = {"library": "1.2"} if available else {}
        devices = ["cpu"] if available else []
        return {
            "name": name, "available": available, "versions": versions, "reason": reason, "fix": advice,
            "devices": devices,
        }  # fmt: skip

    abilities = [ability("export", exports, "pip install A"), ability("run onnx (ONNX Runtime)", runs, "pip install B")]
    return {"samx": "1", "python": "3.10", "platform": "Linux", "abilities": abilities}


def test_a_machine_that_can_do_all_is_told_what_to_type() -> None:
    page = text(doctor_page(machine()))
    assert "Works here: export on cpu library 1.2 run onnx (ONNX Runtime) on cpu" in page
    assert "Does not work here" not in page
    assert "samx export CHECKPOINT -o DIR" in page


def test_a_machine_that_cannot_is_told_what_to_install() -> None:
    page = text(doctor_page(machine(exports=False, runs=False)))
    assert "Works here" not in page
    assert "run onnx (ONNX Runtime) not installed: it. pip install B" in page
    assert "What to do next: pip install A, to export" in page
    assert "samx validate" not in page


def test_facts_of_any_shape_are_listed() -> None:
    found = flat_page({"a": {"b": [1, 2]}, "c": [{"d": None}], "e": "x"})
    assert found == ["a.b  1, 2", "c[0].d  None", "e  x"]
