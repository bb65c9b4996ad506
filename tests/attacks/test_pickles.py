"""Pickles that attack their reader: none runs anything, takes gigabytes, minutes or the stack, or reads elsewhere."""

from __future__ import annotations

import builtins
import functools
import io
import os
import pickle
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import meta_sam1, small_spec
from test_mutations import little_memory  # noqa: F401 - a fixture for all tests here

from samx.errors import CheckpointError
from samx.models.checkpoint import load_checkpoint
from samx.models.inert_pickle import MAX_STEPS, Inert, InertUnpickler, Name, Window
from samx.models.torch_tensors import KNOWN, Storages
from samx.models.weight_files import open_weights

MOST_S = 20.0
KEY = "mask_decoder.iou_token.weight"


def load(data: bytes) -> Any:
    """Run a pickle as a checkpoint's is run."""
    return InertUnpickler(Window(data, 0, len(data)), KNOWN, Storages()).load()


# What the interpreter's own audit hooks tell of.
WATCHED = ("import", "open", "exec", "compile", "os.", "subprocess.", "socket.", "pickle.find_class", "marshal.")
seen: list[str] | None = None


def watch(event: str, _: tuple[Any, ...]) -> None:
    if seen is not None and event.startswith(WATCHED):
        seen.append(event)


sys.addaudithook(watch)


def watched(data: bytes) -> tuple[Any, list[str]]:
    """Return what a pickle gives, or what refused it, with what the interpreter's audit hooks saw meanwhile."""
    global seen
    try:
        seen = []
        try:
            result = load(data)
        except ValueError as error:
            result = error
        return result, seen
    finally:
        seen = None


