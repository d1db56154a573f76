"""Models loaded in int8, from Python and from the command line: they sample, say so, and are never saved rounded."""

import csv
import json

import pytest
import torch
from torch import nn

import unmask
from unmask.cli import main
from unmask.data.sources.choice import Digits
from unmask.decoding.sampling import Sampling
from unmask.errors import ConfigError
from unmask.method.models.transformer import TransformerConfig
from unmask.metrics.features import ClassifierConfig
from unmask.pipelines.image import Pipeline
from unmask.recipes.reading import write_config
from unmask.recipes.schema import Recipe
from unmask.recipes.spec import TextModelSpec
from unmask.runtime import int8, kernels
from unmask.runtime.int8 import Int8Linear, has_rounded_layers
from unmask.runtime.kernels import choose_dtype
from unmask.storage.weights import write_weights
from unmask.tokenizers.pixels import Pixels
from unmask.tokenizers.text import Characters, CharacterTokenizer

HAS_KERNELS = torch.backends.mkldnn.is_available() and all(
    kernels.find_private(name, "tests of int8 are skipped") for name in kernels.INT8
)
pytestmark = pytest.mark.skipif(not HAS_KERNELS, reason="models in int8: this torch has no kernels for them")
MODEL = TransformerConfig(dim=128, depth=1, heads=2, num_classes=10)
CPU = torch.device("cpu")


def write_model(folder, build):
    """Write random weights, those of zero too, so that samples depend on everything."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build()
        for parameter in model.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)
    write_weights(dict(model.named_parameters()), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with what a finished run leaves."""
    folder = tmp_path_factory.mktemp("int8") / "run"
    folder.mkdir()
    tokenizer = Pixels(size=(8, 8), patch=2, levels=4)
    classifier = ClassifierConfig(channels=1, num_classes=10, steps=3)
    recipe = Recipe(
        data=Digits(), tokenizer=tokenizer, model=MODEL, sampling=Sampling(steps=3), classifier=classifier
    )  # fmt: skip
    write_config(recipe, folder)
    return write_model(folder, lambda: MODEL.build(tokenizer.vocab_size, tokenizer.grid))


@pytest.fixture
def products(monkeypatch):
    """The number of products of 8-bit integers so far, by their type."""
    int8.find_weight_limit()  # it multiplies once
    real, seen = int8.multiply_integers, []

    def multiply(*arguments):
        seen.append(arguments[-1])
        return real(*arguments)

    monkeypatch.setattr(int8, "multiply_integers", multiply)
    return seen


