"""A catalogue of files that a reader of published EDM2 files must refuse, by kind.

Most are a valid file with one thing in it replaced, so that a reader that merely overlooks the thing reads the file, and the test
notices. `controls` are made by the same means and are harmless: they must be read, or the hostile twins would prove nothing.

Code that a file tries to run touches the scene's canary file, or imports `canary_module`, which does. (The list is long: one file
holds it, so that what is missing can be seen.)
"""

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import opcodes as op
import torch
from edm2_files import Raw, dumps, reference_objects, vae_encoder
from hostile_parts import (
    CONFIG,
    HOLE,
    LOAD,
    ORDERED,
    VICTIM,
    Scene,
    array,
    commented,
    crowded,
    doubles,
    dtype,
    encrypted,
    identity,
    large_data,
    large_tensor,
    legacy,
    lying,
    meta,
    npy,
    npy_header,
    npz,
    object_in_object,
    persistent,
    repeated,
    saved,
    shared_tensors,
    statistics,
    storage,
    tensor,
    unbuilt,
    with_member,
    zipped,
)
from safetensors.torch import save
from torch import Tensor

Build = Callable[[Scene], bytes]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One file.

    Attributes:
        kind, name: of the attack.
        build: the content.
        reader: "network" or "reference".
        says: what the refusal must name, in lower case.
        suffix: of the file's name.
    """

    kind: str
    name: str
    build: Build
    reader: str = "network"
    says: str = ""
    suffix: str = ".pkl"


def _code() -> Iterator[Case]:
    """Names that run code, called in every way a pickle can call."""
    shell: list[tuple[str, str]] = [
        ("os", "system"),
        ("posix", "system"),
        ("nt", "system"),
        ("subprocess", "getoutput"),
    ]
    shell += [("os", "popen"), ("subprocess", "call"), ("commands", "getoutput"), ("pty", "spawn")]
    source = [("builtins", "eval"), ("builtins", "exec"), ("__builtin__", "eval"), ("code", "InteractiveInterpreter")]
    source += [
        ("timeit", "timeit"),
        ("cProfile", "run"),
        ("torch.fx.graph_module", "_exec_with_source"),
        ("pdb", "run"),
    ]
    for module, attribute in shell + source:
        argument = Scene.command if (module, attribute) in shell else Scene.python
        yield Case(
            kind="call of a name that runs code",
            name=f"{module}.{attribute}",
            build=lambda s, m=module, a=attribute, g=argument: s.inject("extra", op.call(op.name(m, a), g(s))),
            says=f"{module}.{attribute}".lower(),
        )
    for module, attribute, argument in [
        ("builtins", "__import__", "canary_module"),
        ("importlib", "import_module", "canary_module"),
        ("runpy", "run_module", "canary_module"),
        ("pydoc", "locate", "canary_module.go"),
        ("pkgutil", "resolve_name", "canary_module:go"),
        ("canary_module", "go", ""),
        ("builtins", "getattr", ""),
        ("operator", "attrgetter", "system"),
        ("operator", "methodcaller", "system"),
        ("functools", "partial", ""),
        ("builtins", "map", ""),
        ("builtins", "open", "CANARY"),
        ("_io", "FileIO", "CANARY"),
        ("pathlib", "Path", "CANARY"),
        ("ctypes", "CDLL", "libc.so.6"),
        ("socket", "gethostbyname", "127.0.0.1"),
        ("urllib.request", "urlopen", "http://127.0.0.1:9/"),
        ("shutil", "rmtree", "nothing"),
        ("pickle", "loads", ""),
        ("_pickle", "loads", ""),
        ("torch", "load", "CANARY"),
        ("torch.jit", "load", "CANARY"),
        ("torch.serialization", "load", "CANARY"),
        ("numpy", "load", "CANARY"),
        ("numpy.f2py.crackfortran", "getlincoef", "1"),
        ("torch.hub", "load", "CANARY"),
        ("types", "FunctionType", ""),
        ("copyreg", "_reconstructor", ""),
        ("builtins", "bytearray", ""),
        ("sys", "exit", ""),
        ("os", "_exit", ""),
        ("signal", "raise_signal", ""),
    ]:
        yield Case(
            kind="call of a name that reaches out",
            name=f"{module}.{attribute}",
            build=lambda s, m=module, a=attribute, t=argument: s.inject("note", op.call(op.name(m, a), op.text(t))),
            says=f"{module}.{attribute}".lower(),
        )
    system = op.name("posix", "system")
    ways: dict[str, Callable[[Scene], bytes]] = {
        "GLOBAL REDUCE": lambda s: op.call(op.text_name("os", "system"), s.command()),
        "named and dropped": lambda s: system + pickle.POP + op.number(1),
        "named only": lambda s: op.text_name("canary_module", "go"),
        "NEWOBJ": lambda s: op.name("subprocess", "Popen") + op.many(s.command()) + pickle.NEWOBJ,
        "NEWOBJ_EX": lambda s: (
            op.name("subprocess", "Popen") + op.many(s.command()) + pickle.EMPTY_DICT + pickle.NEWOBJ_EX
        ),
        "INST": lambda s: pickle.MARK + s.command() + pickle.INST + b"os\nsystem\n",
        "OBJ": lambda s: pickle.MARK + system + s.command() + pickle.OBJ,
        "OBJ of a harmless name": lambda s: pickle.MARK + op.name("collections", "OrderedDict") + pickle.OBJ,
        "INST of a harmless name": lambda s: pickle.MARK + pickle.INST + b"collections\nOrderedDict\n",
        "NEWOBJ_EX of a harmless name": lambda s: (
            op.name("dnnlib.util", "EasyDict") + pickle.EMPTY_TUPLE + pickle.EMPTY_DICT + pickle.NEWOBJ_EX
        ),
        "EXT1": lambda s: pickle.EXT1 + b"\x01",
        "EXT2": lambda s: pickle.EXT2 + b"\x01\x00",
        "EXT4": lambda s: pickle.EXT4 + b"\x01\x00\x00\x00",
        "PERSID": lambda s: pickle.PERSID + b"CANARY\n",
        "BINPERSID": lambda s: op.text("CANARY") + pickle.BINPERSID,
        "NEXT_BUFFER": lambda s: pickle.NEXT_BUFFER,
        "READONLY_BUFFER": lambda s: op.data(b"1") + pickle.READONLY_BUFFER,
        "BYTEARRAY8 beyond the file": lambda s: pickle.BYTEARRAY8 + struct.pack("<Q", 2**61),
        "memo holds the name": lambda s: system + op.put(0) + pickle.POP + op.call(op.get(0), s.command()),
        "BUILD with a name as state": lambda s: ORDERED + system + pickle.BUILD,
    }
    for name, make in ways.items():
        yield Case(
            kind="ways of naming and calling",
            name=name,
            build=lambda s, m=make: s.inject("extra", m(s)),
        )
    for module, attribute in [
        ("collections", "OrderedDict.fromkeys"),
        ("collections", "_sys.modules"),
        ("collections", "OrderedDict.__init__.__globals__"),
        ("numpy", "ndarray.tofile"),
        ("numpy", "fromfile"),
        ("numpy", "os.system"),
        ("torch._utils", "importlib.import_module"),
        ("torch.storage", "io.open"),
        ("torch.storage", "_load_from_bytes.__globals__"),
        ("torch_utils.persistence", "exec"),
        ("dnnlib.util", "call_func_by_name"),
        ("dnnlib.util", ""),
        ("", "OrderedDict"),
        ("collections ", "OrderedDict"),
        ("collections\0", "OrderedDict"),
        ("collectiοns", "OrderedDict"),  # a Greek letter
        ("Collections", "OrderedDict"),
        ("collections", "OrderedDict\n\x1b[2J\x1b[31mall is well"),
        ("a" * 100_000, "b" * 100_000),
    ]:
        yield Case(
            kind="names near the harmless ones",
            name=f"{module[:20]!r}.{attribute[:40]!r}",
            build=lambda s, m=module, a=attribute: s.inject("extra", op.name(m, a)),
        )
    yield Case(
        kind="names near the harmless ones",
        name="not text",
        build=lambda s: s.inject("extra", op.number(1) + op.text("x") + pickle.STACK_GLOBAL),
    )


def _misuse() -> Iterator[Case]:
    """Harmless names and records used as no published file does."""
    easy, module_dict = op.name("dnnlib.util", "EasyDict"), op.name("torch.nn.modules.container", "ModuleDict")
    poison = op.table(
        op.text("__class__"), op.text("x"), op.text("__setstate__"), op.name("collections", "OrderedDict")
    )
    empty = pickle.EMPTY_TUPLE
    ways: dict[str, bytes] = {
        "EasyDict with arguments": easy + op.many(op.table(op.text("a"), op.number(1))) + pickle.NEWOBJ,
        "EasyDict by REDUCE": op.call(easy),
        "EasyDict with a state": easy + empty + pickle.NEWOBJ + poison + pickle.BUILD,
        "EasyDict with slots": easy + empty + pickle.NEWOBJ + op.many(pickle.NONE, poison) + pickle.BUILD,
        "OrderedDict with arguments": op.call(op.name("collections", "OrderedDict"), op.line(op.numbers(1, 2))),
        "OrderedDict by NEWOBJ": op.name("collections", "OrderedDict") + empty + pickle.NEWOBJ,
        "ModuleDict by REDUCE": op.call(module_dict),
        "ModuleDict with arguments": module_dict + op.many(op.number(1)) + pickle.NEWOBJ,
        "ModuleDict with two states": module_dict + empty + pickle.NEWOBJ + (pickle.EMPTY_DICT + pickle.BUILD) * 2,
        "ModuleDict with a tuple as state": module_dict + empty + pickle.NEWOBJ + op.numbers(1, 2) + pickle.BUILD,
        "object by NEWOBJ": op.name("torch_utils.persistence", "_reconstruct_persistent_obj") + empty + pickle.NEWOBJ,
        "object with a second state": persistent(meta()) + pickle.EMPTY_DICT + pickle.BUILD,
        "object without arguments": op.call(op.name("torch_utils.persistence", "_reconstruct_persistent_obj")),
        "object of a list": persistent(op.line()),
        "items of an object": persistent(meta()) + op.text("a") + op.number(1) + pickle.SETITEM,
        "ndarray by REDUCE": op.call(op.name("numpy", "ndarray"), op.numbers(2**40)),
        "ndarray by NEWOBJ": op.name("numpy", "ndarray") + op.many(op.numbers(2**40)) + pickle.NEWOBJ,
        "dtype by NEWOBJ": op.name("numpy", "dtype") + op.many(op.text("f4")) + pickle.NEWOBJ,
        "parameter of a number": op.call(
            op.name("torch._utils", "_rebuild_parameter"), op.number(1), op.number(1), ORDERED
        ),
        "arguments in a list": op.name("collections", "OrderedDict") + op.line() + pickle.REDUCE,
        "call of a string": op.text("os.system") + op.many() + pickle.REDUCE,
        "call of a dictionary": op.table() + op.many() + pickle.REDUCE,
        "state of a number": op.number(1) + poison + pickle.BUILD,
        "state of a list": op.line() + poison + pickle.BUILD,
        "state of a name": op.name("collections", "OrderedDict") + poison + pickle.BUILD,
        "items of a tuple": op.many() + op.number(1) + pickle.APPEND,
        "items of a string": op.text("a") + op.number(1) + op.number(1) + pickle.SETITEM,
        "set of a list": pickle.EMPTY_SET + pickle.MARK + op.line() + pickle.ADDITEMS,
        "key that is a list": op.table(op.line(), op.number(1)),
        "key that is a tuple": op.table(op.numbers(1), op.number(1)),
        "odd number of items": pickle.EMPTY_DICT + pickle.MARK + op.number(1) + pickle.SETITEMS,
    }
    for name, code in ways.items():
        yield Case(kind="harmless names misused", name=name, build=lambda s, c=code: s.inject("extra", c))
    objects: dict[str, bytes] = {
        "version 5": meta(version=op.number(5)),
        "version 7": meta(version=op.number(7)),
        "version as text": meta(version=op.text("6")),
        "type module": meta(kind=op.text("module")),
        "type a number": meta(kind=op.number(1)),
        "class_name a number": meta(op.number(1)),
        "class_name missing": op.table(op.text("type"), op.text("class"), op.text("version"), op.number(6)),
        "state a list": meta(state=op.line()),
        "state a string": meta(state=op.text("x")),
        "empty": op.table(),
    }
    for name, code in objects.items():
        yield Case(
            kind="objects described wrongly", name=name, build=lambda s, c=code: s.inject("extra", persistent(c))
        )


def _modules() -> Iterator[Case]:
    """Trees that are no tree, or of unknown parts."""

    def edited(name: str, change: Callable[[Any], None], says: str = "") -> Case:
        return Case(
            kind="trees of modules",
            name=name,
            build=lambda s: s.network(change),
            says=says,
        )

    def unet(top: Any) -> Any:
        return top["ema"].state["_modules"]["unet"]

    def conv(top: Any) -> Any:
        return unet(top).state["_modules"]["out_conv"]

    def rename(target: Callable[[Any], Any], name: str) -> Callable[[Any], None]:
        return lambda top: target(top).meta.update(class_name=name)

    yield edited("network of an unknown class", rename(lambda top: top["ema"], "Evil"), "evil")
    yield edited("part of an unknown class", rename(unet, "Evil"), "evil")
    yield edited("encoder of an unknown class", rename(lambda top: top["encoder"], "Evil"), "evil")
    yield edited("class name of escapes", rename(unet, "\x1b[2J\nread fine"))
    yield edited("no network", lambda top: top.pop("ema"), "ema")
    yield edited("network is a dictionary", lambda top: top.update(ema={"unet": 1}))
    yield edited("no encoder", lambda top: top.pop("encoder"), "encoder")
    yield edited("module contains itself", lambda top: unet(top).state["_modules"].update(me=top["ema"]))
    yield edited("module twice", lambda top: unet(top).state["_modules"].update(again=conv(top)))
    yield edited("modules in a list", lambda top: unet(top).state.update(_modules=[1]))
    yield edited("number as a module", lambda top: unet(top).state["_modules"].update(out_conv=1))
    yield edited("tensor as a module", lambda top: unet(top).state["_modules"].update(out_conv=torch.ones(1)))
    yield edited("number as a parameter", lambda top: conv(top).state["_parameters"].update(weight=1.0))
    yield edited("module as a parameter", lambda top: conv(top).state["_parameters"].update(weight=unet(top)))
    yield edited("array as a parameter", lambda top: conv(top).state["_parameters"].update(weight=np.ones(4)))
    yield edited("name with a dot", lambda top: unet(top).state["_modules"].update({"a.b": conv(top)}))
    yield edited("name that climbs", lambda top: conv(top).state["_parameters"].update({"../../x": torch.ones(1)}))
    yield edited("empty name", lambda top: conv(top).state["_parameters"].update({"": torch.ones(1)}))
    yield edited("number as a name", lambda top: conv(top).state["_parameters"].update({7: torch.ones(1)}))
    yield edited(
        "parameter is a buffer too",
        lambda top: conv(top).state["_buffers"].update(weight=torch.ones(4, 4, 3, 3).half()),
    )

    def tie(top: Any) -> None:
        parts = unet(top).state["_modules"]
        first = tensor(
            stored=storage(legacy(16, payload=b"\0\x3c" * 16)) + op.put(0),
            size=op.numbers(4, 4),
            stride=op.numbers(4, 1),
        )
        again = tensor(stored=op.get(0), size=op.numbers(4, 3), stride=op.numbers(4, 1))
        parts["emb_noise"].state["_parameters"]["weight"] = Raw(first)
        parts["emb_label"].state["_parameters"]["weight"] = Raw(again)

    yield edited("two tensors on one storage", tie)

    def deepen(top: Any) -> None:
        part = unet(top)
        for _ in range(20):
            part.state["_modules"]["deeper"] = part = type(part)(
                "Block", {"_modules": {}, "_parameters": {}, "_buffers": {}}, ""
            )

    yield edited("twenty levels", deepen)
    for name, value in {
        "NaN": float("nan"),
        "infinity": float("inf"),
        "minus infinity": -float("inf"),
    }.items():
        yield Case(
            kind="values that are not finite",
            name=name,
            build=lambda s, v=value: s.network(
                lambda top: conv(top).state["_parameters"]["weight"].data.view(-1)[5].fill_(v)
            ),
            says="finite",
        )
    replaced: dict[str, Tensor] = {
        "transposed": torch.ones(8, 1).half(),
        "longer": torch.ones(1, 9).half(),
        "one dimension less": torch.ones(8).half(),
        "integers": torch.ones(1, 8, dtype=torch.int64),
        "bytes": torch.ones(1, 8, dtype=torch.uint8),
        "booleans": torch.ones(1, 8, dtype=torch.bool),
        "complex": torch.ones(1, 8, dtype=torch.complex64),
        "eight bits": torch.ones(1, 8).to(torch.float8_e4m3fn),
    }
    for name, value in replaced.items():

        def change(top: Any, value: Tensor = value) -> None:
            top["ema"].state["_modules"][VICTIM[0]].state["_parameters"][VICTIM[1]] = torch.nn.Parameter(value, False)

        yield Case(kind="tensors that do not fit", name=name, build=lambda s, c=change: s.network(c))
    yield Case(
        kind="tensors that do not fit",
        name="missing",
        build=lambda s: s.network(lambda top: conv(top).state["_parameters"].clear()),
        says="out_conv",
    )
    yield Case(
        kind="tensors that do not fit",
        name="one too many",
        build=lambda s: s.network(lambda top: conv(top).state["_parameters"].update(bias=torch.ones(4).half())),
        says="bias",
    )
    yield Case(
        kind="tensors that do not fit",
        name="None",
        build=lambda s: s.network(lambda top: conv(top).state["_parameters"].update(weight=None)),
    )


def _options() -> Iterator[Case]:
    """Constructor's arguments that ask for the impossible, or for more than fits."""
    for key, value in [
        ("model_channels", 10**9),
        ("model_channels", -4),
        ("model_channels", 4.0),
        ("model_channels", "4"),
        ("num_blocks", 10**6),
        ("num_blocks", -1),
        ("img_resolution", 2**20),
        ("img_resolution", 0),
        ("img_channels", 2**31),
        ("label_dim", 10**12),
        ("label_dim", -1),
        ("label_dim", 2**400),
        ("logvar_channels", 10**10),
        ("channel_mult", [10**9]),
        ("channel_mult", [1] * 10_000),
        ("channel_mult", []),
        ("channel_mult", 1),
        ("channel_mult", {"a": 1}),
        ("channel_mult", [[1]]),
        ("channel_mult_emb", 10**9),
        ("channel_mult_noise", 0.5),
        ("attn_resolutions", 4),
        ("attn_resolutions", "44"),
        ("channels_per_head", 0),
        ("channels_per_head", 3),
        ("sigma_data", float("nan")),
        ("sigma_data", "0.5"),
        ("sigma_data", [0.5]),
        ("sigma_data", 0.0),
        ("sigma_data", -1.0),
        ("sigma_data", None),
        ("use_fp16", "yes"),
        ("label_balance", None),
        ("concat_balance", float("inf")),
        ("res_balance", [0.3, 0.3]),
        ("clip_act", "256"),
        ("clip_act", [256.0]),
        ("dropout", 7.0),
        ("dropout", "0.1"),
        ("resample_filter", []),
        ("resample_filter", [1, 1, 1]),
        ("resample_filter", 1),
        ("resample_filter", [1, None]),
        ("in_channels", 4),
        ("colour", "red"),
        ("self", 1),
    ]:
        yield Case(
            kind="impossible options",
            name=f"{key}={str(value)[:20]}",
            build=lambda s, k=key, v=value: s.network(changes={k: v}),
        )

    def kwargs(value: Any) -> Callable[[Any], None]:
        return lambda top: top["ema"].state.update(_init_kwargs=value)

    for name, value in {"a list": [1, 2], "nothing": {}, "a string": "x", "number as key": {7: 1, **CONFIG}}.items():
        yield Case(
            kind="impossible options",
            name=f"keywords are {name}",
            build=lambda s, v=value: s.network(kwargs(v)),
        )
    yield Case(
        kind="impossible options",
        name="thousand positional arguments",
        build=lambda s: s.network(lambda top: top["ema"].state.update(_init_args=(4,) * 1000)),
    )
    # Built in full, this configuration has 14 levels of 66 blocks: refusing it must not take minutes.
    yield Case(
        kind="impossible options",
        name="as many blocks as are allowed",
        build=lambda s: s.network(
            changes={
                "img_resolution": 8192,
                "channel_mult": [1] * 14,
                "num_blocks": 32,
                "attn_resolutions": [2**k for k in range(14)],
            }
        ),
    )
    for name, value in {
        "web address": "https://evil.example/x",
        "climbing": "../../etc/passwd",
        "absolute": "/etc/passwd",
        "three parts": "a/b/c",
        "escapes": "a/b\x1b[2J",
        "number": 7,
        "newline": "stabilityai/sd-vae-ft-mse\n",
        "dots": "../x",
    }.items():
        yield Case(
            kind="encoders that lead elsewhere",
            name=name,
            build=lambda s, v=value: s.network(lambda top: top["encoder"].state.update(vae_name=v)),
        )
    for name, value in {
        "zero scale": np.zeros(4, np.float32),
        "NaN scale": np.full(4, np.nan, np.float32),
        "no elements": np.zeros(0, np.float32),
        "text": np.array(["a"]),
        "objects": np.array([{}], dtype=object),
        "a module": vae_encoder(),
        "wrong number of channels": np.ones(3, np.float32),
    }.items():
        yield Case(
            kind="encoders that lead elsewhere",
            name=name,
            build=lambda s, v=value: s.network(lambda top: top["encoder"].state.update(scale=v)),
        )


