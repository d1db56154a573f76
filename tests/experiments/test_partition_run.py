"""A run of a partition model does all that a run of the plain network does, from the command line and from Python."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import unmask
from unmask.cli import main
from unmask.errors import ConfigError
from unmask.experiments import base
from unmask.experiments.base import predict_first_loss
from unmask.experiments.finetune import load_compatible, resize_positions
from unmask.experiments.images import prepare_images
from unmask.method.models.partition import PartitionTransformer
from unmask.method.models.partition_config import PartitionConfig
from unmask.method.partitioning import Partition
from unmask.training.optim import AdamW, CosineDecay

SMALL = PartitionConfig(dim=16, encoder_depth=1, decoder_depth=1, heads=2)
TEXT = ["--model.dim", "16", "--model.encoder-depth", "1", "--model.decoder-depth", "1", "--model.heads", "2"]
TEXT += ["--tokenizer.context", "32", "--training.batch-size", "8", "--device", "cpu"]


def make_recipe(steps: int = 6):
    plain = unmask.recipe("digits")
    training = replace(plain.training, steps=steps, batch_size=32, optimizer=AdamW(learning_rate=1e-3))
    training = replace(training, learning_rate=CosineDecay(warmup=2), save_every=3, log_every=1, evaluate_every=100)
    classifier = replace(plain.classifier, steps=5)
    return replace(plain, model=SMALL, objective=Partition(), training=training, classifier=classifier)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("pictures") / "run"
    unmask.train(make_recipe(), out=out, device="cpu")
    return out


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "corpus.txt").write_text("the cat sat on a mat and ran. " * 300)
    out = folder / "run"
    main(["train", "shakespeare-partition", "--data", str(folder / "corpus.txt"), "--out", str(out), *TEXT,
          "--training.steps", "6"])  # fmt: skip
    return out


def run_command(*arguments) -> None:
    main([*map(str, arguments), "--device", "cpu"])


def test_the_first_loss_is_the_one_predicted(run):
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert first == pytest.approx(predict_first_loss(prepare_images(make_recipe())), rel=0.05)


def test_a_stopped_run_goes_on_bit_for_bit(run, tmp_path):
    real, out = base.train_model, tmp_path / "run"

    def stop_early(model, objective, batches, *rest, **more):
        def cut(step, rows):
            if step == 4:
                raise KeyboardInterrupt
            return batches(step, rows)

        return real(model, objective, cut, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "train_model", stop_early)
        with pytest.raises(KeyboardInterrupt):
            unmask.train(make_recipe(), out=out, device="cpu")
    assert not (out / "model.safetensors").exists()
    unmask.train(make_recipe(), out=out, device="cpu")
    assert (out / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_a_run_samples_paints_and_is_measured(run, tmp_path):
    run_command("sample", run, "--num", 4, "--steps", 4, "--out", tmp_path / "a.png")
    photo = tmp_path / "digit.png"
    pixels = np.zeros((8, 8), np.uint8)
    pixels[2:6, 3:5] = 255
    Image.fromarray(pixels).save(photo)
    run_command("inpaint", run, photo, "--box", 0, 0, 4, 8, "--out", tmp_path / "b.png")
    run_command("score", run, "--steps", 4, "--rows", 8, "--passes", 2, "--out", tmp_path / "score")
    rows = list(csv.DictReader((tmp_path / "score" / "score.csv").read_text().splitlines()))
    assert {"halton", "margin"} <= {row["order"] for row in rows}
    run_command("evaluate", run, "--samples", 20)
    assert json.loads((run / "report.json").read_text())


@pytest.mark.parametrize(("order", "said"), [("margin", "this order needs the logits of all places"), ("raster", "")])
def test_an_order_that_costs_more_is_named(run, tmp_path, capsys, order, said):
    capsys.readouterr()
    run_command("sample", run, "--num", 1, "--steps", 2, "--order", order, "--out", tmp_path / "a.png")
    error = capsys.readouterr().err
    assert error.startswith(said) if said else "logits" not in error
    assert (tmp_path / "a.png").exists()


def test_an_export_draws_the_same(run, tmp_path):
    main(["export", str(run), "--out", str(tmp_path / "export")])
    pipelines = [unmask.load(path, device="cpu") for path in (run, tmp_path / "export")]
    assert all(isinstance(pipeline.model, PartitionTransformer) for pipeline in pipelines)
    first, second = (np.asarray(pipeline.generate(4, seed=3)) for pipeline in pipelines)
    assert np.array_equal(first, second)


def test_text_is_generated_infilled_and_scored(text_run, tmp_path, capsys):
    run_command("generate", text_run, "--prompt", "the cat", "--num", 1, "--steps", 8)
    assert "the cat" in capsys.readouterr().out
    run_command("infill", text_run, "the [MASK:4] sat")
    out = capsys.readouterr().out
    assert "the " in out
    assert " sat" in out
    run_command("score", text_run, "--steps", 4, "--rows", 4, "--passes", 2, "--out", tmp_path / "score")


def test_a_plain_start_is_refused_and_the_reverse(run, tmp_path, capsys):
    plain = tmp_path / "plain"
    tiny = ["--model.dim", "16", "--model.depth", "1", "--model.heads", "2", "--training.batch-size", "8"]
    main(["train", "digits", "--out", str(plain), *tiny, "--training.steps", "2", "--device", "cpu"])
    with pytest.raises(ConfigError, match="is a MaskedTransformer, and this recipe trains a PartitionTransformer"):
        unmask.train(replace(make_recipe(), init=str(plain)), out=tmp_path / "a", device="cpu")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["train", "digits", "--init", str(run), "--out", str(tmp_path / "b"), *tiny, "--device", "cpu"])
    assert "is a PartitionTransformer, and this recipe trains a MaskedTransformer" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


def test_a_start_on_another_grid_resizes_positions_and_queries():
    small, large = SMALL.build(16, (4, 4)), SMALL.build(16, (6, 5))
    notes = load_compatible(large, dict(small.named_parameters()), small.grid)
    assert notes == ["positions and queries of a grid of 4x4 resized to 6x5"]
    assert large.query.equal(resize_positions(small.query, (4, 4), (6, 5)))
    assert large.head.weight.equal(small.head.weight)
