"""Files of torch.save are read as PyTorch reads them, whatever else is in them, and nothing in them runs."""

from __future__ import annotations

import argparse
import collections
import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import meta_sam1, random_decoder, small_spec
from torch import Tensor, nn

from samx.errors import CheckpointError
from samx.models.checkpoint import load_checkpoint
from samx.models.weight_files import open_weights

State = dict[str, Tensor]
WAYS: Mapping[str, bool] = {"zip": True, "before zip": False}


def save(data: object, path: Path, way: str = "zip") -> Path:
    torch.save(data, path, _use_new_zipfile_serialization=WAYS[way])
    return path


def read(path: Path) -> State:
    return {key: reader() for key, reader in open_weights(path).readers.items()}


def odd_tensors() -> State:
    """Return tensors of every type and of every way to lie in a storage."""
    base = torch.arange(24, dtype=torch.float32)
    numbers = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16)
    plain = {str(dtype): torch.arange(5).to(dtype) for dtype in (*numbers, torch.int8, torch.uint8)}
    return {
        **plain,
        "bool": torch.tensor([True, False]),
        "complex": torch.tensor([1 + 2j]),
        "number": torch.tensor(3.0),
        "none": torch.empty(0, 4),
        "none of a storage": base[3:3],
        "whole": base,
        "view": base[4:10],
        "every other": base[1::2],
        "transposed": base.view(4, 6).t(),
        "permuted": base.view(2, 3, 4).permute(2, 0, 1),
        "parameter": nn.Parameter(base.clone()),
        "with a note": note(nn.Parameter(base.clone())),
        "frozen": nn.Parameter(base[:3], requires_grad=False),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }


def note(tensor: Tensor) -> Tensor:
    tensor.is_shared = "said by a trainer"  # type: ignore[method-assign, assignment]
    return tensor


def assert_same(found: State, expected: State) -> None:
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        assert (found[key].dtype, found[key].shape, found[key].stride()) == (
            tensor.dtype,
            tensor.shape,
            tensor.stride(),
        )
        assert torch.equal(found[key], tensor), key


@pytest.mark.parametrize("way", WAYS)
def test_tensors_are_those_that_pytorch_reads(tmp_path: Path, way: str) -> None:
    path = save(odd_tensors(), tmp_path / "odd.pt", way)
    assert_same(read(path), torch.load(path, weights_only=True))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_every_protocol_that_torch_writes(tmp_path: Path, protocol: int) -> None:
    torch.save(odd_tensors(), tmp_path / "odd.pt", pickle_protocol=protocol)
    assert_same(
        read(tmp_path / "odd.pt"), odd_tensors() | {"channels last": read(tmp_path / "odd.pt")["channels last"]}
    )