def _archives() -> Iterator[Case]:
    """Storages whose archive is not what torch writes."""
    system = op.text_name("os", "system")
    ways: dict[str, Callable[[Scene], bytes]] = {
        "code as magic number": lambda s: legacy(magic=op.call(system, s.command())),
        "code as version": lambda s: legacy(version=op.call(system, s.command())),
        "code as platform": lambda s: legacy(platform=op.call(system, s.command())),
        "code as the identity": lambda s: legacy(identity=op.call(system, s.command())),
        "code as location": lambda s: legacy(location=op.call(system, s.command())),
        "code as key": lambda s: legacy(key=op.call(system, s.command())),
        "code as keys": lambda s: legacy(keys=op.call(system, s.command())),
        "code as view": lambda s: legacy(view=op.call(system, s.command())),
        "code as storage type": lambda s: legacy(kind=("canary_module", "go")),
        "a whole network file": lambda s: s.network(),
        "loads itself": lambda s: legacy(identity=storage(legacy())),
        "empty": lambda s: b"",
        "zeros": lambda s: bytes(1000),
        "text": lambda s: b"hello",
        "cut in the elements": lambda s: legacy()[:-1],
        "cut in the count": lambda s: legacy()[:-20],
        "cut in the keys": lambda s: legacy()[:-26],
        "one byte more": lambda s: legacy() + b"\0",
        "fewer elements than declared": lambda s: legacy(9),
        "more elements than declared": lambda s: legacy(7),
        "two numbers of elements": lambda s: legacy(8, declared=9),
        "negative number": lambda s: legacy(-8),
        "negative count": lambda s: legacy(8, declared=-1),
        "2^62 elements": lambda s: legacy(2**62),
        "2^64 + 8 elements": lambda s: legacy(2**64 + 8, declared=8),
        "number as text": lambda s: legacy(
            identity=op.many(
                op.text("storage"), op.text_name("torch", "HalfStorage"), op.text("0"), op.text("cpu"), op.text("8")
            )
            + pickle.BINPERSID
        ),
        "no elements": lambda s: legacy(0, payload=b""),
        "wrong magic number": lambda s: legacy(magic=op.number(7)),
        "magic number is text": lambda s: legacy(magic=op.text("x")),
        "wrong version": lambda s: legacy(version=op.number(1002)),
        "big-endian": lambda s: legacy(platform=op.table(op.text("little_endian"), pickle.NEWFALSE)),
        "platform missing": lambda s: legacy(platform=op.line()),
        "two keys": lambda s: legacy(keys=op.line(op.text("0"), op.text("1"))),
        "no keys": lambda s: legacy(keys=op.line()),
        "another key": lambda s: legacy(keys=op.line(op.text("1"))),
        "a view": lambda s: legacy(view=op.many(op.text("0"), op.number(0), op.number(4))),
        "quantized": lambda s: legacy(kind=("torch", "QUInt8Storage")),
        "untyped": lambda s: legacy(kind=("torch.storage", "UntypedStorage")),
        "on a GPU": lambda s: legacy(kind=("torch.cuda", "HalfStorage")),
        "complex": lambda s: legacy(kind=("torch", "ComplexFloatStorage")),
        "a module and its source": lambda s: legacy(identity=op.many(op.text("module"), system) + pickle.BINPERSID),
        "a tensor, not a storage": lambda s: saved({"a": torch.ones(8)}, zipped=False),
        "a dictionary": lambda s: legacy(identity=op.table()),
        "two identities": lambda s: legacy(identity=op.many(*[op.text("x")] * 7) + pickle.BINPERSID),
        "identity is text": lambda s: legacy(identity=op.text("storage") + pickle.BINPERSID),
        "10 MB of opcodes": lambda s: legacy(platform=(pickle.NONE + pickle.POP) * 5_000_000 + pickle.NONE),
    }
    for name, make in ways.items():
        yield Case(
            kind="archives of storages, old form",
            name=name,
            build=lambda s, m=make: s.inject("weight", tensor(m(s))),
        )
    zips: dict[str, Callable[[Scene], bytes]] = {
        "code in data.pkl": lambda s: zipped(pickled=op.whole(op.call(system, s.command()), 2)),
        "import in data.pkl": lambda s: zipped(pickled=op.whole(op.text_name("canary_module", "go"), 2)),
        "a tensor in data.pkl": lambda s: saved(torch.ones(8).half(), zipped=True),
        "second pickle in data.pkl": lambda s: zipped(pickled=identity() + op.whole(op.number(1))),
        "data.pkl without an end": lambda s: zipped(pickled=identity()[:-1]),
        "deflated": lambda s: zipped(compression=zipfile.ZIP_DEFLATED),
        "bzip2": lambda s: zipped(compression=zipfile.ZIP_BZIP2),
        "deflate bomb": lambda s: zipped([("a/data.pkl", identity()), ("a/data/0", bytes(50_000_000))], compression=8),
        "deflate bomb in data.pkl": lambda s: zipped(pickled=bytes(50_000_000), compression=8),
        "says it is larger": lambda s: lying(zipped(), "a/data/0", size=2**31, compressed=2**31),
        "says it is smaller": lambda s: lying(zipped(), "a/data/0", size=8, compressed=8),
        "two sizes": lambda s: lying(zipped(), "a/data/0", size=16, compressed=15),
        "lies before the file": lambda s: lying(zipped(), "a/data/0", offset=2**31),
        "lies inside another member": lambda s: lying(zipped(), "a/data/0", offset=3),
        "all sizes at their limit": lambda s: lying(
            zipped(), "a/data/0", size=2**32 - 1, compressed=2**32 - 1, offset=2**32 - 1
        ),
        "climbing member": lambda s: with_member("a/../../CANARY"),
        "climbing member alone": lambda s: with_member("../CANARY"),
        "absolute member": lambda s: with_member("/tmp/CANARY"),
        "two members of a name": lambda s: with_member("a/data/0"),
        "two storages": lambda s: with_member("a/data/1"),
        "another key": lambda s: with_member("a/data/1", instead="a/data/0"),
        "no data.pkl": lambda s: with_member("a/x", instead="a/data.pkl"),
        "big-endian": lambda s: with_member("a/byteorder", b"big", instead="a/byteorder"),
        "a TorchScript archive": lambda s: zipped(
            [("a/code/__torch__.py", s.source.encode()), ("a/constants.pkl", identity())]
        ),
        "no members": lambda s: zipped([]),
        "cut": lambda s: zipped()[:-30],
        "directory damaged": lambda s: zipped().replace(b"PK\x01\x02", b"PK\x01\x03"),
        "encrypted": lambda s: encrypted(zipped(), "a/data/0"),
        "400 000 members": lambda s: crowded(zipped(), 400_000),
        "zip in a zip": lambda s: zipped(pickled=zipped()),
    }
    for name, make in zips.items():
        yield Case(
            kind="archives of storages, zip form",
            name=name,
            build=lambda s, m=make: s.inject("weight", tensor(m(s))),
        )
    others: dict[str, bytes] = {
        "text": op.text("x"),
        "a number": op.number(8),
        "a list": op.line(),
        "itself": LOAD,
        "a storage": storage(legacy()),
    }
    for name, code in others.items():
        yield Case(
            kind="archives of storages, old form",
            name=f"not bytes but {name}",
            build=lambda s, c=code: s.inject("weight", tensor(stored=op.call(LOAD, c))),
        )


