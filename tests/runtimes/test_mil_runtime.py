"""The MIL evaluator as a runtime: functions by points, padded points, placement, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mil_packages import artifact, edited, operation
from toys import arrays, image_tensors, prompt_tensors, toy_decoder

from samx.artifacts.manifest import Manifest
from samx.artifacts.store import Artifact
from samx.errors import ArtifactError, MissingExtraError, PromptError, UnavailableError
from samx.exporters.coreml.convert import write_package
from samx.formats.coreml.contract import Arrays, Call, Signature
from samx.formats.coreml.package import DECODER, PackageFiles, package_from_directory, unpacked
from samx.formats.coreml.program import Program, load_program
from samx.models.fixed.decoder import NeuralEngineDecoder
from samx.models.session import Feed
from samx.models.shape_range import ShapeRange
from samx.models.spec import PADDED_POINT, DecoderSpec, sam1_spec
from samx.runtimes.base import Padding
from samx.runtimes.coreml import packages
from samx.runtimes.coreml.packages import OpenedPackages, open_packages
from samx.runtimes.mil import evaluate
from samx.runtimes.mil import runtime as mil
from samx.runtimes.mil.evaluate import UnknownOperationError
from samx.runtimes.mil.operations import OPERATIONS
from samx.runtimes.torch import TorchRuntime

SPEC = sam1_spec(image_size=64)
IMAGE = arrays(image_tensors(SPEC))
OPTIONS: dict[str, Any] = {
    "slots": True, "points": [1, 1, 4], "prompts": [1, 1, 1], "contract": "samx",
    "functions": {"points_1": 1, "points_4": 4},
}  # fmt: skip


def prompts(n: int, labels: list[int]) -> Feed:
    return arrays(prompt_tensors(SPEC, n, labels))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy decoder in float32: functions for 1 and 4 rows of points, one prompt a call."""
    path = tmp_path_factory.mktemp("mil") / DECODER
    signature = Signature(DECODER, SPEC.inputs, SPEC.outputs)
    functions = {name: {"prompts": 1, "points": n} for name, n in OPTIONS["functions"].items()}
    module = NeuralEngineDecoder(toy_decoder(SPEC))
    write_package(module, signature, functions, "points_1", path, ios=18, weights=None, metadata={})
    return path