class Call:
    """Pickle as a call of a function."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.parts

    def __call__(self) -> None:
        raise AssertionError("a pickle takes only what can be called in a call's place")


def opcodes(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def text(words: str) -> bytes:
    data = words.encode()
    return b"X" + struct.pack("<I", len(data)) + data


EVIL = "samx_evil.txt"
CALLS: Mapping[str, Any] = {
    "os.system": Call(os.system, f"touch {EVIL}"),
    "os.mkdir": Call(os.mkdir, EVIL),
    "eval": Call(eval, f"open('{EVIL}', 'w')"),
    "exec": Call(exec, f"open('{EVIL}', 'w')"),
    "open": Call(open, EVIL, "w"),
    "import": Call(builtins.__import__, "antigravity"),
    "getattr chain": Call(Call(getattr, Name, "mro"), EVIL),
    "partial": Call(Call(functools.partial, os.mkdir, EVIL)),
    "partial with a state": Call(functools.partial, print, state=(os.mkdir, (EVIL,), {}, {})),
    "map": Call(list, Call(map, os.mkdir, [EVIL])),
    "nested pickle": Call(pickle.loads, pickle.dumps(Call(os.mkdir, EVIL))),
    "torch.load": Call(torch.load, EVIL),
    "state": Call(Inert, "a", (), state={"__setstate__": os.mkdir}),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", CALLS)
def test_no_call_is_made(name: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found, events = watched(pickle.dumps({"extra": CALLS[name], "kept": 3}, protocol))
    assert found["kept"] == 3
    assert type(found["extra"]) is Inert
    assert events == []
    assert list(tmp_path.iterdir()) == []


def test_the_watch_sees_what_python_does_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    global seen
    monkeypatch.chdir(tmp_path)
    for name in ("os.mkdir", "nested pickle"):
        seen = []
        pickle.loads(pickle.dumps(CALLS[name]))  # noqa: S301 - to see that it is live
        found, seen = seen, None
        assert "os.mkdir" in found
        Path(EVIL).rmdir()


RAW: Mapping[str, bytes] = {
    "copyreg": opcodes(b"ccopyreg\n_reconstructor\n", b"cos\nsystem\nc__builtin__\nobject\nN", b"\x87R"),
    "extension": opcodes(b"\x82\x01"),
    "instance": opcodes(b"(", text("touch samx_evil"), b"ios\nsystem\n"),
    "object": opcodes(b"(cos\nsystem\n", text("touch samx_evil"), b"o"),
    "new with names": b"\x80\x04cos\nsystem\n(X\x01\0\0\0at}\x92.",
    "dotted": b"\x80\x04" + b"\x8c\x02os\x8c\x0bpath.system\x93)R.",
    "build a known function": opcodes(
        b"ctorch._utils\n_rebuild_tensor_v2\n", b"}", text("__defaults__"), b"(NNNNNtsb"
    ),
    "build a name": opcodes(b"cos\nsystem\n", b"}", text("path"), text("os.mkdir"), b"sb"),
    "build with slots": opcodes(b"cos\nsystem\n)R", b"N}", text("callee"), text("x"), b"s\x86b"),
    "build a number": opcodes(b"K\x01}b"),
    "class of a dictionary": opcodes(b"}", text("__class__"), b"cos\nsystem\nsb"),
    "append to a name": opcodes(b"cos\nsystem\nK\x01a"),
    "item of a list": opcodes(b"]K\x01K\x02s"),
    "call of a number": opcodes(b"K\x01)R"),
    "call with a list": opcodes(b"ctorch._utils\n_rebuild_tensor_v2\n]R"),
    "call with too little": opcodes(b"ctorch._utils\n_rebuild_tensor_v2\n)R"),
    "typed of typed": opcodes(
        b"ctorch._tensor\n_rebuild_from_type_v2\n(", b"ctorch._tensor\n_rebuild_from_type_v2\ncos\nsystem\n)NtR"
    ),
    "persistent text": b"\x80\x02Pstorage\n.",
    "persistent number": opcodes(b"K\x01Q"),
    "persistent nothing": opcodes(b")Q"),
    "persistent name": opcodes(b"cos\nsystem\nQ"),
    "persistent list": opcodes(b"(", text("storage"), b"lQ"),
    "module": opcodes(b"(", text("module"), b"cos\nsystem\ntQ"),
    "module of nothing": opcodes(text("module"), b"\x85Q"),
    "storage of os": opcodes(b"(", text("storage"), b"cos\nFloatStorage\n", text("0"), text("cpu"), b"K\x01tQ"),
    "storage of an object": opcodes(b"(", text("storage"), b"K\x01", text("0"), text("cpu"), b"K\x01tQ"),
    "storage of less than nothing": opcodes(
        b"(", text("storage"), b"ctorch\nFloatStorage\n", text("0"), text("cpu"), b"J\xff\xff\xff\xfftQ"
    ),
    "out of band": b"\x80\x05\x97.",
    "empty stack": opcodes(b"0"),
    "no mark": opcodes(b"t"),
    "unknown memory": opcodes(b"h\x05"),
    "large memory": b"\x80\x02NpI" + b"9" * 4000 + b"\n.",
    "nothing": opcodes(),
    "no end": b"\x80\x02N",
    "not a pickle": b"\xff",
}  # fmt: skip


@pytest.mark.parametrize("name", RAW)
def test_instructions_do_nothing_or_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = dict(vars(KNOWN["torch._utils._rebuild_tensor_v2"]))
    _, events = watched(RAW[name])
    assert events == []
    assert KNOWN["torch._utils._rebuild_tensor_v2"].__defaults__ == (None,)
    assert vars(KNOWN["torch._utils._rebuild_tensor_v2"]) == before
    assert list(tmp_path.iterdir()) == []


DEEP = 200_000
BOMBS: Mapping[str, Callable[[], bytes]] = {
    "deep lists": lambda: opcodes(b"]" * DEEP, b"a" * (DEEP - 1)),
    "deep tuples": lambda: opcodes(b")", b"\x85" * DEEP),
    "deep tuple as a key": lambda: opcodes(b"})", b"\x85" * DEEP, b"Ns"),
    "deep objects": lambda: opcodes(b"cos\nsystem\n", b")R" * DEEP),
    "deep state": lambda: opcodes(b"cos\nsystem\n)R", b"cos\nsystem\n)R" * DEEP, b"b" * DEEP),
    "deep types": lambda: opcodes(b"N", b"ctorch._utils\n_rebuild_parameter\n" * 9, b"\x85R" * DEEP),
    "marks": lambda: opcodes(b"(" * DEEP),
    "holds itself": lambda: opcodes(b"}q\x00", text("a"), b"h\x00s"),
    "doubled": lambda: opcodes(b"]q\x00", b"h\x00h\x00\x86q\x00" * 100_000),
    "doubled dictionaries": lambda: opcodes(
        b"}q\x00", (b"}q\x01(" + b"".join(text(f"{i:02}") + b"h\x00" for i in range(30)) + b"uq\x00") * 30
    ),
    "copied pairs": lambda: opcodes(
        b"](", b"N" * 50_000, b"e\x85q\x00", b"ccollections\nOrderedDict\nh\x00R0" * 50_000, b"N"
    ),
    "long text": lambda: opcodes(b"X\xff\xff\xff\xff"),
    "very long text": lambda: b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f.",
    "very long bytes": lambda: b"\x80\x05\x96" + b"\xff" * 7 + b"\x3f.",
    "long number": lambda: opcodes(b"\x8b\xff\xff\xff\x7f"),
    "many digits": lambda: opcodes(b"L" + b"9" * 10**6 + b"L\n"),
    "long frame": lambda: b"\x80\x04\x95" + b"\xff" * 7 + b"\x7fN.",
    "far memory": lambda: opcodes(b"Nr\xff\xff\xff\xff"),
    "steps": lambda: opcodes(b"N0" * (MAX_STEPS // 2 + 1)),
    "collisions": lambda: opcodes(b"}(", b"".join(b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + b"N"
                                                     for i in range(100_000)), b"u"),
}  # fmt: skip


def archive(pickled: bytes, folder: Path, **members: bytes) -> Path:
    path = folder / "evil.pt"
    with zipfile.ZipFile(path, "w") as written:
        written.writestr("a/data.pkl", pickled)
        for name, data in members.items():
            written.writestr(f"a/data/{name}", data)
    return path


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_takes_neither_time_nor_memory_nor_the_stack(name: str, tmp_path: Path) -> None:
    path, started = archive(BOMBS[name](), tmp_path), time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert time.monotonic() - started < MOST_S
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000


def tensor(offset: int, shape: tuple[Any, ...], strides: tuple[Any, ...], count: int = 6, key: str = "0") -> bytes:
    """Return a pickle of {"a": tensor}, as torch writes it."""

    class Writer(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            is_place = isinstance(value, str) and value == "place"
            return ("storage", torch.FloatStorage, key, "cpu", count) if is_place else None

    buffer = io.BytesIO()
    rebuilt = Call(torch._utils._rebuild_tensor_v2, "place", offset, shape, strides, False, None)
    Writer(buffer, 2).dump({"a": rebuilt})
    return buffer.getvalue()


BEYOND: Mapping[str, tuple[Any, ...]] = {
    "too large": (0, (7,), (1,)),
    "offset": (1, (6,), (1,)),
    "strides": (0, (2, 3), (4, 1)),
    "negative offset": (-1, (2,), (1,)),
    "negative size": (0, (-1,), (1,)),
    "two negative sizes": (0, (-2, -2), (1, 1)),
    "negative stride": (5, (3,), (-1,)),
    "size that wraps": (0, (2**62, 4), (4, 1)),
    "stride that wraps": (0, (2, 2), (2**63, 1)),
    "size no number": (0, ("3",), (1,)),
    "size a truth": (0, (True,), (1,)),
    "axes": (0, (1,) * 70, (1,) * 70),
    "fewer strides": (0, (1, 1), (1,)),
    "nothing in nothing": (7, (1,), (0,)),
}


@pytest.mark.parametrize("name", BEYOND)
def test_a_tensor_beyond_its_storage_is_refused(name: str, tmp_path: Path) -> None:
    path = archive(tensor(*BEYOND[name]), tmp_path, **{"0": bytes(24)})
    with pytest.raises(CheckpointError, match=r"beyond its storage|is no shape"):
        open_weights(path)


def test_a_tensor_within_its_storage_is_read(tmp_path: Path) -> None:
    path = archive(tensor(1, (2, 2), (2, 1)), tmp_path, **{"0": struct.pack("<6f", *range(6))})
    assert open_weights(path).readers["a"]().tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("size", [0, 23, 25, 48])
def test_a_storage_of_another_size_than_stated_is_refused(size: int, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="bytes of numbers where 24 are listed"):
        open_weights(archive(tensor(0, (6,), (1,)), tmp_path, **{"0": bytes(size)}))


@pytest.mark.parametrize("key", ["1", "../data.pkl", "0/../0", "", "/etc/passwd"])
def test_a_storage_that_is_not_there_is_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="without the numbers that it lists"):
        open_weights(archive(tensor(0, (6,), (1,), key=key), tmp_path, **{"0": bytes(24)}))


def test_two_storages_under_one_key_are_refused(tmp_path: Path) -> None:
    first, second = tensor(0, (6,), (1,)), tensor(0, (6,), (1,)).replace(b"FloatStorage", b"IntStorage")
    both = first[:-1] + second[2:-1] + b"\x86."
    with pytest.raises(CheckpointError, match="two storages under one key: 0"):
        open_weights(archive(both, tmp_path, **{"0": bytes(24)}))


# The zip file around it.


def test_members_of_one_name_are_refused(tmp_path: Path) -> None:
    path = archive(tensor(0, (6,), (1,)), tmp_path, **{"0": bytes(24)})
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as more:
        more.writestr("a/data/0", b"\xff" * 24)
    with pytest.raises(CheckpointError, match="two members of one name"):
        open_weights(path)


def test_two_pickles_are_refused(tmp_path: Path) -> None:
    path = archive(tensor(0, (6,), (1,)), tmp_path, **{"0": bytes(24)})
    with zipfile.ZipFile(path, "a") as more:
        more.writestr("b/data.pkl", opcodes(b"N"))
    with pytest.raises(CheckpointError, match=r"torch\.save did not write"):
        open_weights(path)


@pytest.mark.parametrize("offset", [1, 2**31, 2**32 - 2])
def test_a_member_that_lies_elsewhere_is_refused(offset: int, tmp_path: Path) -> None:
    path = archive(tensor(0, (6,), (1,)), tmp_path, **{"0": bytes(24)})
    data = path.read_bytes()
    entry = data.rindex(b"PK\x01\x02") + 42  # the offset of the local header in the last entry of the list
    path.write_bytes(data[:entry] + struct.pack("<I", offset) + data[entry + 4 :])
    with pytest.raises(CheckpointError, match="damaged or no PyTorch file"):
        open_weights(path)


def test_a_compressed_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as written,
        written.open("a/data.pkl", "w") as member,
    ):
        for _ in range(256):
            member.write(bytes(1 << 20))
    with pytest.raises(CheckpointError, match="compressed"):
        load_checkpoint(path)


def test_a_link_is_followed_as_any_path_and_loops_are_refused(tmp_path: Path) -> None:
    torch.save(meta_sam1(), tmp_path / "sam.pt")
    (tmp_path / "link.pt").symlink_to("sam.pt")
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    assert load_checkpoint(tmp_path / "link.pt").spec == small_spec()
    with pytest.raises(CheckpointError, match=r"loop\.pt"):
        load_checkpoint(tmp_path / "loop.pt")