def _tensors() -> Iterator[Case]:
    """Views that reach beyond their storage, or show one element many times."""
    one, large = op.number(1), op.numbers(2**31, 2**31, 2**31)
    ways: dict[str, bytes] = {
        "stride 0": tensor(legacy(1, payload=b"\0\x3c"), stride=op.numbers(1, 0)),
        "all strides 0": tensor(legacy(1, payload=b"\0\x3c"), stride=op.numbers(0, 0)),
        "negative stride": tensor(offset=op.number(7), stride=op.numbers(8, -1)),
        "overlapping strides": tensor(size=op.numbers(2, 4), stride=op.numbers(1, 1)),
        "stride too long": tensor(stride=op.numbers(8, 2)),
        "stride 2^62": tensor(stride=op.numbers(8, 2**62)),
        "offset 1": tensor(offset=one),
        "offset -1": tensor(offset=op.number(-1)),
        "offset 2^63": tensor(offset=op.number(2**63)),
        "offset is text": tensor(offset=op.text("0")),
        "offset is a truth value": tensor(offset=pickle.NEWFALSE),
        "larger than the storage": tensor(size=op.numbers(1, 9), stride=op.numbers(9, 1)),
        "2^93 elements": tensor(size=large, stride=large),
        "2^93 elements, stride 0": tensor(size=large, stride=op.numbers(0, 0, 0)),
        "product wraps around to 8": tensor(size=op.numbers(2**33, 2**31, 8), stride=op.numbers(0, 0, 1)),
        "negative size": tensor(size=op.numbers(-1, -8)),
        "size 0": tensor(size=op.numbers(1, 0)),
        "no dimensions": tensor(size=op.many(), stride=op.many()),
        "hundred dimensions": tensor(size=op.numbers(*[1] * 100), stride=op.numbers(*[1] * 100)),
        "fewer strides than sizes": tensor(stride=op.numbers(1)),
        "size is a list": tensor(size=op.line(op.number(1), op.number(8))),
        "size is a number": tensor(size=op.number(8)),
        "size of truth values": tensor(size=op.many(pickle.NEWTRUE, op.number(8))),
        "size of floats": tensor(size=op.many(op.number(1), pickle.BINFLOAT + struct.pack(">d", 8.0))),
        "stride of text": tensor(stride=op.many(op.text("8"), op.text("1"))),
        "storage is bytes": tensor(stored=op.data(bytes(16))),
        "storage is a tensor": tensor(stored=tensor(parameter=False)),
        "storage is a number": tensor(stored=op.number(8)),
        "metadata": op.call(
            op.name("torch._utils", "_rebuild_tensor_v2"),
            *(storage(legacy()), op.number(0), op.numbers(1, 8), op.numbers(8, 1), pickle.NEWFALSE, ORDERED),
            *(op.table(), op.table(), op.table()),
        ),
    }
    for name, code in ways.items():
        yield Case(kind="tensors beyond their storage", name=name, build=lambda s, c=code: s.inject("weight", c))
    for module, function in [
        ("torch._utils", "_rebuild_tensor"),
        ("torch._utils", "_rebuild_tensor_v3"),
        ("torch._utils", "_rebuild_sparse_tensor"),
        ("torch._utils", "_rebuild_sparse_csr_tensor"),
        ("torch._utils", "_rebuild_nested_tensor"),
        ("torch._utils", "_rebuild_qtensor"),
        ("torch._utils", "_rebuild_meta_tensor_no_storage"),
        ("torch._utils", "_rebuild_device_tensor_from_numpy"),
        ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"),
        ("torch._utils", "_rebuild_wrapper_subclass"),
        ("torch._utils", "_rebuild_parameter_with_state"),
        ("torch._tensor", "_rebuild_from_type_v2"),
        ("torch.nn.parameter", "Parameter"),
        ("torch", "Tensor"),
        ("torch", "empty"),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
    ]:
        yield Case(
            kind="other ways to make tensors",
            name=f"{module}.{function}",
            build=lambda s, m=module, f=function: s.inject("weight", tensor(rebuild=(m, f), parameter=False)),
            says=f"{module}.{function}".lower(),
        )


