"""samx inspect tells which programs take an ONNX decoder, and what would go wrong in which."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from samx.commands.inspect import inspect
from samx.contracts.adapt import CONTRACT_KEY, declared
from samx.contracts.table import CONTRACTS, Contract
from samx.errors import InputError
from samx.formats.onnx import ELEMENT_TYPES as TYPES
from samx.models.spec import DecoderSpec, TensorSpec, family_spec

SAM1, SAM2 = family_spec("sam1", mask_input=True), family_spec("sam2", mask_input=True)


def written(folder: Path, inputs: Sequence[Any], outputs: Sequence[Any], **metadata: object) -> Path:
    """Write a file of this signature, which computes nothing."""
    model = onnx.helper.make_model(onnx.helper.make_graph([], "signature", inputs, outputs))
    for key, value in metadata.items():
        model.metadata_props.add(key=f"samx.{key}", value=json.dumps(value))
    path = folder / "decoder.onnx"
    onnx.save(model, path)
    return path


def values(tensors: Sequence[TensorSpec]) -> list[onnx.ValueInfoProto]:
    return [onnx.helper.make_tensor_value_info(one.name, TYPES[one.dtype], one.shape) for one in tensors]


def native(folder: Path, spec: DecoderSpec) -> Path:
    """Write the signature of samx's own graph."""
    return written(folder, values(spec.inputs), values(spec.outputs), spec=spec.to_json())


def signature(contract: Contract) -> tuple[list[Any], list[Any]]:
    spec = family_spec(contract.families[0], masks=contract.masks)
    first, second = (
        [declared(port, contract, spec) for port in ports] for ports in (contract.inputs, contract.outputs)
    )
    return first, second


def programs(path: Path) -> dict[str, str]:
    found: dict[str, str] = inspect(path)["programs"]
    return found


@pytest.mark.parametrize("contract", CONTRACTS.values(), ids=list(CONTRACTS))
def test_a_contracts_file_is_taken_by_its_programs(contract: Contract, tmp_path: Path) -> None:
    path = written(tmp_path, *signature(contract), **{CONTRACT_KEY.partition(".")[2]: contract.name})
    found = programs(path)
    for program in contract.programs:
        assert found[f"{program} ({contract.name})"] == "takes it"


def test_sam2s_own_graph_shows_wrong_masks_where_inputs_go_by_position(tmp_path: Path) -> None:
    found = programs(native(tmp_path, SAM2))
    for program in ("samexporter", "X-AnyLabeling"):
        verdict = found[f"{program} (samexporter-sam2)"]
        assert verdict == (
            "runs, and shows wrong masks: the padding point: the program adds none, and the file adds none"
        )
    assert found["AnyLabeling (samexporter-sam2)"].startswith("fails: no input image_embed, high_res_feats_0")
    assert found["osam (rectlabel)"].startswith("fails: no input high_res_features1, high_res_features2, orig_im_size")
    assert found["usls (rectlabel)"].startswith(
        "fails: it has 7 inputs, the program feeds 8 by position; output object"
    )
    assert found["transformers.js (hf-sam2)"].startswith("fails: no input input_points")
    assert found["sam2-onnx (sam2-onnx)"].startswith("fails: no input image_embed, high_res_feat_0, high_res_feat_1")


def test_sam1s_own_graph_fails_by_name(tmp_path: Path) -> None:
    found = programs(native(tmp_path, replace(SAM1, mask_input=False)))
    assert found["CVAT (cvat)"].startswith("fails: no input mask_input, has_mask_input, orig_im_size")
    assert "no output xtl, ytl, xbr, ybr, masks" in found["CVAT (cvat)"]
    taken = {program for program, verdict in found.items() if verdict == "takes it"}
    assert taken == {"EfficientViT-SAM's demos (evit)"}


def test_four_masks_in_a_program_that_shows_the_first(tmp_path: Path) -> None:
    found = programs(written(tmp_path, *signature(CONTRACTS["meta"]), contract="meta"))
    assert found["usls (meta)"] == "takes it"
    wanted = "runs, and shows wrong masks: it has 4 masks, and the program shows the first, which is not the best one"
    assert found["AnyLabeling (meta-single)"] == wanted
    assert found["osam (osam)"] == wanted


def test_padding_added_twice(tmp_path: Path) -> None:
    found = programs(written(tmp_path, *signature(CONTRACTS["meta"]), contract="cvat"))
    assert "the program adds one already, and the file adds one" in found["usls (meta)"]


