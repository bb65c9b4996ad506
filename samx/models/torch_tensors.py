"""What stands for the tensors of a pickle that torch.save wrote: where their numbers lie, checked, and nothing read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from samx.models.inert_pickle import Inert, Name, PickleError, named

MAX_AXES = 64

STORAGES: Mapping[str, torch.dtype] = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
    # Of tensors that are refused where they are a weight: as many bytes a number.
    "UntypedStorage": torch.uint8, "QInt8Storage": torch.int8, "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32, "QUInt4x2Storage": torch.uint8, "QUInt2x4Storage": torch.uint8,
}  # fmt: skip


@dataclass(slots=True)
class Storage:
    """Describe a stretch of numbers in the file. Units: nbytes, start in bytes; start is known at last."""

    dtype: torch.dtype
    nbytes: int
    start: int = -1


@dataclass(frozen=True, slots=True)
class Part:
    """Describe what a tensor lies in: a storage from its n-th number on, so many of them."""

    storage: Storage
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Stored:
    """Describe a tensor, which lies within its storage. Units: offset, strides in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Odd:
    """Say what is in a tensor's place and is no plain array of numbers."""

    kind: str


class Storages:
    """Find storages by the ids that a pickle refers to them with."""

    def __init__(self) -> None:
        self.found: dict[str, Storage] = {}

    def __call__(self, persistent_id: object) -> object:
        """Return the part of a storage, or a module's class, beside which files before zip have its source text."""
        if type(persistent_id) is not tuple or not persistent_id:
            raise PickleError("a persistent id that torch.save does not write")
        kind, *facts = persistent_id
        if kind == "module" and facts:
            return facts[0]
        if kind != "storage" or len(facts) not in (4, 5):
            raise PickleError("a persistent id that torch.save does not write")
        of, key, _, count = facts[:4]
        dtype = STORAGES.get(of.path.rpartition(".")[2]) if type(of) is Name and of.path.startswith("torch.") else None
        if dtype is None or type(key) is not str or not _natural(count):
            raise PickleError("a storage of a kind that is not known")
        new = Storage(dtype, count * dtype.itemsize)
        storage = self.found.setdefault(key, new)
        if (storage.dtype, storage.nbytes) != (new.dtype, new.nbytes):
            raise PickleError(f"two storages under one key: {key[:40]}")
        return _viewed(storage, count, facts[4] if len(facts) > 4 else None)


def _natural(*values: object) -> bool:
    """Tell whether all are whole numbers that a file's size may be."""
    return all(type(value) is int and 0 <= value < 1 << 62 for value in values)


def _viewed(storage: Storage, count: int, view: object) -> Part:
    """Return a storage whole, or the view of it that files before zip list: (key, first number, how many)."""
    if view is None:
        return Part(storage, 0, count)
    if type(view) is not tuple or len(view) != 3 or not _natural(*view[1:]) or view[1] + view[2] > count:
        raise PickleError("a view beyond its storage")
    return Part(storage, view[1], view[2])


def _tensor(part: Any, offset: Any, shape: Any, strides: Any, *_: object) -> object:
    """Stand for torch._utils._rebuild_tensor."""
    shape, strides = _sizes(shape), _sizes(strides)
    if type(part) is not Part or len(shape) != len(strides) or not _natural(offset):
        raise PickleError("a tensor without a storage, or whose shape is no shape")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 not in shape and last >= part.count:
        raise PickleError("a tensor beyond its storage")
    return Stored(part.storage, part.first + offset, shape, strides)


def _sizes(value: Any) -> tuple[int, ...]:
    if type(value) is Inert and value.callee == Name("torch.Size") and type(value.arguments) is tuple:
        value = value.arguments[0] if len(value.arguments) == 1 else ()
    if type(value) not in (tuple, list) or len(value) > MAX_AXES or not _natural(*value):
        raise PickleError("a tensor whose shape is no shape")
    return tuple(value)


def _tensor_v2(part: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, marks: Any = None) -> object:
    """Stand for _rebuild_tensor_v2; `marks` say that a tensor is to be read as its conjugate or its negative."""
    return Odd("a conjugate or negative view") if marks else _tensor(part, offset, shape, strides)


def _tensor_v3(*arguments: object) -> Odd:
    """Stand for _rebuild_tensor_v3, which has the types that torch has no storage class for; the seventh names it."""
    dtype = arguments[6] if len(arguments) > 6 else None
    return Odd(dtype.path if type(dtype) is Name else "a tensor of an unknown type")


def _as_it_is(data: object, *_: object) -> object:
    """Stand for what only says more about a tensor, such as that it is a parameter."""
    return data


def _typed(function: object, of: object, arguments: object, _: object) -> object:
    """Stand for torch._tensor._rebuild_from_type_v2: a tensor of a class, with attributes."""
    if not (type(function) is Name and type(of) is Name and type(arguments) is tuple):
        raise PickleError("a tensor of something else than a class")
    if function.path != REBUILD or of.path not in PLAIN_CLASSES:
        return Odd(f"a {of.path[:80]}")
    return _tensor_v2(*arguments)


def _odd(kind: str, *_: object) -> Odd:
    return Odd(kind)


def _mapping(data: Any = (), *_: object) -> dict[str, Any]:
    """Stand for OrderedDict and Counter, of pairs or of a mapping."""
    if type(data) not in (dict, list, tuple):
        raise PickleError("a dictionary of what is no pairs")
    return dict(named(tuple(pair) for pair in (data.items() if type(data) is dict else data)))


def _empty_mapping(*_: object) -> dict[str, Any]:
    """Stand for defaultdict, whose items come afterwards."""
    return {}


REBUILD = "torch._utils._rebuild_tensor_v2"
PLAIN_CLASSES = ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")
ODD: Mapping[str, str] = {
    "torch._utils._rebuild_qtensor": "a quantised tensor",
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without numbers (meta)",
    "torch._utils._rebuild_wrapper_subclass": "a tensor of a class of its own",
    "torch._utils._rebuild_device_tensor_from_numpy": "a tensor of another device's library",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "a tensor of another device's library",
    "numpy.core.multiarray._reconstruct": "a NumPy array",
    "numpy._core.multiarray._reconstruct": "a NumPy array",
}
KNOWN: Mapping[str, Callable[..., object]] = {
    **{path: partial(_odd, kind) for path, kind in ODD.items()},
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "collections.defaultdict": _empty_mapping,
    "torch._utils._rebuild_tensor": _tensor,
    REBUILD: _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _as_it_is,
    "torch._utils._rebuild_parameter_with_state": _as_it_is,
    "torch.nn.parameter.Parameter": _as_it_is,
    "torch._tensor._rebuild_from_type_v2": _typed,
}