def _damage() -> Iterator[Case]:
    """Pickles that are damaged, or end where they should not."""
    for tenths in (0, 0.001, 0.01, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.99, 0.999):
        yield Case(
            kind="cut files",
            name=f"{tenths:.1%} left",
            build=lambda s, part=tenths: (lambda whole: whole[: int(len(whole) * part)])(dumps(s.objects())),
        )
    stop = pickle.STOP
    ends: dict[str, Callable[[Scene], bytes]] = {
        "no STOP": lambda s: s.network()[:-1],
        "a byte after the end": lambda s: s.network() + b"\0",
        "a newline after the end": lambda s: s.network() + b"\n",
        "a second pickle": lambda s: s.network() + op.whole(op.call(op.name("os", "system"), s.command())),
        "a zip after the end": lambda s: s.network() + zipped(),
        "a megabyte after the end": lambda s: s.network() + bytes(1 << 20),
        "code, then the network": lambda s: op.whole(op.call(op.name("os", "system"), s.command())) + s.network(),
        "two values at the end": lambda s: s.network()[:-1] + op.number(1) + stop,
        "a mark at the end": lambda s: s.network()[:-1] + pickle.MARK + stop,
        "nothing at the end": lambda s: op.whole(b""),
        "only the protocol": lambda s: b"\x80\x04",
        "one byte": lambda s: b"\x80",
        "protocol 6": lambda s: b"\x80\x06" + s.network()[2:],
        "protocol 255": lambda s: b"\x80\xff" + s.network()[2:],
        "protocol 0 text": lambda s: b"cos\nsystem\n(S'touch CANARY'\ntR.",
        "unknown opcode": lambda s: s.inject("extra", b"\xff"),
        "zero opcode": lambda s: s.inject("extra", b"\0"),
    }
    for name, make in ends.items():
        yield Case(kind="ends and beginnings", name=name, build=make)
    stacks: dict[str, bytes] = {
        "REDUCE": pickle.REDUCE,
        "BUILD": pickle.BUILD,
        "NEWOBJ": pickle.NEWOBJ,
        "STACK_GLOBAL": pickle.STACK_GLOBAL,
        "TUPLE1": pickle.TUPLE1,
        "TUPLE3": op.number(1) + pickle.TUPLE3,
        "TUPLE without a mark": pickle.TUPLE,
        "SETITEM": pickle.SETITEM,
        "SETITEMS without a mark": pickle.SETITEMS,
        "APPEND": pickle.APPEND,
        "APPENDS without a mark": pickle.APPENDS,
        "ADDITEMS without a mark": pickle.ADDITEMS,
        "FROZENSET without a mark": pickle.FROZENSET,
        "POP": pickle.POP,
        "POP_MARK": pickle.POP_MARK,
        "DUP": pickle.DUP,
        "MEMOIZE": pickle.MEMOIZE,
        "BINPUT": pickle.BINPUT + b"\1",
        "BINPERSID": pickle.BINPERSID,
        "mark in a tuple": pickle.MARK + pickle.NONE + pickle.TUPLE2,
        "mark called": pickle.MARK + pickle.EMPTY_TUPLE + pickle.REDUCE,
        "mark stored": pickle.MARK + pickle.MEMOIZE,
        "mark appended": pickle.EMPTY_LIST + pickle.MARK + pickle.APPEND,
        "BINGET of nothing": pickle.BINGET + b"\7",
        "LONG_BINGET of nothing": op.get(7),
        "GET of nothing": pickle.GET + b"7\n",
        "PUT": pickle.NONE + pickle.PUT + b"-1\n",
        "DICT": pickle.MARK + pickle.DICT,
        "LIST": pickle.MARK + pickle.LIST,
        "STRING": pickle.STRING + b"'a'\n",
        "UNICODE": pickle.UNICODE + b"a\n",
        "INT": pickle.INT + b"1\n",
        "LONG": pickle.LONG + b"1" * 100_000 + b"L\n",
        "FLOAT": pickle.FLOAT + b"1e400\n",
    }
    for name, code in stacks.items():
        yield Case(kind="stack and memo", name=name, build=lambda s, c=code: op.whole(c))
    lies: dict[str, bytes] = {
        "FRAME": pickle.FRAME + struct.pack("<Q", 2**62),
        "FRAME 2^64 - 1": pickle.FRAME + struct.pack("<Q", 2**64 - 1),
        "BINBYTES8": pickle.BINBYTES8 + struct.pack("<Q", 2**62),
        "BINBYTES8 2^64 - 1": pickle.BINBYTES8 + struct.pack("<Q", 2**64 - 1),
        "BINBYTES": pickle.BINBYTES + struct.pack("<I", 2**32 - 1),
        "BINUNICODE8": pickle.BINUNICODE8 + struct.pack("<Q", 2**63),
        "BINUNICODE": pickle.BINUNICODE + struct.pack("<I", 2**32 - 1),
        "BINSTRING": pickle.BINSTRING + struct.pack("<i", -1),
        "LONG4": pickle.LONG4 + struct.pack("<i", 2**31 - 1),
        "LONG4 negative": pickle.LONG4 + struct.pack("<i", -1),
        "LONG4 of 10 MB": pickle.LONG4 + struct.pack("<i", 10**7) + b"\x7f" * 10**7,
        "LONG1": pickle.LONG1 + b"\xff",
        "BINFLOAT": pickle.BINFLOAT + b"\0\0",
        "PROTO": pickle.PROTO,
        "GLOBAL without an end": pickle.GLOBAL + b"a" * 10_000_000,
        "GLOBAL with one line": pickle.GLOBAL + b"collections\n",
    }
    for name, code in lies.items():
        yield Case(kind="lies about sizes", name=name, build=lambda s, c=code: b"\x80\x04" + c)
    yield Case(
        kind="ends and beginnings",
        name="text that is not UTF-8",
        build=lambda s: s.inject("extra", op.text(b"\xff\xfe\x00")),
    )


