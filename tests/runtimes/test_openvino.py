"""OpenVINO: on the processor, in the arithmetic that was asked for, and said so."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np
import pytest
from openvino_toys import BFLOAT16, SPECS, artifact, capabilities
from toys import arrays, image_tensors, prompt_tensors, toy_checkpoint

from samx.artifacts.store import Artifact
from samx.errors import ArtifactError, UnavailableError
from samx.formats.openvino import check_processor, check_products
from samx.models.session import Feed, Outputs
from samx.registry import backend
from samx.runtimes.openvino import CHUNK, open_artifact
from samx.runtimes.torch import reference_session
from samx.validators.cases import parity_cases
from samx.validators.gate import run_gate
from samx.validators.metrics import bounds_for
from samx.validators.suite import ParitySuite

pytestmark = pytest.mark.long

SPEC = SPECS["split"]


Made = Callable[[str], Artifact]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Write an artifact of two graphs in a precision, each once; no test changes the files."""
    return cache(lambda precision: artifact("split", tmp_path_factory.mktemp("openvino") / precision, precision))


@pytest.fixture(scope="module")
def split(made: Made) -> Artifact:
    """An artifact in float32."""
    return made("fp32")


@pytest.fixture(scope="module")
def suite() -> ParitySuite:
    """The reference's answers to every kind of prompt."""
    return ParitySuite.build(reference_session(toy_checkpoint(SPEC), SPEC), None, parity_cases(SPEC), None)


def image(seed: int) -> Feed:
    return arrays(image_tensors(SPEC, seed=seed))


def prompts(n: int, seed: int = 0) -> Feed:
    return arrays(prompt_tensors(SPEC, n, [1, -1], seed=seed))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_files_pass_the_gate(precision: str, suite: ParitySuite, made: Made) -> None:
    session = open_artifact(made(precision))
    report = run_gate(session, suite, bounds_for(precision), level="graph")
    assert report.passed, report.all_failures()


def test_float32_is_float32_on_every_processor(split: Artifact) -> None:
    placement = open_artifact(split, threads=1).placement()
    assert placement.honoured
    assert placement.operations["cpu"] > 100
    assert set(placement.details["products"]) == {"f32"}, "left alone, the plugin takes bfloat16 where it can"
    assert placement.details["products"]["f32"] > 50
    assert (placement.details["threads"], placement.details["arithmetic"]) == (1, "f32")


def test_no_thread_is_tied_to_a_processor(split: Artifact) -> None:
    """Two processes with a thread each would share the one that both are tied to."""
    session = open_artifact(split, threads=1)
    models = [request.get_compiled_model() for request in (*session._image, session._last.request)]
    assert [model.get_property("ENABLE_CPU_PINNING") for model in models] == [False, False]


def test_weights_stored_in_half_are_computed_with_in_float32(made: Made) -> None:
    session = open_artifact(made("fp16"))
    assert set(session.placement().details["products"]) == {"f32"}


def test_bfloat16_is_computed_in_bfloat16_or_refused(suite: ParitySuite, made: Made) -> None:
    files = made("bf16")
    if BFLOAT16 not in capabilities():
        with pytest.raises(UnavailableError, match="this processor does not compute in bfloat16"):
            open_artifact(files)
        return
    session = open_artifact(files)
    products = session.placement().details["products"]
    assert products["bf16"] > sum(count for arithmetic, count in products.items() if arithmetic != "bf16")
    report = run_gate(session, suite, bounds_for("bf16"), level="graph")
    assert (
        report.metrics["flipped_share"] < 0.02
    )  # random weights make ragged masks: those of a trained model are judged


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fixed_shapes_change_no_bit(precision: str, made: Made) -> None:
    files = made(precision)
    if precision == "bf16" and BFLOAT16 not in capabilities():
        with pytest.raises(UnavailableError, match="does not compute in bfloat16"):
            open_artifact(files)
        return
    fixed, free = open_artifact(files), open_artifact(files)
    free._points = 0
    fixed.set_image(image(0))
    free.set_image(image(0))
    for n in (1, CHUNK):
        for points in range(1, 4):  # with three there are as many tokens as heads
            feed = arrays(prompt_tensors(SPEC, n, [1] * points, seed=points))
            same(fixed.decode(feed), free.decode(feed))
    assert (len(fixed._fixed), len(free._fixed)) == (6, 0)


