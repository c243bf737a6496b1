"""A pickle read as data: the opcodes build plain values and inert records, and nothing else.

A pickle is a program for a stack machine; the standard machine imports modules and calls functions as the program
says, so reading a file means running its author's code. This machine knows a fixed list of names ("globals"), each of
which stands for an inert record of ours. Calling one (REDUCE, NEWOBJ) calls a function of ours that checks its
arguments and returns a record. Anything else is refused by name: unknown globals, opcodes that reach outside
(INST, OBJ, EXT, PERSID), old text opcodes, and everything after the end.

Bounds, so that a hostile file costs little: a count of opcodes, a total length of strings, byte strings as slices of
the file and not as copies.

Reference: PEP 307, PEP 3154, PEP 574 (the opcodes).
"""

import pickle
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from autoguidance.errors import UserError

MAX_OPCODES = 300_000
MAX_TEXT = 16 << 20  # bytes of all strings together
MAX_STRING = 1 << 20

Call = Callable[..., Any]


class RefusedError(UserError):
    """A file that is not what it should be; the text is the reason, without the file's name."""


class Global:
    """A known name, as a value on the stack.

    Attributes:
        name: "module name".
        call: what REDUCE does with the arguments; None: it cannot be called.
        new: what NEWOBJ does with them; None: it cannot be made so.
    """

    __slots__ = ("call", "name", "new")

    def __init__(self, name: str, call: Call | None = None, new: Call | None = None) -> None:
        self.name, self.call, self.new = name, call, new


class Buildable(ABC):
    """A record that BUILD may complete."""

    @abstractmethod
    def build(self, state: Any) -> None:
        """Take the state. Raises RefusedError where it is not of the expected form."""


def _is_key(value: Any) -> bool:
    """Whether a value may be hashed. Large numbers can be chosen to have one hash: a set of them takes quadratic time."""
    return isinstance(value, str) or (isinstance(value, int) and -(2**31) <= value < 2**31)


class _Mark:
    __slots__ = ()


_MARK = _Mark()


def shown(thing: object) -> str:
    """A value from a file, safe for one line of a terminal. Only texts and numbers in full: a nest of tuples that share parts
    can take hours to write out."""
    simple = thing is None or isinstance(thing, (str, int, float, Exception))
    return ascii(str(thing)[:80])[1:-1] if simple else f"({type(thing).__name__})"