def _bombs() -> Iterator[Case]:
    """Small files that ask for much time or memory."""
    places = {
        "dtype": lambda code: ("scale", array(kind=dtype(code))),
        "order of a dtype": lambda code: ("scale", array(kind=dtype(order=code))),
        "shape of an array": lambda code: ("scale", array(shape=code)),
        "name of the VAE": lambda code: ("vae", code),
        "scale": lambda code: ("scale", code),
        "class name": lambda code: ("extra", persistent(meta(code))),
        "version": lambda code: ("extra", persistent(meta(version=code))),
        "state": lambda code: ("extra", persistent(meta(state=code))),
        "option": lambda code: ("kwargs", code),
        "size of a tensor": lambda code: ("weight", tensor(size=code)),
        "offset of a tensor": lambda code: ("weight", tensor(offset=code)),
        "archive": lambda code: ("weight", tensor(stored=op.call(LOAD, code))),
        "platform of a storage": lambda code: ("weight", tensor(legacy(platform=code))),
        "key of a storage": lambda code: ("weight", tensor(legacy(key=code))),
        "magic number": lambda code: ("weight", tensor(legacy(magic=code))),
        "name of a name": lambda code: ("extra", code + op.text("x") + pickle.STACK_GLOBAL),
        "arguments": lambda code: ("extra", op.name("collections", "OrderedDict") + code + pickle.REDUCE),
        "tensor": lambda code: ("weight", code),
    }
    for place, make in places.items():
        depth = 45 if "storage" in place or place == "magic number" else 200
        yield Case(
            kind="exponential nesting",
            name=place,
            build=lambda s, m=make, d=depth: s.inject(*m(op.doubled(d))),
        )
        if "storage" not in place and place != "magic number":
            yield Case(
                kind="deep nesting",
                name=place,
                build=lambda s, m=make: s.inject(*m(op.nested(100_000))),
            )
    endless = pickle.EMPTY_LIST + op.put(0) + op.get(0) + pickle.APPEND
    yield Case(kind="deep nesting", name="a list in itself as VAE", build=lambda s: s.inject("vae", endless))
    yield Case(kind="deep nesting", name="a list in itself as option", build=lambda s: s.inject("kwargs", endless))
    yield Case(
        kind="deep nesting",
        name="a list in itself as the whole file",
        build=lambda s: op.whole(endless),
    )
    yield Case(
        kind="deep nesting",
        name="objects in objects",
        build=lambda s: op.whole(
            op.text("x") + object_in_object() * 6_000 + op.put(0) + pickle.POP + op.table(op.text("ema"), op.get(0))
        ),
    )
    colliding = b"".join(op.number(k * (2**61 - 1)) for k in range(1, 40_000))
    yield Case(
        kind="hash collisions",
        name="set",
        build=lambda s: s.inject("note", pickle.EMPTY_SET + pickle.MARK + colliding + pickle.ADDITEMS),
    )
    yield Case(
        kind="hash collisions",
        name="frozenset",
        build=lambda s: s.inject("note", pickle.MARK + colliding + pickle.FROZENSET),
    )
    pairs = b"".join(op.number(k * (2**61 - 1)) + pickle.NONE for k in range(1, 40_000))
    yield Case(
        kind="hash collisions",
        name="dictionary",
        build=lambda s: s.inject("note", pickle.EMPTY_DICT + pickle.MARK + pairs + pickle.SETITEMS),
    )
    floods: dict[str, Callable[[], bytes]] = {
        "NONE POP": lambda: (pickle.NONE + pickle.POP) * 5_000_000 + pickle.NONE,
        "DUP": lambda: pickle.NONE + pickle.DUP * 10_000_000,
        "MARK": lambda: pickle.MARK * 10_000_000,
        "EMPTY_SET": lambda: pickle.EMPTY_SET * 5_000_000,
        "EMPTY_DICT": lambda: pickle.EMPTY_DICT * 5_000_000,
        "PROTO": lambda: b"\x80\x04" * 5_000_000,
        "FRAME": lambda: (pickle.FRAME + bytes(8)) * 1_000_000,
        "MEMOIZE": lambda: pickle.NONE + pickle.MEMOIZE * 5_000_000,
        "memo at far places": lambda: (
            pickle.NONE
            + b"".join(pickle.LONG_BINPUT + struct.pack("<I", 2**32 - 1 - k * 4096) for k in range(1_000_000))
        ),
        "long numbers": lambda: (pickle.LONG1 + b"\xff" + b"\x7f" * 255) * 100_000,
        "names": lambda: op.text_name("collections", "OrderedDict") * 400_000,
        "dictionaries": lambda: op.call(op.text_name("collections", "OrderedDict")) * 500_000,
        "text": lambda: (
            (pickle.BINUNICODE + struct.pack("<I", 1 << 20) + b"\xf0\x9f\x98\x80" + b"a" * ((1 << 20) - 4)) * 30
        ),
        "bytes": lambda: op.data(bytes(1000)) * 20_000,
    }
    for name, make in floods.items():
        yield Case(kind="floods of operations", name=name, build=lambda s, m=make: b"\x80\x04" + m() + pickle.STOP)
    yield Case(
        kind="floods of operations",
        name="60 000 tensors on one storage",
        build=lambda s: s.inject("parameters", shared_tensors(60_000)),
    )
    archives: dict[str, Callable[[], bytes]] = {
        "old archive with long text": lambda: legacy(
            platform=op.table(
                *(op.text("little_endian"), pickle.NEWTRUE),
                *(op.text("type_sizes"), op.line(*[op.text("a" * 1_000_000)] * 12)),
            )
        ),
        "zip with long comments": commented,
        "zip with many members": lambda: crowded(zipped(), 20_000),
    }
    for name, make in archives.items():
        yield Case(
            kind="one archive read again and again",
            name=name,
            build=lambda s, m=make: s.inject("note", repeated(m(), 6_000)),
        )
    yield Case(
        kind="conversions that grow",
        name="60 MB of int8 as scale",
        build=lambda s: s.inject(
            "scale", array(shape=op.numbers(60 << 20), kind=dtype(op.text("i1")), held=large_data(60 << 20))
        ),
    )
    yield Case(
        kind="conversions that grow",
        name="64 MB of bytes in a tensor as scale",
        build=lambda s: s.inject("scale", large_tensor(64 << 20)),
    )
    half = array(shape=op.numbers(8192, 8192), kind=dtype(op.text("f2")), held=large_data(2 * 8192**2))
    yield Case(
        kind="conversions that grow",
        name="covariance in half precision",
        build=lambda s: statistics(doubles(8192), half),
        reader="reference",
    )


