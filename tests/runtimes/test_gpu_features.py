"""Encoder outputs reach ONNX Runtime's and PyTorch's decoders without a copy to the host, on stand-ins of a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_driver import TOY, Driver
from torch.overrides import TorchFunctionMode
from toys import arrays, image_tensors, prompt_tensors, toy_decoder

from samx.artifacts.store import Artifact
from samx.errors import ImageError
from samx.models.encoders.base import Encoder
from samx.models.spec import sam1_spec
from samx.picture_encoder import encode_levels, encoder_inputs
from samx.runtimes import cuda_arrays, onnxruntime
from samx.runtimes import torch as torch_runtime
from samx.runtimes.cuda import CudaDevice
from samx.runtimes.cuda_arrays import DeviceArray
from samx.runtimes.torch import TorchRuntime, reference_encoder

COPIES = {"cuMemcpyHtoDAsync_v2": "up", "cuMemcpyDtoDAsync_v2": "within", "cuMemcpyDtoHAsync_v2": "down"}
SPEC = sam1_spec(image_size=128)


class CountedBinding:
    """Pass on to ONNX Runtime's binding; note where what is bound lies."""

    def __init__(self, binding: Any, log: list[str]) -> None:
        self._iobinding, self._binding, self._log = binding._iobinding, binding, log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._binding, name)

    def bind_input(self, name: str, *facts: Any) -> None:
        self._log.append("input on the GPU")
        self._binding.bind_input(name, *facts)

    def bind_cpu_input(self, name: str, value: Any) -> None:
        self._log.append("input on the host")
        self._binding.bind_cpu_input(name, value)

    def bind_output(self, name: str, *facts: Any) -> None:
        self._log.append("output on the GPU" if facts else "output on the host")
        self._binding.bind_output(name, *facts)


class Machine:
    """ONNX Runtime's processor in the place of its GPU, whose memory is a driver's that is this process's own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.driver = Driver()
        self.device = CudaDevice(self.driver, TOY)
        self.bound: list[str] = []
        opened = onnxruntime._session
        monkeypatch.setattr(onnxruntime, "shared_device", lambda: self.device)
        monkeypatch.setattr(onnxruntime, "BOUND_DEVICE", "cpu")
        monkeypatch.setattr(
            onnxruntime, "_session", lambda n, m, device, *more: self._noting(opened(n, m, "cpu", *more))
        )

    def _noting(self, session: Any) -> Any:
        make = session.io_binding
        session.io_binding = lambda: CountedBinding(make(), self.bound)
        session.run = lambda *given: pytest.fail("a session was run with the host's arrays")
        return session

    def copies(self) -> Mapping[str, int]:
        """Count the copies since the last time that was asked."""
        found = Counter(COPIES[name] for name in self.driver.log if name in COPIES)
        self.driver.log.clear()
        return found

    def places(self) -> Mapping[str, int]:
        """Count what was bound since the last time that was asked."""
        found = Counter(self.bound)
        self.bound.clear()
        return found


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def pictures(count: int) -> list[Any]:
    rng = np.random.default_rng(count)
    return [rng.integers(0, 256, (90, 120, 3), np.uint8) for _ in range(count)]


def usual(path: Path, image: Mapping[str, Any], prompts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Decode as on the host."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime, "_session", plain_session)
        session = onnxruntime.open_artifact(Artifact.open(path), "cpu")
        session.set_image(image)
        return session.decode(prompts)


plain_session = onnxruntime._session


@pytest.mark.parametrize("name", ["all_masks_artifact", "sam2_artifact"])  # one graph; an image and a prompt graph
def test_from_picture_to_mask_onnx_runtime_leaves_features_on_the_gpu(
    name: str, machine: Machine, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(name)
    artifact = Artifact.open(path)
    spec, entry = artifact.manifest.spec, artifact.manifest.encoder
    assert entry is not None
    encode, session = onnxruntime.open_encoder(artifact, "cuda"), onnxruntime.open_artifact(artifact, "cuda")
    prompts = arrays(prompt_tensors(spec, 2, [1, 0]))
    (features,) = encode_levels(encode, spec, entry, pictures(1))
    assert all(isinstance(value, DeviceArray) for value in features.values())
    encoded, taken = machine.places(), len(encoder_inputs(pictures(1), spec, entry))
    assert encoded == {"input on the host": taken, "output on the GPU": len(spec.image_inputs)}
    session.set_image(features)
    masks = session.decode(prompts)
    assert machine.copies() == {}
    bound = machine.places()
    assert (bound["input on the host"], bound["output on the host"]) == (len(prompts), len(spec.outputs))
    right = usual(path, {name: np.asarray(value) for name, value in features.items()}, prompts)
    for name, value in right.items():
        np.testing.assert_allclose(masks[name], value, rtol=1e-5, atol=1e-5)


def test_onnx_runtime_takes_features_of_the_host_and_of_other_libraries(machine: Machine, sam2_artifact: Path) -> None:
    artifact = Artifact.open(sam2_artifact)
    spec = artifact.manifest.spec
    session = onnxruntime.open_artifact(artifact, "cuda")
    image, prompts = arrays(image_tensors(spec)), arrays(prompt_tensors(spec, 2, [1, 0]))
    right = usual(sam2_artifact, image, prompts)
    session.set_image(image)
    assert machine.copies() == {"up": len(image)}
    np.testing.assert_allclose(session.decode(prompts)["low_res_masks"], right["low_res_masks"], rtol=1e-4, atol=1e-4)
    foreign: dict[str, Any] = {name: Foreign(value.copy()) for name, value in image.items()}
    session.set_image(foreign)
    assert machine.copies() == {"within": len(image)}, "what another library may change is copied"
    np.testing.assert_allclose(session.decode(prompts)["low_res_masks"], right["low_res_masks"], rtol=1e-4, atol=1e-4)
    assert machine.copies() == {}
    foreign[spec.image_inputs[0].name] = Foreign(np.zeros((1, 1, 1, 1), np.float32))
    with pytest.raises(ImageError, match="wrong tensors on the GPU"):
        session.set_image(foreign)


class Foreign:
    """An array of another library's that says that it lies on the GPU."""

    def __init__(self, value: Any) -> None:
        self.value, self.shape = value, value.shape

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        data = (self.value.ctypes.data, False)
        return {"shape": self.shape, "typestr": self.value.dtype.str, "data": data, "version": 3, "stream": 5}


