"""The parts of hostile files: valid values written by opcodes, each with the places where it can be made to lie.

Called without arguments each gives what a published file could hold (the `controls` of `hostile_files` prove it), so that a file
differs from a harmless one only in what its test names.
"""

import io
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import opcodes as op
import torch
from edm2_files import Raw, canary_source, dumps, network_objects, vae_encoder
from torch import Tensor

from autoguidance.models import build_model

CONFIG: dict[str, Any] = {
    "img_resolution": 4,
    "img_channels": 4,
    "label_dim": 3,
    "model_channels": 4,
    "channel_mult": [1],
    "num_blocks": 1,
    "attn_resolutions": [],
    "channels_per_head": 4,
    "logvar_channels": 8,
}
HOLE = b"<HOLE:%d>"  # stands for so many zero bytes in a large file, which are never written
_HERE = b"<HERE>"
ORDERED = op.call(op.name("collections", "OrderedDict"))
LOAD = op.name("torch.storage", "_load_from_bytes")
VICTIM = ("logvar_linear", "weight")  # the tensor that is replaced: [1, 8]


class Scene:
    """Where the files are made.

    Args:
        folder: also the working folder of the child that reads them; holds `canary_module`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.canary = folder, folder / "CANARY"
        (folder / "canary_module.py").write_text(canary_source(self.canary) + "def go(*arguments): pass\n")
        self.source = canary_source(self.canary)
        self.weights = random_weights(CONFIG)
        self._templates: dict[str, bytes] = {}

    def objects(self, changes: Mapping[str, Any] | None = None) -> Any:
        """The objects of a valid network file (of latents); `changes` to the constructor's arguments."""
        top = network_objects({**CONFIG, **(changes or {})}, self.weights, source=self.source)
        top["encoder"] = vae_encoder(self.source)
        return top

    def network(self, edit: Callable[[Any], None] | None = None, changes: Mapping[str, Any] | None = None) -> bytes:
        """A network file after `edit` has changed its objects."""
        top = self.objects(changes)
        if edit is not None:
            edit(top)
        return dumps(top, edited=True)

    def inject(self, place: str, code: bytes) -> bytes:
        """A network file with opcodes in a place: extra | note | weight | parameters | kwargs | vae | scale."""

        if place not in self._templates:

            def edit(top: Any) -> None:
                state = top["ema"].state
                target, key = {
                    "extra": (top, "extra"),
                    "note": (state, "note"),
                    "weight": (state["_modules"][VICTIM[0]].state["_parameters"], VICTIM[1]),
                    "parameters": (state["_modules"][VICTIM[0]].state, "_parameters"),
                    "kwargs": (state["_init_kwargs"], "sigma_data"),
                    "vae": (top["encoder"].state, "vae_name"),
                    "scale": (top["encoder"].state, "scale"),
                }[place]
                target[key] = Raw(_HERE)

            self._templates[place] = self.network(edit)
        before, _, after = self._templates[place].partition(_HERE)
        return before + code + after

    def command(self) -> bytes:
        """A shell command that makes the canary, as a string on the stack."""
        return op.text(f"touch {self.canary}")

    def python(self) -> bytes:
        """Python source that makes the canary, as a string on the stack."""
        return op.text(f"open({str(self.canary)!r}, 'w').close()")


def random_weights(config: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Weights of a network of this configuration."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {name: tensor.detach() for name, tensor in build_model(config).state_dict().items()}


def write(path: Path, content: bytes) -> Path:
    """Write a file; holes become zeros that take no space on the disk."""
    with path.open("wb") as file:
        while b"<HOLE:" in content:
            before, _, rest = content.partition(b"<HOLE:")
            size, _, content = rest.partition(b">")
            file.write(before)
            file.seek(int(size), 1)
        file.write(content)
        file.truncate()
    return path


def legacy(
    numel: int = 8,
    *,
    kind: tuple[str, str] = ("torch", "HalfStorage"),
    payload: bytes | None = None,
    declared: int | None = None,
    magic: bytes = op.number(0x1950A86A20F9469CFC6C),
    version: bytes = op.number(1001),
    platform: bytes = op.table(op.text("little_endian"), pickle.NEWTRUE),
    key: bytes = op.text("0"),
    keys: bytes = op.line(op.text("0")),
    location: bytes = op.text("cpu"),
    view: bytes = pickle.NONE,
    identity: bytes | None = None,
) -> bytes:
    """A storage as torch's old archive."""
    if identity is None:
        identity = op.many(op.text("storage"), op.text_name(*kind), key, location, op.number(numel), view)
        identity += pickle.BINPERSID
    parts = [op.whole(part, 2) for part in (magic, version, platform, identity, keys)]
    elements = b"\x00\x3c" * 8 if payload is None else payload
    return b"".join(parts) + struct.pack("<q", numel if declared is None else declared) + elements


def zipped(
    members: list[tuple[str, bytes]] | None = None,
    *,
    compression: int = zipfile.ZIP_STORED,
    pickled: bytes | None = None,
) -> bytes:
    """A storage as torch's zip archive; `pickled` replaces data.pkl."""
    identity = op.many(
        op.text("storage"), op.text_name("torch", "HalfStorage"), op.text("0"), op.text("cpu"), op.number(8)
    )
    if members is None:
        content = op.whole(identity + pickle.BINPERSID, 2) if pickled is None else pickled
        members = [("a/data.pkl", content), ("a/byteorder", b"little"), ("a/data/0", b"\x00\x3c" * 8)]
        members.append(("a/version", b"3\n"))
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", compression) as archive:
        warnings.simplefilter("ignore")  # duplicate names are the point
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def with_member(name: str, content: bytes = b"\x00\x3c" * 8, *, instead: str | None = None) -> bytes:
    """A zip archive with one more member, or another one instead."""
    with zipfile.ZipFile(io.BytesIO(zipped())) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist() if info.filename != instead]
    return zipped([*members, (name, content)])