def _arrays() -> Iterator[Case]:
    """Numpy arrays that hold objects, or lie about what they hold."""
    text = op.text
    ways: dict[str, bytes] = {
        "objects": array(kind=dtype(text("O8")), held=op.line(*[op.number(1)] * 4)),
        "objects as bytes": array(bytes(32), kind=dtype(text("O"))),
        "void": array(kind=dtype(text("V4"))),
        "text": array(kind=dtype(text("U1"))),
        "text of a gigabyte": array(kind=dtype(text("U1000000000"))),
        "dates": array(bytes(32), kind=dtype(text("M8"))),
        "names of fields": array(kind=dtype(text("f4,f4"))),
        "list of fields": array(kind=dtype(op.line(op.many(text("a"), text("f4"))))),
        "sub-array": array(kind=dtype(text("(1000000,1000000)f4"))),
        "dtype by name": array(kind=dtype(text("numpy.float32"))),
        "dtype of a number": array(kind=dtype(op.number(4))),
        "dtype of a name": array(kind=dtype(op.name("collections", "OrderedDict"))),
        "dtype with sub-arrays": array(kind=dtype(fields=op.many(op.number(1)) + pickle.NONE * 2)),
        "dtype with fields": array(
            kind=dtype(fields=pickle.NONE + op.many(text("a")) + op.table(text("a"), op.number(1)))
        ),
        "big-endian": array(kind=dtype(order=text(">"))),
        "not a dtype": array(kind=text("f4")),
        "longer than its bytes": array(shape=op.numbers(5)),
        "shorter than its bytes": array(shape=op.numbers(3)),
        "2^62 elements": array(shape=op.numbers(2**31, 2**31)),
        "product wraps around": array(shape=op.numbers(2**33, 2**33, 4)),
        "negative shape": array(shape=op.numbers(-4)),
        "two negative lengths": array(shape=op.numbers(-2, -2)),
        "shape is a list": array(shape=op.line(op.number(4))),
        "shape of text": array(shape=op.many(text("4"))),
        "no elements": array(b"", shape=op.numbers(0)),
        "data is text": array(held=text("a" * 16)),
        "data is a list": array(held=op.line()),
        "no state": unbuilt(),
        "state twice": array() + op.numbers(1) + pickle.BUILD,
        "made of a subclass": array(
            made=op.call(
                *(op.name("numpy.core.multiarray", "_reconstruct"), op.name("collections", "OrderedDict")),
                *(op.numbers(0), op.data(b"b")),
            )
        ),
        "made with a size": array(
            made=op.call(
                *(op.name("numpy.core.multiarray", "_reconstruct"), op.name("numpy", "ndarray")),
                *(op.numbers(2**40), op.data(b"b")),
            )
        ),
        "a memory map": array(
            made=op.call(
                *(op.name("numpy.core.multiarray", "_reconstruct"), op.name("numpy", "memmap")),
                *(op.numbers(0), op.data(b"b")),
            )
        ),
        "a scalar": op.call(op.name("numpy.core.multiarray", "scalar"), dtype(), op.data(bytes(4))),
        "from a buffer": op.call(
            op.name("numpy.core.numeric", "_frombuffer"), op.data(bytes(16)), dtype(), op.numbers(4), text("C")
        ),
    }
    for name, code in ways.items():
        yield Case(kind="arrays", name=f"{name}, in an encoder", build=lambda s, c=code: s.inject("scale", c))
        yield Case(
            kind="arrays",
            name=f"{name}, in statistics",
            build=lambda s, c=code: statistics(c, doubles(4, 4)),
            reader="reference",
        )