class Toy(Encoder):
    """Give every place its picture's mean."""

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Shapes: (B, 3, S, S) -> (B, 256, G, G)."""
        return (pixels.mean((1, 2, 3))[:, None, None, None].repeat(1, SPEC.width, SPEC.grid, SPEC.grid),)


class ToTheHost(TorchFunctionMode):
    """Refuse what copies to the host."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.__array__)
        return func(*args, **(kwargs or {}))


def test_pytorch_leaves_features_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in is PyTorch's device without memory, of which nothing can be copied to the host."""
    monkeypatch.setattr(torch_runtime, "torch_device", torch.device)
    monkeypatch.setattr(cuda_arrays, "on_gpu", lambda value: isinstance(value, torch.Tensor))
    encode = reference_encoder(Toy(), SPEC, "meta")
    session = TorchRuntime(toy_decoder(SPEC), "meta")
    pixels = np.ones((1, 3, 128, 128), np.float32)
    with ToTheHost():
        session.set_image(encode(pixels))
    assert session.placement().honoured
    with pytest.raises(NotImplementedError, match="no data"):
        session.decode(arrays(prompt_tensors(SPEC, 1, [1])))  # masks alone are asked for on the host


def test_pytorch_takes_tensors_as_they_lie_and_owns_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_arrays, "on_gpu", lambda value: True)
    decoder, prompts = toy_decoder(SPEC), arrays(prompt_tensors(SPEC, 2, [1, 0]))
    image = image_tensors(SPEC)
    plain = TorchRuntime(decoder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_arrays, "on_gpu", lambda value: False)
        plain.set_image(arrays(image))
    right = plain.decode(prompts)["low_res_masks"]
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch, "as_tensor", lambda value, device: torch.from_numpy(value.value))
    session = TorchRuntime(decoder)
    for make in (torch.clone, lambda value: value.numpy().copy(), lambda value: Foreign(value.numpy().copy())):
        given: dict[str, Any] = {name: make(value) for name, value in image.items()}
        session.set_image(given)
        for value in given.values():
            getattr(value, "value", value)[...] = 0
        np.testing.assert_array_equal(session.decode(prompts)["low_res_masks"], right)
    with pytest.raises(ImageError, match=r"wrong type: found torch\.float64"):
        session.set_image({name: value.double() for name, value in image.items()})
    with pytest.raises(ImageError, match="wrong tensors on the GPU"):
        session.set_image({name: value[..., :1] for name, value in image.items()})
