"""A GPU, a library and an engine that live in memory: they compute the toy decoder, and note what was asked of them."""

from __future__ import annotations

import hashlib
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from engine_toys import SPEC, toy_encoder_plan, toy_features, toy_masks
from numpy.typing import DTypeLike, NDArray

from samx.errors import UnavailableError
from samx.formats.tensorrt.library import Message, Opened, library_of
from samx.formats.tensorrt.plan import BuildPlan
from samx.formats.tensorrt.stamp import Gpu
from samx.models.session import Feed
from samx.runtimes.base import Padding
from samx.runtimes.cuda import CudaDevice
from samx.runtimes.tensorrt.encoder import EngineEncoder
from samx.runtimes.tensorrt.execution import Execution
from samx.runtimes.tensorrt.runtime import TensorRTRuntime

ENGINE_SHA256, ENCODER_SHA256 = (hashlib.sha256(name).hexdigest() for name in (b"toy engine", b"toy encoder"))


class FakeDevice(CudaDevice):
    """Keep memory as bytes by address; count what happens."""

    def __init__(self, room: int = 1 << 20) -> None:
        self.gpu, self.stream = Gpu("Toy GPU", "8.7", "CUDA 13.0"), 7
        self.memory: dict[int, bytearray] = {}
        self.log: list[str] = []
        self.room, self.next = room, 4096

    def allocate(self, size: int) -> int:
        if size > self.room:
            raise UnavailableError("cannot reserve memory on the GPU", found="out of memory")
        self.log.append("allocate")
        self.next += 1 << 16
        self.memory[self.next] = bytearray(size)
        return self.next

    def free(self, address: int) -> None:
        self.log.append("free")
        del self.memory[address]

    def upload(self, address: int, array: NDArray[Any]) -> None:
        self.log.append("upload")
        assert array.flags.c_contiguous
        assert array.nbytes <= len(self.memory[address]), "an upload past the buffer's end"
        self.memory[address][: array.nbytes] = array.tobytes()

    def download(self, address: int, array: NDArray[Any]) -> None:
        self.log.append("download")
        array[...] = self.read(address, array.shape)

    def copy(self, address: int, source: int, size: int) -> None:
        self.log.append("copy")
        self.memory[address][:size] = self.bytes_at(source, size)

    def wait_for(self, stream: int | None) -> None:
        self.log.append(f"wait for {stream}")

    def synchronise(self) -> None:
        self.log.append("synchronise")

    def bytes_at(self, address: int, size: int) -> bytearray:
        """Return what lies anywhere in memory."""
        begin = max(one for one in self.memory if one <= address)
        found = self.memory[begin][address - begin :][:size]
        assert len(found) == size, "a read past the buffer's end"
        return found

    def read(self, address: int, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer(self.bytes_at(address, size), dtype).reshape(shape).copy()

    def counted(self, what: str) -> int:
        """How often something happened since the last time that was asked, which begins the count anew."""
        found = self.log.count(what)
        self.log = [entry for entry in self.log if entry != what]
        return found


class FakeContext:
    """Execute the toy decoder on a fake device's memory."""

    def __init__(self, device: FakeDevice, messages: list[Message]) -> None:
        self.device, self.messages = device, messages
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.fails = self.refuses_shape = self.wrong_output = False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        self.messages.append(("ERROR", "shape says no"))
        return not self.refuses_shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        rows = self.shapes["point_coords"][0] + int(self.wrong_output)
        return {"low_res_masks": (rows, 3, 4, 4), "iou_predictions": (rows, 3)}[name]

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == self.device.stream
        if self.fails:
            self.messages.append(("ERROR", "planted: illegal memory access"))
            return False
        self.device.log.append("compute")
        feed = [self.device.read(self.addresses[t.name], self.shapes[t.name]) for t in SPEC.inputs]
        for name, value in toy_masks(*feed).items():
            self.device.memory[self.addresses[name]][: value.nbytes] = value.tobytes()
        return True


class FakeEncoderContext(FakeContext):
    """Execute the toy encoder: each picture's mean, everywhere."""

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.shapes["picture"][0] + int(self.wrong_output), 256, 1, 1)

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == self.device.stream
        self.device.log.append("compute")
        picture = self.device.read(self.addresses["picture"], self.shapes["picture"], np.uint8)
        value = toy_features(picture)["image_embeddings"]
        begin = self.device.memory[self.addresses["image_embeddings"]]
        begin[: value.nbytes] = value.tobytes()
        return True


class FakeCache:
    """Grow with every shape, as compiled kernels do."""

    def __init__(self, accepts: bool = True) -> None:
        self.data, self.accepts = b"", accepts

    def deserialize(self, data: bytes) -> bool:
        self.data = data if self.accepts else b""
        return self.accepts

    def serialize(self) -> bytes:
        self.data += b"kernel"
        return self.data


class FakeEngine:
    """Hand out contexts and facts."""

    num_layers = 5

    def __init__(
        self, device: FakeDevice, messages: list[Message], layers: str = '{"Layers": ["a", "b", "c"]}'
    ) -> None:
        self.context: FakeContext | None = FakeContext(device, messages)
        self.layers, self.config, self.cache = layers, SimpleNamespace(), FakeCache()
        self.config.create_runtime_cache = lambda: self.cache
        self.config.set_runtime_cache = lambda cache: True

    def create_runtime_config(self) -> Any:
        return self.config

    def create_execution_context(self, *config: object) -> FakeContext | None:
        return self.context

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=lambda form: self.layers)


def fake_module() -> ModuleType:
    """Name the library's enumerations that the adapter passes on."""
    module = ModuleType("tensorrt_rtx")
    module.__dict__.update(
        __version__="1.7.1",
        CudaGraphStrategy=SimpleNamespace(DISABLED="none"),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
        LayerInformationFormat=SimpleNamespace(JSON="json"),
    )
    return module


def fake_runtime(
    plan: BuildPlan, device: FakeDevice, engine: FakeEngine | None = None, padding: Padding | None = None
) -> tuple[TensorRTRuntime, FakeEngine]:
    """Open the toy engine on a fake device."""
    messages: list[Message] = []
    opened = Opened(library_of(plan.target), fake_module(), None, messages)
    engine = engine or FakeEngine(device, messages)
    if engine.context is not None:
        engine.context.messages = messages
    execution = Execution(opened, (None, engine), ENGINE_SHA256, device)
    return TensorRTRuntime(SPEC, plan, execution, padding), engine


def fake_encoder(device: FakeDevice) -> tuple[EngineEncoder, FakeEncoderContext]:
    """Open the toy encoder's engine on a fake device."""
    messages: list[Message] = []
    plan, context = toy_encoder_plan(), FakeEncoderContext(device, messages)
    opened, engine = Opened(library_of(plan.target), fake_module(), None, messages), FakeEngine(device, messages)
    engine.context = context
    return EngineEncoder(plan, Execution(opened, (None, engine), ENCODER_SHA256, device)), context


def image(seed: int = 0) -> Feed:
    """Draw one image's features."""
    random = np.random.default_rng(seed)
    return {t.name: random.standard_normal([int(d) for d in t.shape]).astype(np.float32) for t in SPEC.image_inputs}


def prompts(n: int, points: int = 2, seed: int = 0) -> Feed:
    """Draw prompts."""
    random = np.random.default_rng(seed)
    coords = random.uniform(0, 16, (n, points, 2)).astype(np.float32)
    return {"point_coords": coords, "point_labels": random.choice([-1, 0, 1], (n, points)).astype(np.float32)}
