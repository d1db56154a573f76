"""Check the Inception of FID against a second implementation in float64, published names and shapes, and Pillow."""

import hashlib
import http.server
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from unmask.errors import CheckpointError
from unmask.metrics import inception
from unmask.metrics.inception import (
    BlockA,
    BlockE,
    CleanResize,
    Inception,
    PlainResize,
    find_inception_weights,
    load_inception,
)


def chain(*steps):
    """Turn consecutive (name, out, kernel) into {name: (out, in, kernel)}; the first input is None."""
    return {
        name: (out, before, k) for (name, out, k), before in zip(steps, [None, *(s[1] for s in steps)], strict=False)
    }


ROW, COLUMN = (1, 7), (7, 1)
DOUBLE = chain(("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3))


def block_a(pool):
    five = chain(("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5))
    return {**chain(("branch1x1", 64, 1)), **five, **DOUBLE, **chain(("branch_pool", pool, 1))}


def block_c(c):
    seven = chain(("branch7x7_1", c, 1), ("branch7x7_2", c, ROW), ("branch7x7_3", 192, COLUMN))
    names = [(1, c, 1), (2, c, COLUMN), (3, c, ROW), (4, c, COLUMN), (5, 192, ROW)]
    double = chain(*((f"branch7x7dbl_{i}", out, k) for i, out, k in names))
    return {**chain(("branch1x1", 192, 1)), **seven, **double, **chain(("branch_pool", 192, 1))}


def block_e():
    tails = {f"branch3x3_2{s}": (384, 384, k) for s, k in (("a", (1, 3)), ("b", (3, 1)))}
    tails |= {f"branch3x3dbl_3{s}": (384, 384, k) for s, k in (("a", (1, 3)), ("b", (3, 1)))}
    heads = {**chain(("branch3x3_1", 384, 1)), **chain(("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3))}
    return {**chain(("branch1x1", 320, 1)), **heads, **tails, **chain(("branch_pool", 192, 1))}


SEVEN = chain(("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, ROW), ("branch7x7x3_3", 192, COLUMN))
BLOCKS = {
    "Mixed_5b": (192, block_a(32)),
    "Mixed_5c": (256, block_a(64)),
    "Mixed_5d": (288, block_a(64)),
    "Mixed_6a": (288, {**chain(("branch3x3", 384, 3)), **DOUBLE}),
    "Mixed_6b": (768, block_c(128)),
    "Mixed_6c": (768, block_c(160)),
    "Mixed_6d": (768, block_c(160)),
    "Mixed_6e": (768, block_c(192)),
    "Mixed_7a": (
        768,
        {**chain(("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)), **SEVEN, "branch7x7x3_4": (192, 192, 3)},
    ),
    "Mixed_7b": (1280, block_e()),
    "Mixed_7c": (2048, block_e()),
}
STEM = {
    "Conv2d_1a_3x3": (32, 3, 3),
    "Conv2d_2a_3x3": (32, 32, 3),
    "Conv2d_2b_3x3": (64, 32, 3),
    "Conv2d_3b_1x1": (80, 64, 1),
    "Conv2d_4a_3x3": (192, 80, 3),
}
VALID = {"Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_4a_3x3", "Mixed_6a.branch3x3", "Mixed_6a.branch3x3dbl_3"}
VALID |= {"Mixed_7a.branch3x3_2", "Mixed_7a.branch7x7x3_4"}
HALVING = VALID - {"Conv2d_2a_3x3", "Conv2d_4a_3x3"}


def published_shapes():
    """Return names and shapes of the published file, without its counters."""
    convolutions = dict(STEM)
    for block, (dim, parts) in BLOCKS.items():
        convolutions |= {f"{block}.{name}": (out, into or dim, k) for name, (out, into, k) in parts.items()}
    shapes = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    for name, (out, into, kernel) in convolutions.items():
        shapes[f"{name}.conv.weight"] = (out, into, *(kernel if isinstance(kernel, tuple) else (kernel, kernel)))
        shapes |= {f"{name}.bn.{part}": (out,) for part in ("weight", "bias", "running_mean", "running_var")}
    return shapes


@pytest.fixture(scope="module")
def weights():
    """Return random weights, at a scale that keeps activations alive up to the last layer."""
    rand = torch.Generator().manual_seed(0)
    found = {}
    for name, shape in published_shapes().items():
        noise = torch.randn(shape, generator=rand)
        if name.endswith("conv.weight"):
            found[name] = noise * (2 / noise[0].numel()) ** 0.5
        elif name.endswith(("bn.weight", "running_var")):
            found[name] = 1 + 0.2 * noise.clamp(-3, 3)
        else:
            found[name] = noise * 0.1
    return found


@pytest.fixture(scope="module")
def network(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(weights, path)
    return load_inception(path)


def convolve(weights, name, x):
    w = weights[f"{name}.conv.weight"].double()
    padding = (0, 0) if name in VALID else (w.shape[2] // 2, w.shape[3] // 2)
    x = F.conv2d(x, w, stride=2 if name in HALVING else 1, padding=padding)
    part = {
        k: weights[f"{name}.bn.{k}"].double()[:, None, None] for k in ("weight", "bias", "running_mean", "running_var")
    }
    return ((x - part["running_mean"]) / (part["running_var"] + 0.001).sqrt() * part["weight"] + part["bias"]).clamp(
        min=0
    )


def pooled(block, x):
    if block in ("Mixed_6a", "Mixed_7a"):
        return F.max_pool2d(x, 3, 2)
    windows = F.pad(x, (1, 1, 1, 1), value=torch.nan).unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)
    return windows.nan_to_num(-torch.inf).amax(4) if block == "Mixed_7c" else windows.nanmean(4)


def mix(weights, block, x):
    """Run a Mixed block by its names: branches in the order of the names, `_2a` and `_2b` side by side."""
    outs, previous = [], {}
    for name in BLOCKS[block][1]:
        branch, _, step = name.partition("_") if name != "branch_pool" else (name, "", "")
        if branch == "branch_pool":
            outs.append((branch, convolve(weights, f"{block}.{name}", pooled(block, x))))
            continue
        source = x if step in ("", "1") else previous[branch]
        result = convolve(weights, f"{block}.{name}", source)
        if step.endswith(("a", "b")):
            outs.append((branch + "~", result))
        else:
            previous[branch] = result
            outs = [(b, o) for b, o in outs if b != branch] + [(branch, result)]
    forked = {b[:-1] for b, _ in outs if b.endswith("~")}
    outs = [(b, o) for b, o in outs if b not in forked]
    if block in ("Mixed_6a", "Mixed_7a"):
        outs.append(("pool", pooled(block, x)))
    return torch.cat([o for _, o in outs], 1)


def second_opinion(weights, x):
    x = x.double()
    for name in STEM:
        x = convolve(weights, name, x)
        if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
            x = F.max_pool2d(x, 3, 2)
    for block in BLOCKS:
        x = mix(weights, block, x)
    return x.mean((2, 3))


# -- the network --


def test_names_shapes_and_count_are_the_published_ones():
    found = {name: tuple(value.shape) for name, value in Inception().state_dict().items()}
    assert found == published_shapes()
    # torchvision documents 27,161,264 parameters with an auxiliary head of 3,326,696 and 1000 classes.
    trained = sum(np.prod(s) for name, s in found.items() if "running" not in name)
    assert trained == 27_161_264 - 3_326_696 + 8 * 2049
    # Besides its tensors, the published file holds less than 200 bytes for each.
    assert 0 < inception.BYTES - 4 * sum(np.prod(s) for s in found.values()) < 200 * len(found)


def test_forward_agrees_with_a_second_implementation(weights, network):
    images = torch.rand(2, 3, 299, 299, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        ours = network(images).double()
    theirs = second_opinion(weights, images)
    assert ours.shape == (2, 2048)
    assert theirs.std() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item())
    assert (ours[0] - ours[1]).abs().max() > 0.01 * theirs.std()


def test_the_average_leaves_padding_out_and_the_last_block_takes_the_maximum():
    flat = torch.ones(1, 192, 5, 5)
    block = BlockA(192, 32).eval()
    with torch.no_grad():
        pool = block(flat)[:, -32:]
    torch.testing.assert_close(pool, pool[:, :, 2:3, 2:3].expand_as(pool))
    torch.manual_seed(0)
    mean, most = BlockE(64, maximum=False).eval(), BlockE(64, maximum=True).eval()
    most.load_state_dict(mean.state_dict())
    spike = torch.zeros(1, 64, 7, 7)
    spike[:, :, 3, 3] = 9.0
    with torch.no_grad():
        a, b = mean(spike), most(spike)
    assert torch.equal(a[:, :-192], b[:, :-192])
    torch.testing.assert_close(b[:, -192:, 3, 3], 9 * a[:, -192:, 3, 3])


# -- preprocessing --


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (17, 40), (299, 299), (500, 310)])
def test_clean_resize_is_pillows_bicubic_on_floats(size):
    pixels = torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    planes = [Image.fromarray(p.numpy().astype(np.float32), mode="F") for p in pixels.flatten(0, 1)]
    expected = np.stack([np.asarray(p.resize((299, 299), Image.Resampling.BICUBIC)) for p in planes])
    found = CleanResize()(pixels)
    np.testing.assert_allclose(found.flatten(0, 1) * 128 + 128, expected, atol=0.02)
    assert size == (299, 299) or found.abs().max() > 1  # overshoot is kept


def test_plain_resize_reads_only_the_middle_of_each_square():
    pixels = torch.randint(0, 256, (1, 3, 1196, 1196), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    squares = pixels.double().unfold(2, 4, 4).unfold(3, 4, 4)
    middle = squares[..., 1:3, 1:3].mean((4, 5)) / 127.5 - 1
    torch.testing.assert_close(PlainResize()(pixels).double(), middle, atol=1e-4, rtol=0)
    whole = squares.mean((4, 5)) / 128 - 1
    assert (CleanResize()(pixels) - whole).abs().mean() < (PlainResize()(pixels) - whole).abs().mean() / 2


def test_the_two_ways_have_two_names():
    assert CleanResize().text != PlainResize().text
    assert CleanResize() == CleanResize()
    black, white = torch.zeros(1, 3, 9, 9, dtype=torch.uint8), torch.full((1, 3, 9, 9), 255, dtype=torch.uint8)
    for resize, low, high in ((PlainResize(), -1, 1), (CleanResize(), -1, 127 / 128)):
        torch.testing.assert_close(resize(black), torch.full((1, 3, 299, 299), float(low)))
        torch.testing.assert_close(resize(white), torch.full((1, 3, 299, 299), float(high)))


# -- files --


def test_both_ages_of_pth_and_safetensors_hold_the_same_network(weights, network, tmp_path):
    old, safe = tmp_path / "old.pth", tmp_path / "new.safetensors"
    counters = {
        name.replace("weight", "num_batches_tracked"): torch.tensor(0) for name in weights if "bn.weight" in name
    }
    torch.save({**weights, **counters}, old, _use_new_zipfile_serialization=False)
    save_file(weights, safe)
    for path in (old, safe):
        loaded = load_inception(path)
        assert not loaded.training
        assert not any(p.requires_grad for p in loaded.parameters())
        for name, value in loaded.state_dict().items():
            assert torch.equal(value, network.state_dict()[name]), name
            assert value.dtype == torch.float32


def test_a_file_that_does_not_fit_is_refused_by_name(weights, tmp_path):
    def refuse(changed, pattern):
        save_file(changed, tmp_path / "odd.safetensors")
        with pytest.raises(CheckpointError, match=pattern) as caught:
            load_inception(tmp_path / "odd.safetensors")
        assert "\n" not in str(caught.value)

    small = {"fc.weight": torch.zeros(1000, 2048)}
    refuse({k: v for k, v in weights.items() if k != "fc.bias"}, "odd.*fc.bias is missing")
    refuse({**weights, "AuxLogits.fc.bias": torch.zeros(1)}, "AuxLogits.fc.bias is not known")
    refuse({**weights, **small}, r"fc.weight is \(1000, 2048\), not \(1008, 2048\)")
    refuse(small, "and 469 more")


class Trap:
    """The safe reader refuses the file; a plain unpickler would run it and leave a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_damaged_and_hostile_files_are_refused(tmp_path):
    cut, trap, absent, nested = (tmp_path / f"{n}.pth" for n in ("cut", "trap", "absent", "nested"))
    torch.save({"a": torch.zeros(99)}, cut)
    cut.write_bytes(cut.read_bytes()[:-200])
    torch.save({"fc.weight": Trap(tmp_path / "sprung")}, trap)
    torch.save({"model": {"fc.weight": torch.zeros(2)}}, nested)
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    for path in (cut, trap, absent, nested, tmp_path / "bad.safetensors"):
        with pytest.raises(CheckpointError, match=path.stem) as caught:
            load_inception(path)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()


# -- download --


class Answer(http.server.BaseHTTPRequestHandler):
    body = b"weights" * 100

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_):
        pass


@pytest.fixture
def site(monkeypatch, tmp_path):
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(inception, "URLS", (f"http://127.0.0.1:{server.server_address[1]}/{inception.FILE}",))
        yield tmp_path / "cache" / "inception" / inception.FILE
        server.shutdown()


def test_weights_are_downloaded_once(site, monkeypatch):
    monkeypatch.setattr(inception, "BYTES", len(Answer.body))
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(Answer.body).hexdigest())
    assert find_inception_weights() == site
    assert site.read_bytes() == Answer.body
    monkeypatch.setattr(inception, "URLS", ())
    assert find_inception_weights() == site


def test_a_failed_download_says_which_file_to_put_where(site, monkeypatch):
    with pytest.raises(
        CheckpointError, match=f"{inception.FILE}.*put it at .*inception.*--features classifier"
    ) as caught:
        find_inception_weights()
    assert "\n" not in str(caught.value)
    assert not site.exists()
    assert inception.SHA256.startswith(inception.FILE[-12:-4])
    monkeypatch.setattr(inception, "URLS", ("http://127.0.0.1:9/",))
    with pytest.raises(CheckpointError, match=r"127\.0\.0\.1:9"):
        find_inception_weights()
