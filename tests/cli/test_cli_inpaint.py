"""`unmask inpaint` end to end: what it leaves beside --out, and that every mistake is one line and an exit code."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from unmask.cli.editing import run_inpaint
from unmask.data.sources.choice import Digits
from unmask.decoding.sampling import Sampling
from unmask.errors import ConfigError, DataError
from unmask.method.models.transformer import MaskedTransformer, TransformerConfig
from unmask.recipes.reading import write_config
from unmask.recipes.schema import Recipe
from unmask.storage.weights import write_weights
from unmask.tokenizers.pixels import Pixels


def saved(folder, num_classes):
    """What a finished run leaves, with random weights."""
    config = TransformerConfig(dim=16, depth=1, heads=2, num_classes=num_classes)
    tokenizer = Pixels(size=(8, 8), channels=3, patch=2, levels=2)
    recipe = Recipe(data=Digits(), tokenizer=tokenizer, model=config, sampling=Sampling(steps=3))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MaskedTransformer(config, tokenizer.vocab_size, tokenizer.grid)
        for p in model.parameters():
            if not p.any():
                nn.init.normal_(p, std=0.3)
    folder.mkdir()
    write_config(recipe, folder)
    write_weights(dict(model.named_parameters()), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("inpaint") / "run", 4)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return path


def call(*arguments):
    run_inpaint([str(a) for a in arguments])


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).copy()


def box(x, y, width, height, shape=(20, 30)):
    hole = np.zeros(shape, dtype=bool)
    hole[y : y + height, x : x + width] = True
    return hole


def test_a_box_gives_variants_a_comparison_and_an_animation(run, photo, tmp_path, capsys):
    out, gif = tmp_path / "deep" / "x.png", tmp_path / "x.gif"
    call(run, photo, "--box", 5, 6, 9, 7, "--label", 2, "--variants", 3, "--out", out, "--gif", gif)
    names = [out.with_name(f"x-{kind}.png") for kind in (1, 2, 3, "compare")]
    assert capsys.readouterr().out.splitlines() == [f"wrote {name}" for name in [*names, gif]]
    hole, before = box(5, 6, 9, 7), pixels(photo)
    variants = [pixels(name) for name in names[:3]]
    for variant in variants:
        assert (variant[~hole] == before[~hole]).all()
    assert len({variant.tobytes() for variant in variants}) == 3
    page = pixels(names[3])
    titles = page.shape[0] - (6 + 20 * 3 + 6)
    assert titles > 10
    for place, shown in {0: before, 2: variants[0], 3: variants[1], 4: variants[2]}.items():
        x = 6 + place * (30 + 2) * 3
        assert (page[6:66, x : x + 90] == shown.repeat(3, 0).repeat(3, 1)).all()
    marked = page[6:66, 102:192].astype(int) - before.repeat(3, 0).repeat(3, 1)
    assert (marked.any(-1) == hole.repeat(3, 0).repeat(3, 1)).all()
    with Image.open(gif) as picture:
        assert picture.n_frames == 4


def test_masks_alpha_and_a_larger_canvas(run, photo, tmp_path):
    before, out = pixels(photo), tmp_path / "x.png"
    hole = box(3, 4, 12, 9)
    mask, cut = tmp_path / "mask.png", tmp_path / "cut.png"
    Image.fromarray(hole.astype(np.uint8) * 255).save(mask)
    Image.fromarray(np.dstack([before, np.where(hole, 0, 255).astype(np.uint8)])).save(cut)
    call(run, photo, "--mask", mask, "--variants", 1, "--out", out)
    by_mask = pixels(out)
    call(run, cut, "--alpha", "--variants", 1, "--out", out)
    assert (pixels(out) == by_mask).all()
    call(run, photo, "--box", 3, 4, 12, 9, "--variants", 1, "--out", out)
    assert (pixels(out) == by_mask).all()
    assert (by_mask[~hole] == before[~hole]).all()
    assert (by_mask != before).any()
    call(run, photo, "--extend", 1, 2, 3, 4, "--variants", 1, "--out", out)
    assert pixels(out).shape == (26, 34, 3)
    assert (pixels(out)[2:22, 1:31] == before).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.png", "mask.png", "x-compare.png", "x.png"]


def test_every_flag_changes_the_picture(run, photo, tmp_path):
    def drawn(*flags):
        call(run, photo, "--box", 4, 3, 14, 12, "--variants", 1, "--out", tmp_path / "x.png", *flags)
        return pixels(tmp_path / "x.png").tobytes()

    base = drawn()
    changes = [("--label", "3"), ("--seed", "1"), ("--feather", "2"), ("--cells", "all"), ("--dilate", "1")]
    changes += [
        ("--context", "0.1"),
        ("--stop", "1"),
        ("--steps", "7"),
        ("--order", "halton"),
        ("--temperature", "0.1"),
    ]
    changes += [("--schedule", "linear", "--steps", "3"), ("--top-k", "2")]
    for change in changes:
        assert drawn(*change) != base, change
    assert drawn("--label", "3", "--scale", "5") != drawn("--label", "3")
    assert drawn("--cells", "0.5") != drawn("--cells", "all")
    assert drawn("--cells", "0") == base


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ((), ConfigError, "no region given: say where to fill with one of --mask, --alpha, --box, --extend"),
        (("--alpha", "--box", "0", "0", "3", "3"), ConfigError, "--alpha and --box given"),
        (("--alpha",), ConfigError, "the mask is empty"),
        (("--box", "25", "0", "9", "3"), ConfigError, "does not lie in the photo of 30x20"),
        (("--box", "-1", "0", "9", "3"), ConfigError, "does not lie in the photo"),
        (("--box", "0", "0", "30", "20"), ConfigError, "use unmask sample"),
        (("--box", "1", "2", "3"), ConfigError, "--box"),
        (
            ("--box", "1", "1", "3", "3", "--out", "x.txt"),
            ConfigError,
            "x.txt: .txt is no image format",
        ),
        (("--box", "1", "1", "3", "3", "--gif", "x.mp4"), ConfigError, "x.mp4: an animation is a .gif or a .webp"),
        (("--extend", "0", "0", "0", "0"), ConfigError, "at least 0, one of them more"),
        (("--mask", "nowhere.png"), DataError, "nowhere.png: No such file"),
        (("--box", "1", "1", "3", "3", "--label", "4"), ConfigError, "no class 4: this model's labels go from 0 to 3"),
        (
            ("--box", "1", "1", "3", "3", "--label", "cat"),
            ConfigError,
            "no class cat: this model has no class names; give a number, or leave it out",
        ),
        (("--box", "1", "1", "3", "3", "--cells", "most"), ConfigError, "--cells most: any, all, or a share"),
        (("--box", "1", "1", "3", "3", "--cells", "1.5"), ConfigError, "share 1.5"),
        (("--box", "1", "1", "3", "3", "--variants", "0"), ConfigError, "variants 0"),
        (("--box", "1", "1", "3", "3", "--stop", "9"), ConfigError, r"stop 9 lie in 1\.\.3"),
        (("--box", "1", "1", "3", "3", "--feather", "-1"), ConfigError, "feather -1"),
        (("--box", "1", "1", "3", "3", "--temperature", "-1"), ConfigError, "temperature"),
        (("--bocks", "1"), ConfigError, "--bocks"),
    ],
)
def test_mistakes_are_one_line(run, photo, tmp_path, flags, error, message):
    with pytest.raises(error, match=message) as caught:
        call(run, photo, "--out", tmp_path / "x.png", *flags)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_model_without_classes_takes_no_label(photo, tmp_path):
    plain = saved(tmp_path / "run", 0)
    call(plain, photo, "--box", 1, 1, 6, 6, "--out", tmp_path / "x.png")
    with pytest.raises(ConfigError, match="unconditional"):
        call(plain, photo, "--box", 1, 1, 6, 6, "--label", 0, "--out", tmp_path / "y.png")


def test_usage_and_help(run, capsys):
    for arguments in ([], [str(run)], [str(run), "--alpha"]):
        with pytest.raises(ConfigError, match="usage: unmask inpaint MODEL PHOTO"):
            run_inpaint(arguments)
    for arguments in (["--help"], [str(run), "--help"], [str(run), "x.png", "--help"]):
        with pytest.raises(SystemExit) as stop:
            run_inpaint(arguments)
        assert not stop.value.code
        assert "--feather" in capsys.readouterr().out
