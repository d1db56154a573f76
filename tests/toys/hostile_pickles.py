"""Pickles made to run a program, or to describe tensors that cannot be: by name, and always the same.

They are put together opcode by opcode, so that nothing that they name is imported here.
"""

import struct
from collections.abc import Iterable

NONE, FALSE, TRUE, BUILD = b"N", b"\x89", b"\x88", b"b"
LAST = b"\x80\x04"
"""Protocol 4, in which a name may have dots."""


def name_of(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def dotted(module: str, name: str) -> bytes:
    return b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name)) + b"\x93"


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def whole(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def row(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def table(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + row(*arguments) + b"R"


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def storage(numel: int = 4, key: str = "0", kind: str = "FloatStorage") -> bytes:
    return row(text("storage"), name_of("torch", kind), text(key), text("cpu"), whole(numel)) + b"Q"


HOOKS = call(name_of("collections", "OrderedDict"))


def tensor(
    stored: bytes | None = None,
    offset: int = 0,
    size: Iterable[int] = (4,),
    stride: Iterable[int] = (1,),
    hooks: bytes = HOOKS,
) -> bytes:
    sizes, strides = row(*map(whole, size)), row(*map(whole, stride))
    rebuild = name_of("torch._utils", "_rebuild_tensor_v2")
    return call(rebuild, stored or storage(), whole(offset), sizes, strides, FALSE, hooks)


# -- programs --


def gadgets(canary: str) -> dict[str, bytes]:
    """Bodies of pickles that write the file `canary` if they are unpickled by `pickle`, in as many ways."""
    shell, code = text(f"echo > {canary}"), text(f"open({canary!r}, 'w').close()")
    system = name_of("os", "system")
    namespace = name_of("argparse", "Namespace")
    made = namespace + b")\x81"
    path, write = text(canary), text("w")
    module = call(name_of("importlib", "import_module"), text("os"))
    compiled = call(name_of("builtins", "compile"), code, text("x"), text("exec"))
    return {
        "os.system": call(system, shell),
        "posix.system": call(name_of("posix", "system"), shell),
        "eval": call(name_of("builtins", "eval"), code),
        "exec": call(name_of("builtins", "exec"), code),
        "python 2's eval": call(name_of("__builtin__", "eval"), code),
        "open": call(name_of("builtins", "open"), path, write),
        "io.open": call(name_of("io", "open"), path, write),
        "subprocess": call(name_of("subprocess", "getoutput"), shell),
        "Popen": call(name_of("subprocess", "check_call"), b"](" + text("touch") + path + b"e"),
        "partial": call(call(name_of("functools", "partial"), system, shell)),
        "getattr": call(call(name_of("builtins", "getattr"), module, text("system")), shell),
        "nested module": LAST + dotted("shutil", "os.system") + row(shell) + b"R",
        "map": call(name_of("builtins", "list"), call(name_of("builtins", "map"), system, row(shell))),
        "numpy": call(name_of("numpy", "savetxt"), path, b"](" + whole(1) + b"e"),
        "numpy.load": call(name_of("numpy", "memmap"), path, text("u1"), text("w+"), whole(0), row(whole(1))),
        "torch.save": call(name_of("torch.serialization", "save"), whole(1), path),
        "torch.hub": LAST + dotted("torch.hub", "os.system") + row(shell) + b"R",
        "setstate": made + table(__setstate__=system) + BUILD + shell + BUILD,
        "setstate of torch": name_of("torch.nn.modules.module", "Module")
        + b")\x81"
        + table(__setstate__=system)
        + BUILD
        + shell
        + BUILD,
        "timeit": call(name_of("timeit", "timeit"), code, text("pass"), name_of("time", "perf_counter"), whole(1)),
        "runpy": call(name_of("runpy", "_run_code"), compiled, b"}"),
        "INST": b"(" + shell + b"ios\nsystem\n",
        "OBJ": b"(" + system + shell + b"o",
        "STACK_GLOBAL": dotted("os", "system") + row(shell) + b"R",
        "method of a class": LAST
        + dotted("pathlib", "Path.touch")
        + row(call(name_of("pathlib", "Path"), path))
        + b"R",
    }


def tricks(canary: str) -> dict[str, bytes]:
    """Bodies that only a reader of torch files could be deceived by."""
    system, shell = name_of("os", "system"), text(f"echo > {canary}")
    utils = "torch._utils"
    many, sparse = row(whole(1 << 40)), name_of(utils, "_rebuild_sparse_tensor")
    meta = name_of(utils, "_rebuild_meta_tensor_no_storage")
    return {
        "module's source": row(text("module"), system, text("x"), text("y")) + b"Q",
        "call as an id": call(system, shell) + b"Q",
        "textual id": b"Pstorage\n",
        "storage type": row(text("storage"), system, text("0"), text("cpu"), whole(4)) + b"Q",
        "hooks": table(a=tensor(hooks=call(system, shell))),
        "state of a parameter": call(name_of(utils, "_rebuild_parameter"), tensor(), TRUE, HOOKS)
        + table(__setstate__=system)
        + BUILD,
        "subclass": call(name_of("torch._tensor", "_rebuild_from_type_v2"), system, system, row(shell), b"}"),
        "wrapper": call(name_of(utils, "_rebuild_wrapper_subclass"), system, shell),
        "numpy tensor": call(name_of(utils, "_rebuild_device_tensor_from_numpy"), tensor(), NONE, text("cpu"), FALSE),
        "sparse": call(sparse, whole(0), row(tensor(), tensor(), many)),
        "quantised": call(name_of(utils, "_rebuild_qtensor"), storage(4, kind="QInt8Storage"), whole(0)),
        "meta": call(meta, NONE, many, row(whole(1)), FALSE),
        "nested": call(name_of(utils, "_rebuild_nested_tensor"), tensor(), tensor(), tensor(), tensor()),
        "complex": tensor(storage(2, kind="ComplexFloatStorage"), size=(2,)),
        "whole model": name_of("models.vit", "MaskTransformer") + b")\x81}" + BUILD,
        "extension": b"\x82\x01",
        "buffer": b"\x97",
        "jit": call(name_of("torch.jit._serialization", "load"), text(canary)),
        "codecs": call(name_of("_codecs", "decode"), text(canary), text("zip")),
    }


def descriptions() -> dict[str, bytes]:
    """Bodies whose tensors or tables are not what they seem; the storage "0" has four numbers."""
    huge, deep = 1 << 39, 200_000
    laughs = b"(]q\x00" + b"".join(b"]q%c(h%ch%ce" % (n + 1, n, n) for n in range(60)) + b"t"
    return {
        "stride 0": table(a=tensor(size=(huge,), stride=(0,))),
        "stride 0 in part": table(a=tensor(size=(1000, 4), stride=(0, 1))),
        "overlap": table(a=tensor(size=(3, 2), stride=(1, 1))),
        "gaps": table(a=tensor(size=(2,), stride=(2,))),
        "beyond the storage": table(a=tensor(offset=1)),
        "far offset": table(a=tensor(offset=huge)),
        "negative offset": table(a=tensor(offset=-4)),
        "negative size": table(a=tensor(size=(-4,))),
        "negative stride": table(a=tensor(stride=(-1,))),
        "enormous": table(a=tensor(size=(1 << 62,))),
        "overflow": table(a=tensor(size=(1 << 39,) * 8, stride=(1,) * 8)),
        "no numbers": table(a=tensor(size=(0, huge), stride=(1, 1))),
        "too many axes": table(a=tensor(size=(1,) * 300, stride=(1,) * 300)),
        "sizes without strides": table(a=tensor(stride=())),
        "storage too long": table(a=tensor(storage(1 << 30), size=(1 << 30,))),
        "storage of doubles": table(a=tensor(storage(4, kind="DoubleStorage"))),
        "storage in two types": table(a=tensor(), b=tensor(storage(2, kind="DoubleStorage"), size=(2,))),
        "missing storage": table(a=tensor(storage(4, "1"))),
        "key upwards": table(a=tensor(storage(4, "../../0"))),
        "bare storage": table(a=storage()),
        "number as a weight": table(a=tensor(), b=whole(3)),
        "list as a weight": table(a=tensor(), b=b"]"),
        "deep list": table(a=tensor(), b=b"]" * deep + b"a" * (deep - 1)),
        "deep tuple as a key": b"}" + b")" + b"\x85" * deep + whole(1) + b"s",
        "deep tables": (b"}" + text("state_dict")) * 50_000 + tensor() + b"s" * 50_000,
        "table in itself": b"}q\x00" + text("state_dict") + b"h\x00s",
        "laughs": table(a=tensor(), b=laughs),
        "many steps": b"N0" * 4_000_000,
        "many lists": b"(" + b"]" * 3_000_000 + b"t",
        "marks": b"(" * 3_000_000,
        "long pickle": table(a=text("x" * (9 << 20))),
        "long number": table(a=b"\x8b" + struct.pack("<i", 1 << 30)),
        "long text": table(a=b"X\xff\xff\xff\xff"),
        "lost memo": b"h\x07",
        "far memo": whole(1) + b"r\xff\xff\xff\xffj\xff\xff\xff\xfe",
        "empty stack": b"R",
        "no mark": b"t",
        "two weights": table(model=table(a=tensor()), ema=table(a=tensor())),
        "nothing in it": table(epoch=whole(1)),
        "empty table": b"}",
        "a number": whole(1),
        "number as a name": b"}" + whole(1) + tensor() + b"s",
        "escape in a name": table(**{"a\x1b[2J\n": tensor()}),
        "lone surrogate": table(**{"a\ud800": tensor()}),
        "long name": table(**{"a" * 100_000: tensor()}),
        "name twice in the end": table(**{"module.a": tensor(), "a": tensor()}),
        "no name in the end": table(**{"module.": tensor()}),
        "truth of 2": table(a=tensor(storage(16, kind="BoolStorage"), size=(16,))),
    }