def refuse(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code, capsys.readouterr().err


def test_a_pipeline_in_int8_samples_the_same_images_whatever_the_batch(run, products):
    pipeline = unmask.load(run, device="cpu", dtype=torch.int8)
    assert isinstance(pipeline, Pipeline)
    made = pipeline.generate(num=12, output="tokens", batch=12)
    assert set(products) == {choose_dtype(CPU)}
    assert torch.equal(pipeline.generate(num=12, output="tokens", batch=5), made)
    plain = unmask.load(run, device="cpu", dtype=torch.float32)
    assert (plain.generate(num=12, output="tokens") == made).float().mean() > 0.5
    kind = str(choose_dtype(CPU)).removeprefix("torch.")
    assert pipeline.describe()["device"] == f"cpu, {kind}, linear layers in int8"
    assert plain.describe()["device"] == "cpu, float32"
    assert pipeline.describe()["network"] == plain.describe()["network"]
    assert not has_rounded_layers(unmask.load(run, device="cpu").model)


def test_it_is_neither_saved_nor_compiled(run, tmp_path):
    pipeline = unmask.load(run, device="cpu", dtype=torch.int8)
    said = "the weights of run are rounded to int8 here and cannot be saved: load it without dtype int8, then save it"
    with pytest.raises(ConfigError, match=f"^{said}$"):
        pipeline.save_pretrained(tmp_path / "out")
    with pytest.raises(ConfigError, match=f"^{said}$"):
        pipeline.push_to_hub("nobody/nothing")
    with pytest.raises(ConfigError, match=r"^layers in int8 cannot be compiled: load the model without dtype int8"):
        pipeline.compile()
    assert not [*tmp_path.iterdir()]


def test_a_device_that_is_no_cpu_is_refused_before_weights_are_read(run, monkeypatch):
    monkeypatch.setattr("unmask.pipelines.image.pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr("unmask.pipelines.image.load_network", lambda *a, **b: pytest.fail("weights are read"))
    with pytest.raises(ConfigError, match=r"^dtype int8 on cuda: it is for CPUs only; give device cpu"):
        unmask.load(run, dtype=torch.int8)


@pytest.mark.parametrize("name", ["toy-32", "toy-bare", "toy-row"])
def test_the_tokenizer_of_a_published_model_is_never_rounded(ready, name, monkeypatch):
    monkeypatch.setattr(int8, "LEAST_WIDTH", 4)
    pipeline = Pipeline.from_pretrained(ready / name, device="cpu", dtype=torch.int8)
    assert has_rounded_layers(pipeline.model)
    assert not any(isinstance(part, Int8Linear) for part in pipeline.tokenizer.modules())
    usual = Pipeline.from_pretrained(ready / name, device="cpu").tokenizer
    assert {p.dtype for p in pipeline.tokenizer.parameters()} == {p.dtype for p in usual.parameters()}
    assert pipeline.generate([0, 1], steps=2).isfinite().all()


# -- the command line --


def test_sample_and_inpaint_take_int8(run, products, photo, tmp_path, capsys):
    main(["sample", str(run), "--num", "2", "--dtype", "int8", "--device", "cpu", "--out", str(tmp_path / "a.png")])
    assert products
    products.clear()
    main(["inpaint", str(run), str(photo), "--box", "0", "0", "4", "4", "--variants", "1", "--dtype", "int8",
          "--device", "cpu", "--out", str(tmp_path / "b.png")])  # fmt: skip
    assert products
    products.clear()
    main(["sample", str(run), "--num", "2", "--device", "cpu", "--out", str(tmp_path / "c.png")])
    main(["sample", str(run), "--num", "2", "--device", "cpu", "--dtype", "fp32", "--out", str(tmp_path / "d.png")])
    assert not products
    assert refuse(capsys, "sample", run, "--dtype", "int8", "--compile", "--device", "cpu") == (
        2,
        "unmask: --compile does not work with --dtype int8: leave one of them out\n",
    )


def test_generate_and_infill_take_int8(products, tmp_path, capsys):
    tokenizer = CharacterTokenizer("abc ", 12)
    config = TransformerConfig(dim=128, depth=1, heads=2)
    spec = TextModelSpec(tokenizer=Characters(alphabet="abc ", context=12), model=config, sampling=Sampling(steps=2))
    write_config(spec, tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.to_bytes())
    write_model(tmp_path, lambda: config.build(tokenizer.vocab_size, tokenizer.grid))
    for words in (["generate", str(tmp_path)], ["infill", str(tmp_path), "ab[MASK:3]"]):
        products.clear()
        main([*words, "--num", "1", "--dtype", "int8", "--device", "cpu"])
        assert products, words


@pytest.mark.parametrize("command", ["sample", "score", "sweep", "inpaint"])
def test_a_torch_without_the_kernels_is_one_line_before_the_work(command, run, photo, capsys, monkeypatch):
    real = kernels.find_private
    monkeypatch.setattr(
        kernels, "find_private", lambda name, otherwise: None if name in kernels.INT8 else real(name, otherwise)
    )
    words = [run, *([photo, "--box", "0", "0", "4", "4"] if command == "inpaint" else [])]
    code, error = refuse(capsys, command, *words, "--dtype", "int8", "--device", "cpu")
    assert code == 2
    assert error == (
        f"unmask: dtype int8: torch {torch.__version__} has no oneDNN kernels for it here; leave the dtype out\n"
    )


def test_scores_in_int8_differ_little_and_say_so(run, products, tmp_path):
    words = ["score", str(run), "--orders", "halton", "--steps", "2", "--rows", "4", "--passes", "1", "--device", "cpu"]
    nats = {}
    for dtype in ("auto", "int8"):
        main([*words, "--dtype", dtype, "--out", str(tmp_path / dtype)])
        with open(tmp_path / dtype / "score.csv", newline="") as file:
            nats[dtype] = [float(row["nats"]) for row in csv.DictReader(file)]
        facts = json.loads((tmp_path / dtype / "score.json").read_text())["facts"]
        assert facts.get("dtype") == (None if dtype == "auto" else "int8")
        assert bool(products) == (dtype == "int8")
    assert nats["auto"] != nats["int8"]
    assert nats["auto"] == pytest.approx(nats["int8"], rel=0.02)


def test_a_sweep_in_int8_is_another_table(run, products, tmp_path, capsys):
    words = ["sweep", run, "--samples", "4", "--tune", "0", "--steps", "2", "--orders", "halton", "--temperatures", "1",
             "--device", "cpu", "--out", tmp_path / "sweep"]  # fmt: skip
    main([*map(str, words), "--dtype", "int8"])
    assert products
    code, error = refuse(capsys, *words)
    assert code == 2
    assert "is of other weights, int8 of " in error