def commented(count: int = 25) -> bytes:
    """A storage's zip archive whose directory is large: more members, each with a long comment."""
    buffer = io.BytesIO(zipped())
    with zipfile.ZipFile(buffer, "a") as archive:
        for index in range(count):
            info = zipfile.ZipInfo(f"a/x{index}")
            info.comment = b"x" * 65_000
            archive.writestr(info, b"")
    return buffer.getvalue()


def crowded(archive: bytes, count: int) -> bytes:
    """A zip archive whose directory has `count` more entries."""
    end = archive.rindex(b"PK\x05\x06")
    fields: list[Any] = list(struct.unpack("<4s4H2LH", archive[end : end + 22]))
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    fields[5] += count * len(entry)
    return archive[:end] + entry * count + struct.pack("<4s4H2LH", *fields)


def lying(
    archive: bytes, member: str, *, size: int | None = None, compressed: int | None = None, offset: int | None = None
) -> bytes:
    """A zip archive whose directory says something else about a member."""
    content = bytearray(archive)
    place = content.rindex(member.encode()) - 46
    assert content[place : place + 4] == b"PK\x01\x02"
    for value, where in ((compressed, 20), (size, 24), (offset, 42)):
        if value is not None:
            content[place + where : place + where + 4] = struct.pack("<L", value)
    return bytes(content)


def storage(archive: bytes) -> bytes:
    """torch.storage._load_from_bytes(archive)."""
    return op.call(LOAD, op.data(archive))


def tensor(
    archive: bytes | None = None,
    *,
    stored: bytes | None = None,
    offset: bytes = op.number(0),
    size: bytes = op.numbers(1, 8),
    stride: bytes = op.numbers(8, 1),
    rebuild: tuple[str, str] = ("torch._utils", "_rebuild_tensor_v2"),
    hooks: bytes = ORDERED,
    parameter: bool = True,
) -> bytes:
    """The tensor [1, 8] that is replaced, as a parameter."""
    held = storage(legacy() if archive is None else archive) if stored is None else stored
    code = op.call(op.name(*rebuild), held, offset, size, stride, pickle.NEWFALSE, hooks)
    if not parameter:
        return code
    return op.call(op.name("torch._utils", "_rebuild_parameter"), code, pickle.NEWTRUE, ORDERED)


def dtype(text: bytes = op.text("f4"), *, order: bytes = op.text("<"), fields: bytes = pickle.NONE * 3) -> bytes:
    """A numpy dtype."""
    code = op.call(op.name("numpy", "dtype"), text, pickle.NEWFALSE, pickle.NEWTRUE)
    return code + op.many(op.number(3), order, fields, *map(op.number, (-1, -1, 0))) + pickle.BUILD


def array(
    raw: bytes | None = None,
    *,
    shape: bytes = op.numbers(4),
    kind: bytes | None = None,
    made: bytes | None = None,
    held: bytes | None = None,
    fortran: bytes = pickle.NEWFALSE,
) -> bytes:
    """A numpy array, [4] float32 ones unless told otherwise."""
    if made is None:
        made = op.call(
            op.name("numpy.core.multiarray", "_reconstruct"), op.name("numpy", "ndarray"), op.numbers(0), op.data(b"b")
        )
    content = op.data(struct.pack("<4f", 1, 1, 1, 1) if raw is None else raw) if held is None else held
    return made + op.many(op.number(1), shape, kind or dtype(), fortran, content) + pickle.BUILD