def test_only_usual_sizes_are_compiled_anew(split: Artifact) -> None:
    session = open_artifact(split)
    session.set_image(image(0))
    for n, labels in ((2, [1, -1]), (CHUNK + 1, [2, 3]), (1, [1, 1, 0, -1])):
        session.decode(arrays(prompt_tensors(SPEC, n, labels)))
        assert session._last is session._any
    assert session._fixed == {}


def test_an_image_replaces_the_one_before_in_every_compiled_graph(split: Artifact) -> None:
    session, fresh = open_artifact(split), open_artifact(split)
    for seed in (0, 1):
        session.set_image(image(seed))
        for n in (1, 2):
            session.decode(prompts(n))
    fresh.set_image(image(1))
    for n in (1, 2):
        same(session.decode(prompts(n)), fresh.decode(prompts(n)))


class Processor:
    """Stands in for OpenVINO's core on a processor that can do this and that."""

    def __init__(self, *capabilities: str) -> None:
        self.capabilities = list(capabilities)

    def get_property(self, *_: str) -> list[str]:
        return self.capabilities


def test_bfloat16_is_refused_where_the_processor_has_none() -> None:
    check_processor(Processor("FP32", "BF16"), "bf16")
    check_processor(Processor("FP32"), "fp32")
    with pytest.raises(UnavailableError, match=r"found FP32, INT8, expected AVX-512 BF16 or AMX") as caught:
        check_processor(Processor("FP32", "INT8"), "bf16")
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("products", "precision"),
    [({"f32": 60}, "bf16"), ({"f32": 9, "bf16": 51}, "fp32"), ({"f16": 51}, "fp16"), ({"bf16": 50, "f16": 1}, "bf16")],
)
def test_another_arithmetic_than_was_asked_for_is_no_result(products: Mapping[str, int], precision: str) -> None:
    with pytest.raises(UnavailableError, match=r"computes in another arithmetic here: found .* products in"):
        check_products(products, precision)


@pytest.mark.parametrize(
    ("products", "precision"),
    [({"f32": 60}, "fp32"), ({"f32": 9, "bf16": 51}, "bf16"), ({"i8": 6, "f32": 50}, "int8")],
)
def test_the_arithmetic_that_was_asked_for_is_taken(products: Mapping[str, int], precision: str) -> None:
    check_products(products, precision)


@pytest.mark.parametrize("device", ["gpu", "npu", "cuda"])
def test_a_device_that_is_not_offered_is_no_other_device(device: str, split: Artifact) -> None:
    with pytest.raises(UnavailableError, match=f"does not run OpenVINO there: found '{device}', expected cpu"):
        open_artifact(split, device=device)
    with pytest.raises(UnavailableError, match=f"target 'openvino' cannot run on '{device}' here: found cpu"):
        backend("openvino").require_device(device)


@pytest.mark.parametrize("cut", ["image.xml", "prompt.bin"])
def test_a_file_that_is_no_graph_is_one_line(cut: str, split: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Artifact.read
    monkeypatch.setattr(Artifact, "read", lambda self, name: read(self, name)[: 100 if name == cut else None])
    with pytest.raises(ArtifactError, match="OpenVINO cannot load") as caught:
        open_artifact(split)
    assert "\n" not in str(caught.value)


def test_an_answer_stays_when_the_next_question_is_asked(split: Artifact) -> None:
    session = open_artifact(split)
    session.set_image(image(0))
    for n in (1, 2):  # in fixed shapes, and in any
        first = session.decode(prompts(n))
        kept = {name: value.copy() for name, value in first.items()}
        session.decode(prompts(n, seed=5))
        same(first, kept)


def test_many_prompts_are_those_one_by_one(split: Artifact) -> None:
    session, feed = open_artifact(split), prompts(9)
    session.set_image(image(0))
    together = session.decode(feed)
    alone = [session.decode({name: value[i : i + 1] for name, value in feed.items()}) for i in range(9)]
    for name, value in together.items():
        want = np.concatenate([one[name] for one in alone])
        np.testing.assert_allclose(value, want, rtol=0, atol=1e-5 * np.abs(want).max())


def same(found: Outputs, expected: Outputs) -> None:
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def child(code: str, *arguments: str) -> Sequence[str]:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    return done.stdout.split()


IMPORTED = "import sys; from samx.extras import require; require('openvino', 'openvino', 'a test')"
TELL = "; print(*(name for name in sys.modules if name.startswith('openvino_')))"


def test_opening_openvino_reports_nothing_over_the_network() -> None:
    assert child(IMPORTED + TELL) == []


def test_what_reports_is_there_again_for_the_users_own_program() -> None:
    assert "openvino_telemetry" in child(f"{IMPORTED}; import openvino_telemetry{TELL}")
