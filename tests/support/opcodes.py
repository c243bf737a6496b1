"""Pickles written by hand, opcode by opcode: for files that no pickler would write."""

import pickle
import struct

FREE = 1 << 20  # memo indices that `edm2_files.Writer` does not use


def text(value: str | bytes) -> bytes:
    """A string."""
    raw = value.encode() if isinstance(value, str) else value
    return pickle.BINUNICODE + struct.pack("<I", len(raw)) + raw


def data(value: bytes) -> bytes:
    """A byte string."""
    return pickle.BINBYTES + struct.pack("<I", len(value)) + value


def number(value: int) -> bytes:
    """An integer of any size up to 255 bytes."""
    if -(2**31) <= value < 2**31:
        return pickle.BININT + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return pickle.LONG1 + bytes([len(raw)]) + raw


def many(*items: bytes) -> bytes:
    """A tuple."""
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def numbers(*values: int) -> bytes:
    """A tuple of integers."""
    return many(*map(number, values))


def line(*items: bytes) -> bytes:
    """A list."""
    return pickle.EMPTY_LIST + pickle.MARK + b"".join(items) + pickle.APPENDS


def table(*pairs: bytes) -> bytes:
    """A dictionary from alternating keys and values."""
    return pickle.EMPTY_DICT + pickle.MARK + b"".join(pairs) + pickle.SETITEMS


def name(module: str, attribute: str) -> bytes:
    """A global by STACK_GLOBAL."""
    return text(module) + text(attribute) + pickle.STACK_GLOBAL


def text_name(module: str, attribute: str) -> bytes:
    """A global by GLOBAL."""
    return pickle.GLOBAL + f"{module}\n{attribute}\n".encode()


def call(function: bytes, *arguments: bytes) -> bytes:
    """function(*arguments) by REDUCE."""
    return function + many(*arguments) + pickle.REDUCE


def put(index: int) -> bytes:
    """Store the top of the stack in the memo."""
    return pickle.LONG_BINPUT + struct.pack("<I", FREE + index)


def get(index: int) -> bytes:
    """Fetch it again."""
    return pickle.LONG_BINGET + struct.pack("<I", FREE + index)


def whole(code: bytes, protocol: int = 4) -> bytes:
    """A complete pickle."""
    return pickle.PROTO + bytes([protocol]) + code + pickle.STOP


def doubled(depth: int, first: bytes = pickle.EMPTY_TUPLE) -> bytes:
    """A tuple of 2^depth leaves in `depth` steps: each is a pair of the one before."""
    return first + (pickle.DUP + pickle.TUPLE2) * depth


def nested(depth: int) -> bytes:
    """A list in a list in a list."""
    return pickle.EMPTY_LIST * depth + pickle.APPEND * (depth - 1)
