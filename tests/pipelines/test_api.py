"""The Python functions that a user types: the example of the README word for word, and what each call returns."""

import subprocess
import sys

import pytest
import torch
from PIL import Image

import unmask
from unmask.cli import main
from unmask.data.sources.choice import Digits
from unmask.errors import ConfigError
from unmask.pipelines.image import Pipeline
from unmask.pipelines.text import TextPipeline

BLOCK = """
pipe = unmask.load("runs/cifar10")                                  # Pipeline or TextPipeline, by what is there; the same names as the command line; device="auto" (cuda, mps, cpu)
images = pipe(["cat", "ship"], steps=8, seed=0)                     # list of PIL images; steps, temperature, guidance, order, top_k, ... as keywords; unknown ones refused with the nearest name
tokens = pipe.generate(num=4, steps=4, order="halton", output="tensor")
for frame in pipe.stream("cat", steps=8): ...                       # a PIL image per step, masked cells visible
edited = pipe.inpaint(photo, mask, label="horse", variants=4)       # PIL in, PIL out
run = unmask.train(unmask.recipe("mnist"), out="runs/mnist")        # what the command does, from a script or notebook; also train_tokenizer, tokenize, evaluate, sweep, score
"""  # noqa: E501
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with runs/cifar10, a small model with the ten class names, untrained."""
    from unmask.method.models.transformer import TransformerConfig
    from unmask.recipes.reading import write_config
    from unmask.recipes.spec import ModelSpec
    from unmask.storage.weights import write_weights
    from unmask.tokenizers.pixels import Pixels

    folder = tmp_path_factory.mktemp("home")
    run = folder / "runs/cifar10"
    run.mkdir(parents=True)
    network = TransformerConfig(dim=32, depth=1, heads=2, num_classes=10)
    spec = ModelSpec(tokenizer=Pixels(size=(16, 16), patch=2, levels=2), model=network, classes=CLASSES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network.build(spec.tokenizer.vocab_size, spec.tokenizer.grid)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    write_weights(dict(model.named_parameters()), run / "model.safetensors")
    write_config(spec, run)
    return folder


@pytest.fixture
def pipe(home):
    return unmask.load(home / "runs/cifar10", device="cpu")


def shorten(recipe, digits):
    """The recipe with as little work as there can be, of the digits that need no download."""
    from dataclasses import replace

    training = replace(recipe.training, steps=2, evaluate_every=2, save_every=2, batch_size=8)
    return replace(recipe, data=Digits(), tokenizer=digits.tokenizer, sampling=digits.sampling, training=training)


def test_the_example_runs_word_for_word(home, monkeypatch):
    monkeypatch.chdir(home)
    known = unmask.recipe
    monkeypatch.setattr(unmask, "recipe", lambda name: shorten(known(name), known("digits")))
    photo, mask = Image.new("RGB", (40, 30), (200, 30, 30)), Image.new("L", (40, 30))
    mask.paste(255, (10, 10, 20, 20))
    names = {"unmask": unmask, "photo": photo, "mask": mask}
    exec(BLOCK, names)  # noqa: S102  (the block is ours)
    assert [image.size for image in names["images"]] == [(16, 16)] * 2
    assert isinstance(names["pipe"], Pipeline)
    assert names["tokens"].shape == (4, 3 if names["pipe"].tokenizer.channels == 3 else 1, 16, 16)
    assert isinstance(names["frame"], Image.Image)
    assert [image.size for image in names["edited"]] == [photo.size] * 4
    assert names["edited"][0].getpixel((0, 0)) == (200, 30, 30)
    assert (names["run"] / "model.safetensors").is_file()


def test_the_readme_has_the_names_of_the_example():
    for line in BLOCK.strip().splitlines():
        called = line.split("#")[0].split("unmask.")[1:]
        for part in called:
            assert hasattr(unmask, part.split("(")[0].strip())


def test_an_unknown_setting_is_refused_with_the_nearest(pipe):
    for call in (pipe, pipe.generate, lambda **s: list(pipe.stream(**s))):
        with pytest.raises(ConfigError, match="no setting stpes: did you mean steps"):
            call(stpes=4)
        with pytest.raises(ConfigError, match="no setting scale: did you mean guidance"):
            call(scale=3.0)
        with pytest.raises(ConfigError, match="guidance scale -1: give at least 0; 1 is no guidance"):
            call(guidance=-1.0)


def test_names_are_refused_with_the_nearest(pipe):
    with pytest.raises(ConfigError, match="no order haltn: did you mean halton"):
        pipe(order="haltn")
    with pytest.raises(ConfigError, match="no class cta: did you mean cat"):
        pipe(["cta"])


def test_every_setting_changes_something(pipe):
    plain = pipe.generate(num=3, seed=1, output="tokens")
    for setting in ({"steps": 3}, {"order": "halton"}, {"temperature": 0.3}, {"guidance": 4.0}, {"top_k": 2},
                    {"top_p": 0.2}, {"noise": 0.0}, {"schedule": "square"}, {"sampler": "ancestral"}):  # fmt: skip
        assert not torch.equal(pipe.generate(num=3, seed=1, output="tokens", **setting), plain), setting


def test_outputs_agree(pipe):
    tokens = pipe.generate(["cat", 8], seed=2, output="tokens")
    images = pipe.generate(["cat", "ship"], seed=2)
    assert torch.equal(pipe.tokenizer.decode(tokens), images)
    first = pipe(["cat", "ship"], seed=2)[0]
    assert first.getpixel((0, 0)) == round(float((images[0, 0, 0, 0] + 1) * 127.5))


def test_the_stream_ends_with_the_image(pipe):
    frames = list(pipe.stream("cat", steps=5, seed=3))
    assert len(frames) == 6
    last = pipe.generate("cat", steps=5, seed=3)
    from unmask.figures import images as figures

    assert frames[-1].tobytes() == figures.draw_grid(last, 1, scale=figures.choose_scale(last)).tobytes()
    assert frames[0].tobytes() != frames[-1].tobytes()


def test_it_says_what_it_is(pipe):
    assert repr(pipe).startswith("Pipeline(model: cifar10, images: 16x16, tokens: 8x8 of ")
    assert "<th>classes</th><td>10 (airplane, automobile" in pipe._repr_html_()


def test_both_pipelines_have_the_same_verbs_in_the_same_order():
    verbs = [["save_pretrained", "push_to_hub", "compile"], ["from_pretrained", "__call__", "generate", "stream"]]
    for cls in (Pipeline, TextPipeline):
        assert all(hasattr(cls, verb) for group in verbs for verb in group)
        own = [name for name in vars(cls) if name in verbs[1]]
        assert own == verbs[1]
    assert hasattr(Pipeline, "inpaint")
    assert hasattr(TextPipeline, "infill")


def test_all_public_names_are_there_and_listed():
    assert all(hasattr(unmask, name) for name in unmask.__all__)
    assert {*unmask.__all__} < {*dir(unmask)}
    assert len(set(unmask.__all__)) == len(unmask.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = unmask.nothing


def test_importing_is_nearly_as_fast_as_torch():
    code = "import time, torch; a = time.process_time(); import unmask; b = time.process_time(); print(b - a, a)"
    ratios = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        ours, torchs = map(float, done.stdout.split())
        ratios.append(1 + ours / torchs)
    assert min(ratios) < 1.1


def test_a_notebook_can_do_what_the_commands_do(tmp_path, capsys):
    run = unmask.train(shorten(unmask.recipe("digits"), unmask.recipe("digits")), tmp_path / "run", device="cpu")
    report = unmask.evaluate(run, samples=20, device="cpu", steps=2, classifier=_classifier(tmp_path))
    assert report["num_samples"] == 20
    assert report["steps"] == 2
    scores = unmask.score(run, orders=["halton"], steps=[2], rows=4, passes=1, device="cpu")
    assert [score.order for score in scores] == ["bound", "halton"]
    choices = unmask.SweepChoices(samples=8, tune=0, steps=(2,), orders=("halton",), temperatures=(1.0,))
    rows = unmask.sweep(run, choices, classifier=_classifier(tmp_path), device="cpu")
    assert len(rows) == 4


def _classifier(folder):
    """A classifier of the digits, trained for a few steps."""
    out = folder / "features"
    if not out.exists():
        main(["train-features", "digits", "--out", str(out), "--classifier.steps", "2", "--device", "cpu"])
    return out
