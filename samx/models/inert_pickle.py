"""Read pickles without running them: plain values are built, every other global is only remembered by its name.

Nothing is imported, and nothing that a pickle names is called. A caller may give functions of its own for some names.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from mmap import mmap
from typing import Any, NoReturn

MAX_STEPS = 1_000_000  # instructions, and items that are copied; ViT-H with its optimiser's state has 60,000
MAX_MEMO = 2**32 - 1  # what four bytes address; larger numbers may be chosen to collide


class PickleError(ValueError):
    """Tell in a few words what a pickle has that no honest one has."""


@dataclass(frozen=True, slots=True)
class Name:
    """Name what a pickle would have imported."""

    path: str


@dataclass(slots=True, eq=False)
class Inert:
    """Remember what a pickle would have made: of what, of which arguments, with which state and items."""

    callee: object
    arguments: object = ()
    state: object = None
    items: dict[str, Any] = field(default_factory=dict)


class Window:
    """Read a stretch of a mapped file as a file."""

    def __init__(self, mapping: mmap | bytes, start: int, end: int) -> None:
        self._mapping, self._at, self._end = mapping, start, end

    def tell(self) -> int:
        """Return the position in the mapped file."""
        return self._at

    def read(self, size: int) -> bytes:
        """Return the next bytes, at the end fewer than asked for."""
        start, self._at = self._at, min(self._at + size, self._end)
        return self._mapping[start : self._at]

    def readline(self) -> bytes:
        """Return the next bytes up to a line's end."""
        end = self._mapping.find(b"\n", self._at, self._end) + 1
        return self.read((end or self._end) - self._at)


Known = Mapping[str, Callable[..., object]]