def rezip(path: Path, change: Callable[[str, bytes], bytes], **options: Any) -> Path:
    """Write the members of a zip file again, each changed, lying where zipfile puts them."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, change(name, data))
    return path


def test_numbers_that_lie_askew_are_read(tmp_path: Path) -> None:
    path = rezip(save(odd_tensors(), tmp_path / "odd.pt"), lambda _, data: data)
    assert_same(read(path), torch.load(path, weights_only=True))


def test_numbers_of_the_other_byte_order_are_swapped(tmp_path: Path) -> None:
    state = {"a": torch.arange(6, dtype=torch.float32).view(2, 3), "b": torch.tensor([1.5, -2.0]).half()}
    plain = read(save(state, tmp_path / "plain.pt"))

    def swapped(name: str, data: bytes) -> bytes:
        if name.endswith("/byteorder"):
            return b"big"
        kind = {"0": ">f4", "1": ">f2"}.get(name.rpartition("/data/")[2])
        return np.frombuffer(data, kind.replace(">", "<")).astype(kind).tobytes() if kind else data

    assert_same(read(rezip(save(state, tmp_path / "big.pt"), swapped)), plain)


def test_a_file_packed_by_another_program_is_refused(tmp_path: Path) -> None:
    path = save(meta_sam1(), tmp_path / "sam.pt")
    rezip(path, lambda _, data: data, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed"):
        load_checkpoint(path)


# Files as people have them.


class Sam(nn.Module):
    """A model whose class nobody else has."""

    def __init__(self) -> None:
        super().__init__()
        decoder = random_decoder(small_spec())
        self.prompt_encoder, self.mask_decoder = decoder.prompt_encoder, decoder.mask_decoder
        self.image_encoder = nn.Sequential(nn.Conv2d(3, 4, 1))
        self.register_buffer("pixel_mean", torch.zeros(3), persistent=False)
        self.register_parameter("nothing", None)


Sam.__module__ = Sam.__qualname__ = "training_code_of_somebody"


def whole_module(*, parallel: bool = False) -> nn.Module:
    """Return a module of a class that can be pickled and not be imported afterwards."""
    import sys

    model = Sam()
    sys.modules[Sam.__module__] = SimpleNamespace(training_code_of_somebody=Sam)  # type: ignore[assignment]
    return nn.DataParallel(model) if parallel else model


def forget() -> None:
    import sys

    del sys.modules[Sam.__module__]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wrapped", ["bare", "parallel", "in a mapping"])
def test_a_whole_module_gives_the_keys_of_its_state(tmp_path: Path, way: str, wrapped: str) -> None:
    model = whole_module(parallel=wrapped == "parallel")
    path = save({"model": model} if wrapped == "in a mapping" else model, tmp_path / "model.pt", way)
    forget()
    with pytest.raises(ModuleNotFoundError):
        torch.load(path, weights_only=False)
    prefix = "model." if wrapped == "in a mapping" else ""
    assert_same(read(path), {prefix + key: value for key, value in model.state_dict().items()})
    loaded = load_checkpoint(path)
    assert torch.equal(loaded.weights["mask_decoder.iou_token.weight"], meta_sam1()["mask_decoder.iou_token.weight"])


class Configuration(dict[str, Any]):
    """A mapping with attributes, as OmegaConf, EasyDict and Lightning have them."""

    def __init__(self, **values: Any) -> None:
        super().__init__(values)
        self.__dict__ = self


class Trainer:
    """An object with state and without parts that are modules."""

    def __init__(self) -> None:
        self.patience, self.best = 3, np.float64(0.75)


def lightning() -> dict[str, Any]:
    return {
        "epoch": 3, "global_step": np.int64(7), "pytorch-lightning_version": "2.4.0",
        "state_dict": {f"model.{key}": value for key, value in meta_sam1().items()},
        "hyper_parameters": argparse.Namespace(lr=1e-4, folder=PurePosixPath("/d"), dtype=torch.float16, names={"a"}),
        "callbacks": {"EarlyStopping": {"best_score": torch.tensor(0.5), "wait": np.float32(1.5)}, 3: Trainer()},
        "config": Configuration(size=(1, 2), deep=Configuration(of=[Configuration()])),
        "counts": collections.Counter("abc"), "slots": collections.defaultdict(list, a=[1]),
        "loss": np.linspace(0, 1, 5), "when": np.datetime64("2024-01-01"), "whom": b"bytes", "how": slice(1, 2),
    }  # fmt: skip


def micro_sam() -> dict[str, Any]:
    """Return what micro-sam's trainer saves: its own state, and how it was started."""
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(3))])
    return {
        "iteration": 10, "epoch": 1, "best_epoch": 0, "best_metric": np.float32(0.25), "current_metric": float("inf"),
        "model_state": {f"sam.{key}": value for key, value in meta_sam1().items()},
        "decoder_state": {"decoder.blocks.0.weight": torch.ones(2, 2), "out_conv.weight": torch.ones(1)},
        "optimizer_state": optimizer.state_dict(), "scaler_state": {"scale": 65536.0},
        "init": {"trainer": Trainer, "save_root": PurePosixPath("models"), "loss": nn.MSELoss, "loader": Trainer(),
                 "device": torch.device("cpu"), "class": "torch_em.trainer.DefaultTrainer"},
        "train_time": np.float64(3.5), "timestamp": "2024-01-01",
    }  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [lightning, micro_sam])
def test_training_files_load(tmp_path: Path, make: Callable[[], dict[str, Any]], way: str) -> None:
    loaded = load_checkpoint(save(make(), tmp_path / "last.ckpt", way))
    assert loaded.spec == small_spec()
    for key, tensor in random_decoder(small_spec()).state_dict().items():
        assert torch.equal(loaded.weights[key], tensor), key


def test_a_state_in_a_mapping_of_its_own_class_loads(tmp_path: Path) -> None:
    path = save({"state_dict": Configuration(**meta_sam1())}, tmp_path / "model.pt")
    assert load_checkpoint(path).spec == small_spec()


# Weights that are no arrays of floats.

KEY = "mask_decoder.iou_token.weight"
ODD: Mapping[str, tuple[Callable[[Tensor], Any], str]] = {
    "quantised": (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "a quantised tensor"),
    "quantised by channel": (
        lambda t: torch.quantize_per_channel(t, torch.ones(1), torch.zeros(1), 0, torch.quint8), "a quantised tensor",
    ),
    "sparse": (lambda t: t.to_sparse(), "a sparse tensor"),
    "complex": (lambda t: t.to(torch.complex64), "torch.complex64"),
    "conjugate": (lambda t: t.to(torch.complex64).conj(), "a conjugate or negative view"),
    "float8": (lambda t: t.to(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
    "int8": (lambda t: t.to(torch.int8), "torch.int8"),
    "meta": (lambda t: t.to("meta"), "a tensor without numbers"),
    "numpy": (lambda t: t.numpy(), "a NumPy array"),
    "repeated": (lambda t: t[:, :1].clone().expand(1 << 20, 1 << 20), "numbers that repeat 1"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore")
def test_a_weight_that_is_no_array_of_floats_is_refused(tmp_path: Path, kind: str) -> None:
    make, words = ODD[kind]
    path = save({**meta_sam1(), KEY: make(meta_sam1()[KEY])}, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert f"weight '{KEY}'" in str(caught.value)
    assert words in str(caught.value)


def test_an_odd_tensor_elsewhere_does_not_matter(tmp_path: Path) -> None:
    sparse = torch.eye(3).to_sparse()
    assert load_checkpoint(save({"model": meta_sam1(), "other": sparse}, tmp_path / "sam.pt")).spec == small_spec()


def test_what_a_file_is_of_does_not_depend_on_its_name(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(meta_sam1(), buffer)
    (tmp_path / "weights.bin").write_bytes(buffer.getvalue())
    assert load_checkpoint(tmp_path / "weights.bin").spec == small_spec()