class PickleMachine:
    """Reads one pickle.

    Args:
        data: the bytes; slices of them may live on in the result.
        globals_: what each known (module, name) stands for.
        persistent: what BINPERSID does with its argument; None: refused.
        max_opcodes: most opcodes to execute.
    """

    def __init__(
        self,
        data: memoryview,
        globals_: Mapping[tuple[str, str], Global],
        persistent: Call | None = None,
        max_opcodes: int = MAX_OPCODES,
    ) -> None:
        self.data = data
        self.position = 0
        self._globals = globals_
        self._persistent = persistent
        self._max_opcodes = max_opcodes
        self._text = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def load(self, start: int = 0) -> Any:
        """The value of the pickle that begins at `start`; `position` is then the first byte after it.

        Raises: RefusedError where the pickle is damaged or holds anything that is not known.
        """
        self.position = start
        self._stack, self._memo = [], {}
        data, table, count = self.data, _TABLE, 0
        while True:
            if self.position >= len(data):
                raise RefusedError("the pickle ends too early; the file is cut off")
            code = data[self.position]
            self.position += 1
            count += 1
            if count > self._max_opcodes:
                raise RefusedError(f"the pickle has more than {self._max_opcodes} operations; no published file has")
            if code == _STOP:
                if len(self._stack) != 1:
                    raise RefusedError("the pickle leaves more or less than one value; it is damaged")
                value = self._pop()
                self._stack, self._memo = [], {}
                return value
            handler = table[code]
            if handler is None:
                raise RefusedError(f"the pickle holds the operation {_opcode_name(code)}, which published files do not")
            handler(self)

    # The stack

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise RefusedError("the pickle takes a value from an empty stack; it is damaged")
        return self._stack.pop()

    def _top(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise RefusedError("the pickle takes a value from an empty stack; it is damaged")
        return self._stack[-1]

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop_mark(self) -> list[Any]:
        stack = self._stack
        for place in range(len(stack) - 1, -1, -1):
            if stack[place] is _MARK:
                items = stack[place + 1 :]
                del stack[place:]
                return items
        raise RefusedError("the pickle has no mark where it needs one; it is damaged")

    # Bytes

    def _take(self, count: int) -> memoryview:
        end = self.position + count
        if count < 0 or end > len(self.data):
            raise RefusedError("the pickle declares more bytes than the file has; it is cut off or lies about its size")
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def _string(self, count: int) -> str:
        self._text += count
        if count > MAX_STRING or self._text > MAX_TEXT:
            raise RefusedError("the pickle holds longer text than published files do")
        try:
            return str(self._take(count), "utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise RefusedError("the pickle holds text that is not UTF-8; it is damaged") from None

    def _line(self) -> str:
        line, found, _ = bytes(self.data[self.position : self.position + 256]).partition(b"\n")
        if not found:
            raise RefusedError("the pickle names a global without an end; it is damaged")
        self.position += len(line) + 1
        return line.decode("utf-8", "backslashreplace")

    # Operations

    def _global(self, module: Any, name: Any) -> Any:
        if not isinstance(module, str) or not isinstance(name, str):
            raise RefusedError("the pickle names a global with something that is not text")
        known = self._globals.get((module, name))
        if known is None:
            raise RefusedError(f"it asks for {shown(module)}.{shown(name)}, which is not on the list of harmless names")
        return known

    def _call(self, function: Any, arguments: Any, how: str) -> Any:
        if not isinstance(function, Global):
            raise RefusedError("the pickle calls something that is not a known name")
        made = function.call if how == "REDUCE" else function.new
        if made is None:
            raise RefusedError(f"the pickle uses {function.name} in a way that published files do not ({how})")
        if not isinstance(arguments, tuple):
            raise RefusedError(f"the pickle calls {function.name} without a tuple of arguments")
        try:
            return made(*arguments)
        except TypeError:
            raise RefusedError(
                f"the pickle calls {function.name} with {len(arguments)} arguments of a wrong kind"
            ) from None

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise RefusedError("the pickle refers to a value that it never stored; it is damaged")
        self._push(self._memo[index])

    def _put(self, index: int) -> None:
        self._memo[index] = self._top()

    def _build(self) -> None:
        state = self._pop()
        target = self._top()
        if isinstance(target, Buildable):
            target.build(state)
        elif not (isinstance(target, dict) and isinstance(state, dict) and not state):
            raise RefusedError("the pickle sets the state of something that has none in published files")

    def _append(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise RefusedError("the pickle appends to something that is not a list")
        target.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(items) % 2:
            raise RefusedError("the pickle sets items of something that is not a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not _is_key(key):
                raise RefusedError("the pickle has a dictionary key that is neither text nor a small number")
            target[key] = value

    def _set_of(self, items: list[Any]) -> set[Any]:
        if not all(map(_is_key, items)):
            raise RefusedError("the pickle has a set of something other than text and small numbers")
        return set(items)

    def _add_items(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, set):
            raise RefusedError("the pickle adds items to something that is not a set")
        target |= self._set_of(items)

    def _persistent_id(self) -> None:
        if self._persistent is None:
            raise RefusedError("the pickle holds the operation BINPERSID, which published files do not")
        self._push(self._persistent(self._pop()))

    def _protocol(self) -> None:
        version = self._number(1)
        if version > 5:
            raise RefusedError(f"the pickle has protocol {version}; 2 to 5 are known")

    def _frame(self) -> None:
        # A frame is a hint for buffered readers; its length must not reach beyond the file, and is of no other use here.
        if self._number(8) > len(self.data) - self.position:
            raise RefusedError("the pickle declares more bytes than the file has; it is cut off or lies about its size")

    def _stack_global(self) -> None:
        name = self._pop()
        self._push(self._global(self._pop(), name))

    def _global_line(self) -> None:
        module = self._line()
        self._push(self._global(module, self._line()))

    def _reduce(self) -> None:
        arguments = self._pop()
        self._push(self._call(self._pop(), arguments, "REDUCE"))

    def _newobj(self) -> None:
        arguments = self._pop()
        self._push(self._call(self._pop(), arguments, "NEWOBJ"))

    def _tuple(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(items)))

    def _last_two(self) -> list[Any]:
        value = self._pop()
        return [self._pop(), value]

    def _pop_any(self) -> None:
        if not self._stack:
            raise RefusedError("the pickle takes a value from an empty stack; it is damaged")
        self._stack.pop()


def _opcode_name(code: int) -> str:
    names = {getattr(pickle, name): name for name in pickle.__all__ if isinstance(getattr(pickle, name), bytes)}
    return names.get(bytes([code]), f"0x{code:02x}")


_STOP = pickle.STOP[0]
_M = PickleMachine
_HANDLERS: dict[bytes, Callable[[PickleMachine], Any]] = {
    pickle.PROTO: _M._protocol,
    pickle.FRAME: _M._frame,
    pickle.MARK: lambda m: m._push(_MARK),
    pickle.POP: _M._pop_any,
    pickle.POP_MARK: _M._pop_mark,
    pickle.DUP: lambda m: m._push(m._top()),
    pickle.NONE: lambda m: m._push(None),
    pickle.NEWTRUE: lambda m: m._push(True),
    pickle.NEWFALSE: lambda m: m._push(False),
    pickle.BININT: lambda m: m._push(struct.unpack("<i", m._take(4))[0]),
    pickle.BININT1: lambda m: m._push(m._number(1)),
    pickle.BININT2: lambda m: m._push(m._number(2)),
    pickle.LONG1: lambda m: m._push(int.from_bytes(m._take(m._number(1)), "little", signed=True)),
    pickle.BINFLOAT: lambda m: m._push(struct.unpack(">d", m._take(8))[0]),
    pickle.SHORT_BINUNICODE: lambda m: m._push(m._string(m._number(1))),
    pickle.BINUNICODE: lambda m: m._push(m._string(m._number(4))),
    pickle.BINUNICODE8: lambda m: m._push(m._string(m._number(8))),
    pickle.SHORT_BINBYTES: lambda m: m._push(m._take(m._number(1))),
    pickle.BINBYTES: lambda m: m._push(m._take(m._number(4))),
    pickle.BINBYTES8: lambda m: m._push(m._take(m._number(8))),
    pickle.EMPTY_LIST: lambda m: m._push([]),
    pickle.EMPTY_DICT: lambda m: m._push({}),
    pickle.EMPTY_TUPLE: lambda m: m._push(()),
    pickle.EMPTY_SET: lambda m: m._push(set()),
    pickle.TUPLE: lambda m: m._push(tuple(m._pop_mark())),
    pickle.TUPLE1: lambda m: m._tuple(1),
    pickle.TUPLE2: lambda m: m._tuple(2),
    pickle.TUPLE3: lambda m: m._tuple(3),
    pickle.APPEND: lambda m: m._append([m._pop()]),
    pickle.APPENDS: lambda m: m._append(m._pop_mark()),
    pickle.SETITEM: lambda m: m._set_items(m._last_two()),
    pickle.SETITEMS: lambda m: m._set_items(m._pop_mark()),
    pickle.ADDITEMS: lambda m: m._add_items(m._pop_mark()),
    pickle.FROZENSET: lambda m: m._push(m._set_of(m._pop_mark())),
    pickle.BINGET: lambda m: m._get(m._number(1)),
    pickle.LONG_BINGET: lambda m: m._get(m._number(4)),
    pickle.BINPUT: lambda m: m._put(m._number(1)),
    pickle.LONG_BINPUT: lambda m: m._put(m._number(4)),
    pickle.MEMOIZE: lambda m: m._put(len(m._memo)),
    pickle.GLOBAL: _M._global_line,
    pickle.STACK_GLOBAL: _M._stack_global,
    pickle.REDUCE: _M._reduce,
    pickle.NEWOBJ: _M._newobj,
    pickle.BUILD: _M._build,
    pickle.BINPERSID: _M._persistent_id,
}
_TABLE = [_HANDLERS.get(bytes([code])) for code in range(256)]