def test_of_a_foreign_file_it_is_said_what_no_file_tells(tmp_path: Path) -> None:
    found = programs(written(tmp_path, *signature(CONTRACTS["samexporter-sam2"])))
    assert found["AnyLabeling (samexporter-sam2)"] == (
        "takes it, if it adds the padding point itself, which no file tells"
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"orig_im_size": (TYPES["int64"], [2])}, "orig_im_size takes int64, is fed float32"),
        ({"has_mask_input": (TYPES["float32"], [1, 1])}, "has_mask_input has shape (1, 1), is fed (any)"),
        ({"image_embeddings": (TYPES["float32"], [1, 256, 32, 32])}, "(1, 256, 32, 32), is fed (1, 256, 64, 64)"),
        ({"mask_input": (TYPES["float32"], [1, 1, 288, 288])}, "is fed (any, 1, 256, 256)"),
    ],
    ids=str,
)  # fmt: skip
def test_types_axes_and_sizes_are_compared(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    inputs, outputs = signature(CONTRACTS["meta"])
    made = [onnx.helper.make_tensor_value_info(v.name, *changes[v.name]) if v.name in changes else v for v in inputs]
    verdict = programs(written(tmp_path, made, outputs))["usls (meta)"]
    assert verdict.startswith("fails: ")
    assert expected in verdict


SAM2_ONNX, SAM2_ONNX_PROGRAM = CONTRACTS["sam2-onnx"], "sam2-onnx (sam2-onnx)"


def test_sam2_onnx_takes_the_file_of_its_own_script(tmp_path: Path) -> None:
    """Its script traces one prompt: every size is a number, but how many points there are."""
    inputs, outputs = signature(SAM2_ONNX)
    for value in (*inputs, *outputs):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param not in ("", "points"):
                dim.dim_value = 1
    found = programs(written(tmp_path, inputs, outputs))
    assert found[SAM2_ONNX_PROGRAM] == "takes it, if it adds the padding point itself, which no file tells"
    assert found["samexporter (samexporter-sam2)"].startswith("fails: point_labels takes int64, is fed float32")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"point_labels": (TYPES["float32"], [1, None])}, "point_labels takes float32, is fed int64"),
        ({"has_mask_input": (TYPES["float32"], [1])}, "has_mask_input has shape (1), is fed (any, 1)"),
        ({"image_embed": (TYPES["float32"], [1, 128, 64, 64])}, "(1, 128, 64, 64), is fed (1, 256, any, any)"),
        ({"low_res_masks": (TYPES["float32"], [1, 3])}, "output low_res_masks has shape (1, 3), is read as (any, any,"),
    ],
    ids=str,
)  # fmt: skip
def test_what_sam2_onnx_cannot_feed_or_read(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    ports = [
        [onnx.helper.make_tensor_value_info(v.name, *changes[v.name]) if v.name in changes else v for v in values]
        for values in signature(SAM2_ONNX)
    ]
    verdict = programs(written(tmp_path, *ports))[SAM2_ONNX_PROGRAM]
    assert verdict.startswith("fails: ")
    assert expected in verdict


def test_a_smaller_frame_is_for_the_program_that_reads_its_size(tmp_path: Path) -> None:
    spec = family_spec("sam2", masks="multimask", image_size=512)
    ports = [[declared(p, SAM2_ONNX, spec) for p in ports] for ports in (SAM2_ONNX.inputs, SAM2_ONNX.outputs)]
    assert programs(written(tmp_path, *ports, contract="sam2-onnx"))[SAM2_ONNX_PROGRAM] == "takes it"
    samexporter = CONTRACTS["samexporter-sam2"]
    ports = [[declared(p, samexporter, spec) for p in ports] for ports in (samexporter.inputs, samexporter.outputs)]
    assert "is fed (1, 256, 64, 64)" in programs(written(tmp_path, *ports))["samexporter (samexporter-sam2)"]


def test_a_size_that_tracing_froze(tmp_path: Path) -> None:
    inputs, outputs = signature(CONTRACTS["meta"])
    outputs[0] = onnx.helper.make_tensor_value_info("masks", TYPES["float32"], [1, 4, 1500, 2250])
    assert "always 1500 x 2250 pixels" in programs(written(tmp_path, inputs, outputs))["usls (meta)"]


def test_an_output_too_many_cannot_be_unpacked(tmp_path: Path) -> None:
    inputs, outputs = signature(CONTRACTS["meta"])
    more = onnx.helper.make_tensor_value_info("more", TYPES["float32"], [1])
    found = programs(written(tmp_path, inputs, [*outputs, more]))
    assert found["usls (meta)"] == "fails: it has 4 outputs, the program reads 3"


def test_another_graph_has_no_verdict(tmp_path: Path) -> None:
    picture = onnx.helper.make_tensor_value_info("picture", TYPES["uint8"], [1, 1024, 1024, 3])
    assert "programs" not in inspect(written(tmp_path, [picture], signature(CONTRACTS["meta"])[1]))


def test_a_shape_that_is_not_stated_takes_any(tmp_path: Path) -> None:
    inputs, outputs = signature(CONTRACTS["meta"])
    for value in (next(one for one in inputs if one.name == "mask_input"), outputs[0]):
        value.type.tensor_type.ClearField("shape")
    verdict = programs(written(tmp_path, inputs, outputs, contract="meta"))["usls (meta)"]
    assert verdict == "takes it"


@pytest.mark.parametrize("data", [b"", onnx.ModelProto(ir_version=8).SerializeToString()], ids=["empty", "no graph"])
def test_a_file_without_a_graph_is_none(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "decoder.onnx"
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"is no ONNX file: found no graph in its {len(data)} bytes"):
        inspect(path)


def test_weights_in_another_file_have_to_lie_beside_it(tmp_path: Path) -> None:
    path = written(tmp_path, *signature(CONTRACTS["meta"]), contract="meta")
    model = onnx.load(path)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(1000, np.float32), "weight"))
    onnx.save(model, path, save_as_external_data=True, location="decoder.data", size_threshold=0)
    weights = tmp_path / "decoder.data"
    assert programs(path)["usls (meta)"] == "takes it"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"lacks its weights: found 3999 bytes, expected .*decoder\.data' with 4000"):
        inspect(path)
    weights.unlink()
    with pytest.raises(InputError, match="lacks its weights: found no such file"):
        inspect(path)
    model = onnx.load(path, load_external_data=False)
    next(entry for entry in model.graph.initializer[-1].external_data if entry.key == "length").value = "-4000"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"nothing of where its weights lie: found '0' and '-4000'"):
        inspect(path)