class InertUnpickler:
    """Run pickles that stand one after another in a file.

    known: what stands for some names; called with the pickle's arguments, which may be anything.
    persistent: what stands for an object outside the pickle, from its id.
    """

    def __init__(self, file: Window, known: Known, persistent: Callable[[Any], object]) -> None:
        self._file, self._known, self._persistent = file, known, persistent
        self._steps = 0
        self._reset()

    def load(self) -> Any:
        """Return the next pickle's object.

        Raises: PickleError, or another ValueError for bytes that are no pickle.
        """
        self._reset()
        for opcode, argument, _ in pickletools.genops(self._file):  # type: ignore[arg-type]
            self._spend(1)
            OPERATIONS.get(opcode.name, _refuse)(self, argument)
        return self._pop()

    def _reset(self) -> None:
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under the marks
        self._memo: dict[int, Any] = {}

    def _spend(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise PickleError(f"a pickle of more than {MAX_STEPS} steps")

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack:
            raise PickleError("a pickle that takes from an empty stack")
        return self._stack.pop()

    def _top(self) -> Any:
        value = self._pop()
        self._stack.append(value)
        return value

    def _mark(self, _: object) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        if not self._below:
            raise PickleError("a pickle without the mark that it goes back to")
        items, self._stack = self._stack, self._below.pop()
        return items

    def _last(self, count: int) -> list[Any]:
        return [self._pop() for _ in range(count)][::-1]

    def _put(self, index: int | None) -> None:
        place = len(self._memo) if index is None else index
        if not 0 <= place <= MAX_MEMO:
            raise PickleError("a pickle that keeps more than there is room for")
        self._memo[place] = self._top()

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise PickleError("a pickle that refers to what it did not keep")
        self._push(self._memo[index])

    def _name(self, path: object) -> None:
        self._push(Name(str(path).replace(" ", ".", 1)))

    def _stack_name(self, _: object) -> None:
        module, name = self._last(2)
        if not (isinstance(module, str) and isinstance(name, str)):
            raise PickleError("a pickle that names by something else than text")
        self._push(Name(f"{module}.{name}"))

    def _call(self, callee: object, arguments: object) -> None:
        """Push what stands for a call: nothing is called but the functions in `known`."""
        function = self._known.get(callee.path) if isinstance(callee, Name) else None
        if function is None or type(arguments) is not tuple:
            self._push(Inert(callee, arguments))
            return
        self._spend(sum(len(each) for each in arguments if isinstance(each, (list, tuple, dict))))
        try:
            self._push(function(*arguments))
        except TypeError as cause:
            raise PickleError("a call with other arguments than it takes") from cause

    def _reduce(self, _: object) -> None:
        self._call(*self._last(2))

    def _new_with_names(self, _: object) -> None:
        callee, arguments, named = self._last(3)
        self._push(Inert(callee, (arguments, named)))

    def _new_since_mark(self, _: object) -> None:
        callee, *arguments = self._since_mark() or [None]
        self._push(Inert(callee, tuple(arguments)))

    def _instance(self, path: object) -> None:
        self._push(Inert(Name(str(path).replace(" ", ".", 1)), tuple(self._since_mark())))

    def _build(self, _: object) -> None:
        state, target = self._pop(), self._top()
        if type(target) is Inert:  # elsewhere they are attributes that nobody asks for, such as a state's _metadata
            target.state = state

    def _extend(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) is list:
            target.extend(items)
        elif type(target) is not Inert:
            raise PickleError("a pickle that appends to what is no list")

    def _update(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) not in (dict, Inert) or len(items) % 2:
            raise PickleError("a pickle that sets items of what is no dictionary")
        held = target if type(target) is dict else target.items
        held.update(named(zip(items[::2], items[1::2], strict=True)))

    def _new_dict(self, _: object) -> None:
        items = self._since_mark()
        self._push({})
        self._update(items)

    def _persist(self, _: object) -> None:
        self._push(self._persistent(self._pop()))


def named(pairs: Any) -> Iterator[tuple[str, Any]]:
    """Leave the pairs whose key is text; hashing other keys may take an attacker's time or depth."""
    return ((key, value) for key, value in pairs if type(key) is str)


def _refuse(_: InertUnpickler, argument: object) -> NoReturn:
    raise PickleError("a pickle with an instruction that checkpoints do not have")


Operation = Callable[[InertUnpickler, Any], object]
LITERALS = (
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
)  # fmt: skip
U = InertUnpickler
OPERATIONS: Mapping[str, Operation] = {
    **dict.fromkeys(LITERALS, U._push),
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, _: None),
    "NONE": lambda machine, _: machine._push(None),
    "NEWTRUE": lambda machine, _: machine._push(True),
    "NEWFALSE": lambda machine, _: machine._push(False),
    "EMPTY_TUPLE": lambda machine, _: machine._push(()),
    "EMPTY_LIST": lambda machine, _: machine._push([]),
    "EMPTY_DICT": lambda machine, _: machine._push({}),
    "EMPTY_SET": lambda machine, _: machine._push([]),  # a set's items are kept as a list, unhashed
    "TUPLE": lambda machine, _: machine._push(tuple(machine._since_mark())),
    "TUPLE1": lambda machine, _: machine._push(tuple(machine._last(1))),
    "TUPLE2": lambda machine, _: machine._push(tuple(machine._last(2))),
    "TUPLE3": lambda machine, _: machine._push(tuple(machine._last(3))),
    "LIST": lambda machine, _: machine._push(machine._since_mark()),
    "FROZENSET": lambda machine, _: machine._push(machine._since_mark()),
    "DICT": U._new_dict,
    "APPEND": lambda machine, _: machine._extend([machine._pop()]),
    "APPENDS": lambda machine, _: machine._extend(machine._since_mark()),
    "ADDITEMS": lambda machine, _: machine._extend(machine._since_mark()),
    "SETITEM": lambda machine, _: machine._update(machine._last(2)),
    "SETITEMS": lambda machine, _: machine._update(machine._since_mark()),
    "MARK": U._mark,
    "POP": lambda machine, _: machine._pop() if machine._stack else machine._since_mark(),
    "POP_MARK": lambda machine, _: machine._since_mark(),
    "DUP": lambda machine, _: machine._push(machine._top()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), U._put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), U._get),
    "GLOBAL": U._name,
    "STACK_GLOBAL": U._stack_name,
    "REDUCE": U._reduce,
    "NEWOBJ": U._reduce,
    "NEWOBJ_EX": U._new_with_names,
    "OBJ": U._new_since_mark,
    "INST": U._instance,
    "BUILD": U._build,
    "BINPERSID": U._persist,
}
