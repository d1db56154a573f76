"""The reader of torch files is fenced off: what it exports, imports and follows is fixed, and what it buys is shown."""

import argparse
import ast
import io
import sys
from pathlib import Path

import hostile_files as made
import hostile_pickles as pickles
import pytest
import torch

import unmask
from unmask.errors import CheckpointError
from unmask.storage.foreign import reader
from unmask.storage.foreign.reader import open_foreign
from unmask.storage.foreign.unpacking import pickles as machine

SOURCE = Path(unmask.__file__).parent
PACKAGE = Path(reader.__file__).parent / "unpacking"

FUNCTIONS = {
    "archives": {"compute_checksum", "open_torch"},
    "job": {"forbid", "open_without_blocking", "run_job", "set_limits"},
    "pickles": {"describe"},
    "tables": {"find_table", "plan", "write_tensors"},
}
CLASSES = {
    "archives": {"Span"},
    "job": set(),
    "pickles": {"Global", "Opaque", "Refused", "Storage", "Stored"},
    "tables": {"Copy", "WeightTable"},
}
VALUES = "29 47 4a 4b 4d 4e 54 55 58 5d 63 68 6a 74 7d 88 89 8a 8f"
NOTES = "61 62 65 71 72 73 75 80"
USERS = {
    "data/untrusted.py": {"forbid", "set_limits"},
    "storage/foreign/flax.py": {"MAX_AXES", "MAX_NAME"},
    "storage/foreign/reader.py": {"MAX_AXES", "MAX_NAME", "open_without_blocking", "run_job"},
}


def list_trees() -> dict[str, ast.Module]:
    return {path.stem: ast.parse(path.read_text()) for path in PACKAGE.glob("*.py") if path.stem != "__init__"}


def test_the_public_names_are_these() -> None:
    trees = list_trees()
    kinds = {ast.FunctionDef: FUNCTIONS, ast.ClassDef: CLASSES}
    for kind, wanted in kinds.items():
        found = {
            module: {node.name for node in tree.body if isinstance(node, kind) and not node.name.startswith("_")}
            for module, tree in trees.items()
        }
        assert found == wanted


def test_the_opcodes_are_these() -> None:
    """`_step` follows four more: tuples, the mark, calls, and references to a storage."""
    assert " ".join(f"{code:02x}" for code in sorted(machine.VALUES)) == VALUES
    assert " ".join(f"{code:02x}" for code in sorted(machine.NOTES)) == NOTES


def test_it_imports_the_standard_library_alone() -> None:
    for tree in list_trees().values():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


def test_nobody_else_uses_it() -> None:
    found = {}
    for path in SOURCE.rglob("*.py"):
        if path.parent == PACKAGE or "unpacking" not in (text := path.read_text()):
            continue
        names = {word for words in USERS.values() for word in words if word in text}
        lines = [line for line in text.splitlines() if "unpacking" in line and "import" in line]
        if lines:
            found[path.relative_to(SOURCE).as_posix()] = names
    assert found.keys() == USERS.keys()
    assert all(found[name] == USERS[name] for name in USERS)


WEAK = {
    "stride 0": made.archive(pickles.descriptions()["stride 0"]),
    "too many axes": made.archive(pickles.descriptions()["too many axes"]),
    "truth of 2": made.archive(pickles.descriptions()["truth of 2"], {"data/0": bytes([2]) * 16}),
    "deflated": made.archive(
        pickles.table(a=pickles.tensor(pickles.storage(1 << 20), size=(1 << 20,))),
        {"data/0": bytes(4 << 20), "byteorder": b"little"},
        packed=["data.pkl", "version", "data/0", "byteorder"],
    ),
    "overlapping members": dict(made.archives())["overlapping members"],
}


@pytest.mark.parametrize("name", WEAK)
def test_what_torch_opens_and_the_reader_refuses(tmp_path: Path, name: str) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(WEAK[name])
    assert isinstance(torch.load(path, weights_only=True), dict)
    with pytest.raises(CheckpointError):
        open_foreign(path)


@pytest.mark.parametrize("beside", [argparse.Namespace(lr=1.0), Path("runs")])
def test_what_the_reader_opens_and_torch_refuses(tmp_path: Path, beside: object) -> None:
    buffer = io.BytesIO()
    torch.save({"model": {"a": torch.arange(4.0)}, "args": beside}, buffer)
    (tmp_path / "weights.pt").write_bytes(buffer.getvalue())
    with pytest.raises(Exception, match="weights_only"):
        torch.load(tmp_path / "weights.pt", weights_only=True)
    assert torch.equal(open_foreign(tmp_path / "weights.pt")["a"], torch.arange(4.0))