@pytest.fixture(scope="module")
def sealed(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifact(tmp_path_factory.mktemp("sealed") / "artifact", package, SPEC, OPTIONS)


@pytest.fixture(scope="module")
def opened(sealed: Artifact) -> OpenedPackages:
    return open_packages(sealed)


@pytest.fixture(autouse=True)
def read_once(opened: OpenedPackages, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the same bytes once for all tests."""

    def load(files: PackageFiles, where: str) -> Program:
        return opened.programs[DECODER] if files == opened.files[DECODER] else load_program(files, where)

    monkeypatch.setattr(packages, "load_program", load)


@pytest.fixture
def session(sealed: Artifact) -> mil.MilRuntime:
    made = mil.open_artifact(sealed)
    made.set_image(IMAGE)
    return made


def with_options(sealed: Artifact, options: Mapping[str, Any], spec: DecoderSpec = SPEC) -> Artifact:
    """Give the artifact other options: the package stays as it is."""
    manifest: Manifest = replace(sealed.manifest, options={**OPTIONS, **options}, spec=spec)
    return replace(sealed, manifest=manifest)


def functions_run(session: mil.MilRuntime) -> list[str]:
    found: list[str] = session.placement().details["functions"]
    return found


@pytest.mark.parametrize(("labels", "name"), [([1], "points_1"), ([1, 0], "points_4"), ([2, 3, 1, 0], "points_4")])
def test_prompts_get_the_smallest_function_that_holds_them(
    session: mil.MilRuntime, labels: list[int], name: str
) -> None:
    session.decode(prompts(1, labels))
    assert functions_run(session) == [f"{DECODER}/{name}"]


@pytest.mark.parametrize("labels", [[1], [1, -1], [2, 3, 1], [1, 0, 1, 0]])
def test_it_computes_what_the_reference_computes(session: mil.MilRuntime, labels: list[int]) -> None:
    reference = TorchRuntime(toy_decoder(SPEC))
    reference.set_image(IMAGE)
    feed = prompts(3, labels)
    found = session.decode(feed)
    for name, wanted in reference.decode(feed).items():
        assert (str(found[name].dtype), found[name].shape) == ("float32", wanted.shape)
        np.testing.assert_allclose(found[name], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_a_padded_point_changes_no_bit(sealed: Artifact) -> None:
    several, alone = mil.open_artifact(sealed), mil.open_artifact(sealed)
    feed = prompts(1, [1])
    empty = {
        "point_coords": np.pad(feed["point_coords"], ((0, 0), (0, 1), (0, 0)), constant_values=31.0),
        "point_labels": np.pad(feed["point_labels"], ((0, 0), (0, 1)), constant_values=PADDED_POINT),
    }
    for session in (several, alone):
        session.set_image(IMAGE)
    filled, plain = several.decode(empty), alone.decode(feed)
    assert (functions_run(several), functions_run(alone)) == ([f"{DECODER}/points_4"], [f"{DECODER}/points_1"])
    for name, wanted in plain.items():
        np.testing.assert_array_equal(filled[name], wanted)


def test_too_many_points_name_the_limit(session: mil.MilRuntime) -> None:
    with pytest.raises(PromptError, match=r"too many points a prompt.*found 5, expected at most 4"):
        session.decode(prompts(1, [1] * 5))


class TestPlacement:
    def test_it_says_what_ran_and_what_it_shows(self, session: mil.MilRuntime) -> None:
        session.decode(prompts(2, [1]))
        placement = session.placement()
        assert (placement.runtime, placement.requested, placement.honoured) == ("mil", "cpu", True)
        assert placement.operations["cpu"] > 100
        assert placement.details["torch"] == torch.__version__
        assert placement.details["coremltools"].startswith("9.")
        assert placement.details["counted"] == "MIL operations"
        assert "not the Neural Engine's own" in placement.details["arithmetic"]

    def test_operations_add_up_over_functions(self, session: mil.MilRuntime) -> None:
        session.decode(prompts(1, [1]))
        one = session.placement().operations["cpu"]
        session.decode(prompts(1, [1, 1]))
        assert functions_run(session) == [f"{DECODER}/points_1", f"{DECODER}/points_4"]
        assert session.placement().operations["cpu"] > one

    def test_a_function_is_compiled_once(self, session: mil.MilRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
        session.decode(prompts(1, [1]))
        monkeypatch.setattr("samx.runtimes.mil.evaluate.Evaluator", lambda *a: pytest.fail("compiled again"))
        session.decode(prompts(2, [1]))


class TestPadding:
    def padded(self, padding: Padding, n: int, labels: list[int]) -> Feed:
        return padding.padded(dict(prompts(n, labels)))

    @pytest.mark.parametrize(("points", "slots"), [(1, 1), (2, 4), (4, 4), (5, 8)])
    def test_points_are_filled_to_the_next_size_there_is(self, points: int, slots: int) -> None:
        feed = self.padded(Padding(ShapeRange(1, 2, 8), ShapeRange(1, 1, 1), (1, 4, 8)), 1, [1] * points)
        assert feed["point_coords"].shape == (1, slots, 2)
        assert feed["point_labels"].tolist() == [[1] * points + [PADDED_POINT] * (slots - points)]

    def test_prompts_are_filled_by_repeating_the_last(self) -> None:
        feed = self.padded(Padding(ShapeRange(1, 2, 8), ShapeRange(3, 3, 3), (1, 4, 8)), 2, [1])
        assert feed["point_coords"][1:, 0].tolist() == [feed["point_coords"][1, 0].tolist()] * 2

    @pytest.mark.parametrize(("points", "slots"), [(1, 2), (3, 3)])
    def test_without_sizes_every_number_in_the_span_is_one(self, points: int, slots: int) -> None:
        feed = self.padded(Padding(ShapeRange(2, 2, 8), ShapeRange(1, 1, 1)), 1, [1] * points)
        assert feed["point_labels"].shape == (1, slots)


def test_a_call_gets_fixed_shapes_and_the_threads_asked_for(opened: OpenedPackages) -> None:
    before = torch.get_num_threads()
    calls: list[tuple[str, tuple[int, ...], int]] = []

    def watch(call: Call, function: str, image: Arrays, prompts: Feed) -> Arrays:
        calls.append((function, prompts["point_labels"].shape, torch.get_num_threads()))
        return opened.contract.decode(call, function, image, prompts)

    watched = replace(opened, contract=replace(opened.contract, decode=watch))
    session = mil.MilRuntime(SPEC, watched, {}, threads=before + 1)
    session.set_image(IMAGE)
    assert len(session.decode(prompts(2, [1, 0]))["low_res_masks"]) == 2
    assert calls == [("points_4", (1, 4), before + 1)] * 2
    assert torch.get_num_threads() == before


class TestRefused:
    def test_another_device(self, sealed: Artifact) -> None:
        with pytest.raises(UnavailableError, match=r"found 'ane', expected cpu.*Mac"):
            mil.open_artifact(sealed, "ane")
        assert mil.devices() == ["cpu"]

    def test_without_torch_the_extra_is_named(self, sealed: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "torch", None)
        with pytest.raises(MissingExtraError, match="needs the library 'torch'"):
            mil.open_artifact(sealed)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"contract": "other"}, "a contract that is not known: found 'other'"),
            ({"contract": ["samx"]}, "a contract that is not known"),
            ({"functions": {"points_1": 1}}, "points and functions disagree"),
            ({"functions": {"points_1": 1, "main": 4}}, "has no function of this name: found main"),
            ({"functions": {"points_1": 4, "points_4": 1}}, "inputs of 'points_4' .* are not the decoder's"),
            ({"slots": False}, "no fixed number of prompts"),
            ({"prompts": [1, 1, 2]}, r"no fixed number of prompts: found \[1, 1, 2\]"),
            ({"prompts": [2, 2, 2]}, "inputs of 'points_1' .* are not the decoder's"),
        ],
    )
    def test_options_that_do_not_fit_the_package(
        self, sealed: Artifact, options: Mapping[str, Any], words: str
    ) -> None:
        with pytest.raises(ArtifactError, match=words):
            mil.open_artifact(with_options(sealed, options))

    def test_a_package_of_another_decoder(self, sealed: Artifact) -> None:
        other = sam1_spec(image_size=64, masks="single")
        with pytest.raises(ArtifactError, match=r"outputs of 'points_1' .* expected low_res_masks \(1, 1, 16, 16\)"):
            mil.open_artifact(with_options(sealed, {}, other))

    def test_tampered_weights(self, package: Path, tmp_path: Path) -> None:
        opened = artifact(tmp_path / "artifact", package, SPEC, OPTIONS)
        weights = opened.path / DECODER / "Data/com.apple.CoreML/weights/weight.bin"
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
        with pytest.raises(ArtifactError, match=r"weight\.bin was altered"):
            mil.open_artifact(opened)

    def test_an_unknown_operation_is_no_skip(self, package: Path, tmp_path: Path) -> None:
        def change(spec: Any) -> None:
            operation(spec, "relu", "points_1").type = "local_response_norm_of_nobody"

        with unpacked(edited(package_from_directory(package), change)) as path:
            opened = artifact(tmp_path / "artifact", path, SPEC, OPTIONS)
        with pytest.raises(ArtifactError, match="coremltools does not know: found local_response_norm_of_nobody 'relu"):
            mil.open_artifact(opened)

    def test_an_operation_outside_the_table_stops_the_first_call(
        self, sealed: Artifact, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        known = {name: entry for name, entry in OPERATIONS.items() if name != "softmax"}
        monkeypatch.setattr(evaluate, "OPERATIONS", known)
        session = mil.open_artifact(sealed)
        session.set_image(IMAGE)
        with pytest.raises(UnknownOperationError, match="found softmax 'softmax"):
            session.decode(prompts(1, [1]))