def large_data(size: int) -> bytes:
    """A byte string of zeros that is a hole in the file."""
    return pickle.BINBYTES8 + struct.pack("<Q", size) + HOLE % size


def statistics(mu: bytes, sigma: bytes, *, num_images: bytes = op.number(5)) -> bytes:
    """A file of reference statistics."""
    fid = op.table(op.text("mu"), mu, op.text("sigma"), sigma)
    return op.whole(op.table(op.text("num_images"), num_images, op.text("fid"), fid))


def doubles(*shape: int, raw: bytes | None = None, text: str = "f8") -> bytes:
    """A float64 array of ones."""
    count = int(np.prod(shape))
    return array(
        struct.pack(f"<{count}d", *[1.0] * count) if raw is None else raw,
        shape=op.numbers(*shape),
        kind=dtype(op.text(text)),
    )


def persistent(meta: bytes) -> bytes:
    """_reconstruct_persistent_obj(meta)."""
    return op.call(op.name("torch_utils.persistence", "_reconstruct_persistent_obj"), meta)


def meta(
    class_name: bytes = op.text("Precond"),
    *,
    kind: bytes = op.text("class"),
    version: bytes = op.number(6),
    state: bytes = pickle.EMPTY_DICT,
) -> bytes:
    """What describes an object of the reference program."""
    return op.table(
        *(op.text("type"), kind, op.text("version"), version, op.text("module_src"), op.text("")),
        *(op.text("class_name"), class_name, op.text("state"), state),
    )


def npz(members: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A .npz of raw members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def npy(value: np.ndarray) -> bytes:
    """A .npy."""
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=True)
    return buffer.getvalue()


def npy_header(header: str, content: bytes = b"") -> bytes:
    """A .npy with a header of one's own."""
    raw = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw + content


def identity() -> bytes:
    """data.pkl of a storage's zip archive."""
    with zipfile.ZipFile(io.BytesIO(zipped())) as archive:
        return archive.read("a/data.pkl")


def encrypted(archive: bytes, member: str) -> bytes:
    """The archive with a member marked as encrypted."""
    content = bytearray(archive)
    place = content.rindex(member.encode()) - 46
    content[place + 8] |= 1
    return bytes(content)


def saved(value: Any, *, zipped: bool) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def unbuilt() -> bytes:
    """A numpy array without its content."""
    return op.call(
        op.name("numpy.core.multiarray", "_reconstruct"), op.name("numpy", "ndarray"), op.numbers(0), op.data(b"b")
    )


def object_in_object() -> bytes:
    """Wraps the value on the stack into an object's state: x -> object({a: x})."""
    before = pickle.EMPTY_DICT + op.put(9) + pickle.POP  # a dictionary that takes x
    store = op.put(8) + pickle.POP + before + op.get(9) + op.text("a") + op.get(8) + pickle.SETITEM + pickle.POP
    return store + persistent(meta(state=op.get(9)))


def shared_tensors(count: int) -> bytes:
    """A dictionary of `count` tensors on one storage."""
    function = op.name("torch._utils", "_rebuild_tensor_v2") + op.put(0) + pickle.POP
    held = storage(legacy()) + op.put(1) + pickle.POP
    arguments = op.get(1) + op.number(0) + op.numbers(8) + op.numbers(1) + pickle.NEWFALSE + ORDERED
    one = op.get(0) + pickle.MARK + arguments + pickle.TUPLE + op.put(2) + pickle.REDUCE + pickle.POP
    pairs = b"".join(op.text(f"t{index}") + op.get(0) + op.get(2) + pickle.REDUCE for index in range(count))
    return function + held + one + pickle.EMPTY_DICT + pickle.MARK + pairs + pickle.SETITEMS


def repeated(archive: bytes, count: int) -> bytes:
    """One archive, read `count` times."""
    start = op.data(archive) + pickle.TUPLE1 + op.put(0) + pickle.POP + LOAD + op.put(1) + pickle.POP
    return start + pickle.EMPTY_LIST + pickle.MARK + (op.get(1) + op.get(0) + pickle.REDUCE) * count + pickle.APPENDS


def large_tensor(*shape: int, kind: str = "ByteStorage", itemsize: int = 1) -> bytes:
    """A tensor of zeros, whose elements are a hole in the file."""
    count = int(np.prod(shape))
    archive = legacy(count, kind=("torch", kind), payload=b"")
    size = count * itemsize
    held = pickle.BINBYTES8 + struct.pack("<Q", len(archive) + size) + archive + HOLE % size
    strides = [int(np.prod(shape[place + 1 :])) for place in range(len(shape))]
    return tensor(stored=op.call(LOAD, held), size=op.numbers(*shape), stride=op.numbers(*strides))
