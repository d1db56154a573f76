"""`benchmarks/peers/run.py` runs at a tiny size: one row per peer, valid tokens, and one line for what is missing."""

import importlib.util
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks" / "peers"
PACKAGES = {"naive": "torch", "x-transformers": "x_transformers", "hf-bert-maskgit": "transformers"}
INSTALLED = [name for name, package in PACKAGES.items() if importlib.util.find_spec(package)]
OURS = ["unmask confidence", "unmask plain layers", "unmask halton", "unmask partition"]
TABLES = {
    "sampling of a batch": [*OURS, *INSTALLED],
    "one training step": ["unmask confidence", "unmask plain layers", "unmask partition", *INSTALLED],
    "the sampling loop alone": ["unmask confidence", "unmask halton", *INSTALLED],
}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / "run.py"), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def output() -> str:
    done = run("--size", "tiny", "--rounds", "1", "--peer", *INSTALLED)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def modules(monkeypatch):
    """The modules of the benchmark can be imported, and are forgotten afterwards."""
    monkeypatch.syspath_prepend(FOLDER)
    names = [file.stem for file in FOLDER.glob("*.py")]
    yield
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES)
def test_each_peer_has_one_row_of_positive_numbers(output, table):
    part = next(part for part in re.split(r"^tiny: ", output, flags=re.M) if part.startswith(table))
    rows = {name: cells for line in part.splitlines() for name, *cells in [re.split(r"\s{2,}", line.strip())]}
    for name in TABLES[table]:
        assert part.count(f"\n{name} ") == 1
        numbers = [float(cell) for cell in rows[name][1:] if re.fullmatch(r"\d+(\.\d+)?", cell)]
        assert len(numbers) >= 3
        assert all(0 < number < math.inf for number in numbers), name


@pytest.mark.slow
def test_the_first_lines_name_commit_hardware_and_versions(output):
    assert re.match(r"\{'command': .*'commit': .*'torch': .*'hardware': ", output)
    assert all(re.search(rf"^{name}: \S", output, re.M) for name in [*INSTALLED, "unmask confidence"])
    failed = [line.split(":")[0].strip() for line in output.splitlines() if " fails" in line]
    # No other row has a masked or an unknown token, and no layer of this size is wide enough for int8.
    assert failed == ["unmask halton int8"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_a_peer_makes_valid_tokens(modules, name):
    pytest.importorskip(PACKAGES[name], reason=f"{name} needs {PACKAGES[name]}")
    from hf_bert_peer import BertPeer
    from naive_peer import NaivePeer
    from sizes import SIZES
    from x_transformers_peer import XTransformersPeer

    size = SIZES["tiny"]
    peer = {kind.name: kind for kind in (NaivePeer, XTransformersPeer, BertPeer)}[name](size)
    tokens = peer.run_sampling()
    assert tokens.shape == (size.batch, size.cells)
    assert ((tokens >= 0) & (tokens < size.codes)).all()
    assert peer.passes == size.steps


def test_a_masked_token_is_refused(modules):
    from naive_peer import NaivePeer
    from sizes import SIZES

    peer = NaivePeer(SIZES["tiny"])
    peer.sample = lambda: torch.full_like(peer.tokens, peer.size.codes)
    with pytest.raises(ValueError, match="16"):
        peer.run_sampling()


@pytest.mark.slow
def test_a_missing_peer_says_how_to_install_it(modules, capsys):
    from naive_peer import NaivePeer
    from run import PEERS, find_peers

    PEERS["gone"] = type("Gone", (NaivePeer,), {"name": "gone", "package": "no-such-package"})
    with pytest.raises(SystemExit) as stopped:
        find_peers(["gone"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "gone is not installed: pip install --no-deps no-such-package\n"
    assert NaivePeer in find_peers([])
    assert "gone is not installed" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        find_peers(["no-such-name"])
    assert "neither a peer" in capsys.readouterr().err


@pytest.mark.slow
def test_a_cast_that_fails_is_named(modules, capsys):
    from naive_peer import NaivePeer
    from run import choose_cast
    from sizes import SIZES

    class OnlyFloat32(NaivePeer):
        def sample(self):
            if self.cast != "float32":
                raise RuntimeError("no kernel\nfor it")
            return super().sample()

    row = choose_cast(OnlyFloat32, SIZES["tiny"], OnlyFloat32.run_sampling, ("float32", "bfloat16"))
    assert row is not None
    assert row.peer.cast == "float32"
    assert capsys.readouterr().out.endswith("bfloat16 fails: RuntimeError: no kernel\n")
    assert choose_cast(OnlyFloat32, SIZES["tiny"], OnlyFloat32.run_sampling, ("bfloat16",)) is None


def test_a_checkout_is_known_by_its_files(modules, tmp_path):
    from checkout_peers import find_checkout_peers

    files = {
        "Trainer/vit.py": 1,
        "Sampler/halton_sampler.py": 2,
        "taming/modules/transformer/mingpt.py": 1,
        "a/b.py": 0,
    }
    for number, (file, many) in enumerate(files.items()):
        folder = tmp_path / f"checkout-{number}"
        (folder / file).parent.mkdir(parents=True)
        (folder / file).touch()
        peers = find_checkout_peers(folder)
        assert len(peers) == many
        assert all(peer.describe_version() == f"the files in {folder.name}" for peer in peers)


def test_stubs_hide_a_package_and_bring_it_back(modules):
    import json.decoder

    from stubs import stub_packages

    with stub_packages("json", "no_such_package"):
        from json import JSONDecoder

        import no_such_package.part

        assert no_such_package.part.anything()
        assert JSONDecoder is not json.decoder.JSONDecoder
    assert "no_such_package" not in sys.modules
    assert sys.modules["json"] is json


def test_a_table_is_text_or_markdown(modules):
    from naive_peer import NaivePeer
    from run import Row, format_table
    from sizes import SIZES

    row = Row(NaivePeer(SIZES["tiny"]), 4, 0.5, [2.0, 2.0])
    text, page = (format_table([row], [row], markdown).splitlines() for markdown in (False, True))
    assert text[1].split() == ["naive", "float32", "2.0000", "4", "0.5", "0.25", "0.0144", "1.00", "1.00..1.00"]
    assert page[1:] == [
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| naive | float32 | 2.0000 | 4 | 0.5 | 0.25 | 0.0144 | 1.00 | 1.00..1.00 |",
    ]