def _statistics() -> Iterator[Case]:
    """Reference statistics, pickled and as .npz."""
    good, square = doubles(4), doubles(4, 4)
    nan = struct.pack("<4d", 1, 1, float("nan"), 1)
    ways: dict[str, Callable[[Scene], bytes]] = {
        "code in it": lambda s: statistics(op.call(op.name("os", "system"), s.command()), square),
        "code beside it": lambda s: statistics(
            good, square, num_images=op.call(op.name("builtins", "eval"), s.python())
        ),
        "code after it": lambda s: statistics(good, square) + op.whole(op.call(op.name("os", "system"), s.command())),
        "a network": lambda s: s.network(),
        "a list": lambda s: op.whole(op.line(good, square)),
        "an array": lambda s: op.whole(good),
        "nothing in it": lambda s: op.whole(op.table()),
        "mu alone": lambda s: op.whole(op.table(op.text("fid"), op.table(op.text("mu"), good))),
        "sigma does not fit": lambda s: statistics(good, doubles(3, 3)),
        "sigma is not square": lambda s: statistics(good, doubles(4, 3)),
        "sigma of one dimension": lambda s: statistics(good, doubles(16)),
        "mu of two dimensions": lambda s: statistics(doubles(4, 1), square),
        "NaN": lambda s: statistics(doubles(4, raw=nan), square),
        "numbers of images is text": lambda s: statistics(good, square, num_images=op.text("many")),
        "minus one image": lambda s: statistics(good, square, num_images=op.number(-1)),
        "2^70 images": lambda s: statistics(good, square, num_images=op.number(2**70)),
        "mu is a list": lambda s: statistics(op.line(*[op.number(1)] * 4), square),
        "integers": lambda s: statistics(array(bytes(32), kind=dtype(op.text("i8"))), square),
        "mu is a tensor": lambda s: statistics(tensor(), square),
        "cut": lambda s: dumps(reference_objects())[:-100],
        "deflated network": lambda s: gzip.compress(dumps(reference_objects())),
    }
    for name, make in ways.items():
        yield Case(kind="pickled statistics", name=name, build=make, reader="reference")

    mu, sigma = npy(np.ones(4)), npy(np.eye(4))
    objects = npy(np.array([_Touch()], dtype=object))

    def header(shape: str, kind: str = "<f8") -> bytes:
        return npy_header(f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}", bytes(64))

    bzip2, deflate = zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED
    files: dict[str, Callable[[Scene], bytes]] = {
        "pickled objects": lambda s: npz({"mu.npy": objects, "sigma.npy": sigma}),
        "pickled objects beside": lambda s: npz({"mu.npy": mu, "sigma.npy": objects}),
        "a pickle as a member": lambda s: npz(
            {"mu.npy": op.whole(op.call(op.name("os", "system"), s.command())), "sigma.npy": sigma}
        ),
        "bomb": lambda s: npz(
            {"mu.npy": mu, "sigma.npy": header("(4000, 4000)") + bytes(128_000_000)}, compression=deflate
        ),
        "bomb below a hundredfold": lambda s: npz(
            {
                "mu.npy": npy(np.ones(5000)),
                "sigma.npy": header("(5000, 5000)") + bytes(8 * 5000**2),
                "pad": np.random.default_rng(0).bytes(3_000_000),
            },
            compression=deflate,
        ),
        "bomb in bzip2 that lies about its size": lambda s: lying(
            npz({"mu.npy": mu, "sigma.npy": sigma[:128] + bytes(200_000_000)}, compression=bzip2),
            "sigma.npy",
            size=len(sigma),
        ),
        "700 000 members": lambda s: crowded(npz({"mu.npy": mu, "sigma.npy": sigma}), 700_000),
        "lies about a size": lambda s: lying(
            npz({"mu.npy": mu, "sigma.npy": sigma}), "sigma.npy", size=2**31, compressed=2**31
        ),
        "shape of 10^12": lambda s: npz({"mu.npy": header("(1000000000000,)"), "sigma.npy": sigma}),
        "shape beyond 2^63": lambda s: npz(
            {"mu.npy": header("(10**30,)".replace("10**30", str(10**30))), "sigma.npy": sigma}
        ),
        "shape of 60 million": lambda s: npz({"mu.npy": header("(60000000,)"), "sigma.npy": sigma}),
        "negative shape": lambda s: npz({"mu.npy": header("(-4,)"), "sigma.npy": sigma}),
        "shape is code": lambda s: npz({"mu.npy": header("__import__('canary_module')"), "sigma.npy": sigma}),
        "header of ten thousand signs": lambda s: npz({"mu.npy": npy_header("-" * 9_000 + "1"), "sigma.npy": sigma}),
        "header of brackets": lambda s: npz({"mu.npy": npy_header("(" * 9_000), "sigma.npy": sigma}),
        "header of products": lambda s: npz({"mu.npy": npy_header("9**9**9**9"), "sigma.npy": sigma}),
        "header of objects": lambda s: npz({"mu.npy": header("(4,)", "|O"), "sigma.npy": sigma}),
        "header of a long type": lambda s: npz({"mu.npy": header("(4,)", "U999999999"), "sigma.npy": sigma}),
        "text": lambda s: npz({"mu.npy": npy(np.array(["a"] * 4)), "sigma.npy": sigma}),
        "NaN": lambda s: npz({"mu.npy": npy(np.array([1, 1, 1, np.nan])), "sigma.npy": sigma}),
        "sigma missing": lambda s: npz({"mu.npy": mu}),
        "sigma does not fit": lambda s: npz({"mu.npy": mu, "sigma.npy": npy(np.eye(3))}),
        "cut": lambda s: npz({"mu.npy": mu, "sigma.npy": sigma})[:-40],
        "cut in a member": lambda s: npz({"mu.npy": mu[:-8], "sigma.npy": sigma}),
        "wrong checksum": lambda s: npz({"mu.npy": mu, "sigma.npy": sigma}).replace(mu[-8:], b"\1" * 8, 1),
        "encrypted": lambda s: encrypted(npz({"mu.npy": mu, "sigma.npy": sigma}), "mu.npy"),
        "an array, not an archive": lambda s: mu,
        "a pickle": lambda s: op.whole(op.call(op.name("os", "system"), s.command())),
        "text file": lambda s: b"hello\n",
        "empty file": lambda s: b"",
    }
    for name, make in files.items():
        yield Case(kind=".npz statistics", name=name, build=make, reader="reference", suffix=".npz")


class _Touch:
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("__import__('canary_module')",)


def _foreign() -> Iterator[Case]:
    """Files of other kinds under the name of a network."""

    def tarred(scene: Scene) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            info = tarfile.TarInfo("../CANARY")
            archive.addfile(info, io.BytesIO(b""))
        return buffer.getvalue()

    html = b"<!DOCTYPE html><html><head><title>403 Forbidden</title></head><body>\x1b[2J</body></html>"
    ways: dict[str, Callable[[Scene], bytes]] = {
        "empty": lambda s: b"",
        "text": lambda s: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "HTML": lambda s: html,
        "JSON": lambda s: b'{"message": "Not Found"}',
        "gzip": lambda s: gzip.compress(s.network()),
        "tar": tarred,
        "zip": lambda s: zipped(),
        "safetensors": lambda s: save({"a": torch.ones(3)}),
        "torch.save, zip form": lambda s: saved({"a": torch.ones(3)}, zipped=True),
        "torch.save, old form": lambda s: saved({"a": torch.ones(3)}, zipped=False),
        "npy": lambda s: npy(np.ones(3)),
        "PNG": lambda s: b"\x89PNG\r\n\x1a\n" + bytes(50),
        "zeros": lambda s: HOLE % (64 << 20),
        "zeros after a beginning": lambda s: b"\x80\x04" + HOLE % (64 << 20),
        "statistics": lambda s: dumps(reference_objects()),
        "a number": lambda s: op.whole(op.number(1)),
        "a name": lambda s: op.whole(op.name("collections", "OrderedDict")),
        "an object": lambda s: op.whole(persistent(meta())),
    }
    for name, make in ways.items():
        yield Case(kind="foreign files", name=name, build=make)


def catalogue() -> list[Case]:
    """Every hostile file."""
    groups = (_code, _misuse, _modules, _options, _archives, _tensors, _damage, _bombs, _arrays, _statistics, _foreign)
    return [case for group in groups for case in group()]


def controls() -> list[Case]:
    """Files made by the same means that are harmless, and must be read."""
    kind = "control"
    ways: dict[str, Callable[[Scene], bytes]] = {
        "network": lambda s: s.network(),
        "harmless value": lambda s: s.inject("extra", op.number(1)),
        "harmless name": lambda s: s.inject("note", ORDERED + op.put(0)),
        "harmless name by GLOBAL": lambda s: s.inject("note", op.call(op.text_name("collections", "OrderedDict"))),
        "object": lambda s: s.inject("extra", persistent(meta())),
        "tensor, old form": lambda s: s.inject("weight", tensor()),
        "tensor, zip form": lambda s: s.inject("weight", tensor(zipped())),
        "tensor in part of its storage": lambda s: s.inject(
            "weight", tensor(legacy(10, payload=b"\0\x3c" * 10), offset=op.number(2))
        ),
        "scale by opcodes": lambda s: s.inject("scale", array()),
        "option by opcodes": lambda s: s.inject("kwargs", pickle.BINFLOAT + struct.pack(">d", 0.25)),
        "VAE by opcodes": lambda s: s.inject("vae", op.text("owner/name")),
        "small set": lambda s: s.inject("note", pickle.EMPTY_SET + pickle.MARK + op.text("a") + pickle.ADDITEMS),
    }
    made = [Case(kind=kind, name=name, build=build) for name, build in ways.items()]
    made.append(
        Case(kind=kind, name="statistics", build=lambda s: statistics(doubles(4), doubles(4, 4)), reader="reference")
    )
    made.append(
        Case(
            kind=kind,
            name=".npz",
            build=lambda s: npz(
                {"mu.npy": npy(np.ones(4)), "sigma.npy": npy(np.eye(4))}, compression=zipfile.ZIP_DEFLATED
            ),
            reader="reference",
            suffix=".npz",
        )
    )
    return made
