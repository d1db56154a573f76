"""Text on the command line, end to end: train, go on, generate, infill and score; mistakes are one line each."""

import csv
import json
import math
import random
import re
import shutil
from dataclasses import replace

import pytest
import torch
from tiny_gpt2 import save_tiny_gpt2

from unmask.cli import main
from unmask.cli.flags import SamplingFlags, choose_sampling
from unmask.decoding.sampling import Adaptive, Ancestral, Sampling
from unmask.evaluation.measuring import open_subject
from unmask.evaluation.scoring import score_subject
from unmask.experiments import text as text_experiment
from unmask.method.likelihood import compute_exact_nll
from unmask.method.rand import Rand
from unmask.method.sampling.extra_priorities import compute_moment_temperatures
from unmask.method.sampling.priorities import Confidence, Halton, Margin, Raster
from unmask.method.schedules import Power, ratios
from unmask.pipelines.text import TextPipeline
from unmask.published.opening import open_model
from unmask.recipes.reading import load_recipe, read_config
from unmask.recipes.schema import TextRecipe
from unmask.runtime.distributed import World

SMALL = [
    "--model.dim",
    "16",
    "--model.depth",
    "1",
    "--model.heads",
    "2",
    "--tokenizer.context",
    "32",
    "--device",
    "cpu",
]
SMALL += ["--device", "cpu", "--training.batch-size", "8", "--training.evaluate-every", "1000"]


def corpus(words: int, seed: int = 0) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(["the", "cat", "sat", "on", "a", "mat", "and", "ran."]) for _ in range(words))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "corpus.txt").write_text(corpus(2000))
    main(["train", "shakespeare", "--data", str(folder / "corpus.txt"), "--out", str(folder / "run"), *SMALL,
          "--training.steps", "8"])  # fmt: skip
    return folder / "run"


def refused(capsys, *arguments) -> tuple[int, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    error = capsys.readouterr().err
    assert error.startswith("unmask: ")
    assert error.count("\n") == 1
    return stop.value.code, error


def test_a_dry_run_leaves_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus.txt").write_text(corpus(2000))
    main(["train", "shakespeare", "--data", "corpus.txt", "--dry-run", *SMALL])
    assert "parameters" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.txt"]


def test_a_run_of_text_leaves_what_it_needs(run):
    left = {path.name for path in run.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "metrics.jsonl", "samples", "tokens"} <= left
    assert list((run / "samples").glob("sample-*.txt"))
    recipe = read_config(run / "config.json", TextRecipe)
    assert recipe.documents == 1
    assert not recipe.opens
    assert recipe.tokenizer_sha256 == TextPipeline.from_pretrained(run).tokenizer.sha256


def test_the_same_command_again_continues_and_another_text_is_refused(run, tmp_path, capsys):
    data = run.parent / "corpus.txt"
    main(["train", "shakespeare", "--data", str(data), "--out", str(run), *SMALL, "--training.steps", "8"])
    assert "all 8 steps are done already" in capsys.readouterr().out
    other = tmp_path / "other.txt"
    other.write_text(corpus(2000, seed=1))
    code, error = refused(
        capsys, "train", "shakespeare", "--data", other, "--out", run, *SMALL, "--training.steps", "8"
    )
    assert code in (3, 4)
    assert "holds the tokens of another text (other.txt is new, corpus.txt is gone): restore the text, " in error


def test_a_text_that_moved_resumes_and_a_changed_one_says_what_changed(tmp_path, capsys):
    texts, run = tmp_path / "texts", tmp_path / "run"
    texts.mkdir()
    for name in ("a.TXT", "b.md", "c.pdf", ".d.txt"):
        (texts / name).write_text(corpus(2000))

    def train(data, steps):
        return ["train", "shakespeare", "--data", data, "--out", run, *SMALL, "--training.steps", steps]

    capsys.readouterr()
    main([str(word) for word in train(texts, 2)])
    assert f"left out {texts / 'c.pdf'}: its name ends in none of .txt, .md" in capsys.readouterr().err
    moved = texts.rename(tmp_path / "elsewhere")
    main([str(word) for word in train(moved, 2)])
    assert "all 2 steps are done already" in capsys.readouterr().out
    (moved / "new.txt").write_text(corpus(20))
    (moved / "a.TXT").write_text(corpus(2000, seed=1))
    code, error = refused(capsys, *train(moved, 2))
    assert code == 3
    assert "holds the tokens of another text (new.txt is new, a.TXT has changed): restore the text, give" in error
    capsys.readouterr()
    main([str(word) for word in [*train(moved, 4), "--accept-data"]])
    said = capsys.readouterr()
    assert re.search(r"the data changed, and this is accepted: \d documents", said.out + said.err)
    assert (
        "the held-out documents may be ones that were trained on before: hold out a file with --data.test" in said.out
    )
    assert len(json.loads((run / "data.json").read_text())["before"]) == 1
    main([str(word) for word in train(moved, 4)])
    said = capsys.readouterr().out
    assert "accepted" not in said
    assert "trained on before" not in said
    main(["score", str(run), "--orders", "raster", "--steps", "1", "--rows", "2", "--passes", "1", "--device", "cpu"])


def test_a_run_of_an_early_version_keeps_its_held_out_documents(tmp_path, capsys):
    (tmp_path / "lines.txt").write_text("".join(f"{corpus(20, seed=i)}\n" for i in range(60)))
    words = ["--data", tmp_path / "lines.txt", "--data.format", "lines", *SMALL, "--out", tmp_path / "run"]
    train = ["train", "shakespeare", *map(str, words), "--training.steps"]
    main([*train, "2", "--data.arrange", "position"])
    path = tmp_path / "run" / "config.json"
    early = json.loads(path.read_text())
    assert early["data"].pop("arrange") == "position"
    path.write_text(json.dumps(early))
    main([*train, "4"])
    recipe = read_config(tmp_path / "run" / "config.json", TextRecipe)
    assert (recipe.training.steps, recipe.data.arrange) == (4, "position")
    assert load_recipe("shakespeare").data.arrange == "content"


def test_tokens_that_changed_under_a_run_are_noticed(run, tmp_path, capsys):
    """The held-out ones alone: the training ones are as they were."""
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text(corpus(300, seed=2))
    second.write_text(corpus(300, seed=3))
    words = ["--data", run.parent / "corpus.txt", "--tokenizer.context", "32"]
    for number, test in enumerate((first, second)):
        tokenize = ["tokenize-text", "shakespeare", *words, "--data.test", test, "--out", tmp_path / f"tokens{number}"]
        main([str(word) for word in tokenize])
    train = ["train", "shakespeare", "--data", tmp_path / "tokens0", "--out", tmp_path / "run", *SMALL]
    main([str(word) for word in [*train, "--training.steps", "2"]])
    shutil.rmtree(tmp_path / "tokens0")
    shutil.move(tmp_path / "tokens1", tmp_path / "tokens0")
    code, error = refused(capsys, *train, "--training.steps", "2")
    assert (code, "run changed: as many documents, but not the same ones; restore it" in error) == (3, True), error


def test_generate_prints_texts_that_begin_with_the_prompt(run, tmp_path, capsys):
    capsys.readouterr()
    page = tmp_path / "pages/a.html"
    main(["generate", str(run), "--prompt", "the cat", "--num", "2", "--steps", "4", "--html", str(page)])
    out = capsys.readouterr().out
    assert out.count("the cat") >= 2
    assert "<!doctype html>" in page.read_text()
    main(["generate", str(run), "--prompt", "the cat", "--num", "1", "--steps", "3", "--frames"])
    assert "step 3 of 3" in capsys.readouterr().out


def test_infill_keeps_what_is_given(run, capsys):
    capsys.readouterr()
    main(["infill", str(run), "the [MASK:5] sat[MASK]", "--num", "3", "--order", "halton"])
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("the ") for line in lines) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["infill", "RUN", "no hole here"], "no mask to fill"),
        (["infill", "RUN", "a [MASK:0]"], "empty hole"),
        (["infill", "RUN", "a [MASK:999]"], "model's context"),
        (["infill", "RUN", "Ω [MASK]"], "U+03A9"),
        (["infill", "RUN", "a [MASK:3] b [MASK: 4]"], "is no mask"),
        (["infill", "RUN", "a [MASK:3] b [mask:-1]"], "is no mask"),
        (["infill", "RUN", "a [MASK:999999999]"], "longer than this model's context"),
        (["train", "shakespeare", "--data", "x", "--model.self-condition"], "go together"),
        (["generate", "RUN", "--order", "halton", "--block", "8"], "another order, such as confidence"),
        (["infill", "RUN"], "usage: unmask infill"),
        (["generate", "RUN", "--prompt", "a" * 40], "leaves none to write"),
        (["generate", "RUN", "--scale", "2"], "nothing to guide towards"),
        (["generate", "RUN", "--num", "0"], "at least 1"),
        (["sample", "RUN"], "is a text model: use unmask generate"),
        (["score", "RUN", "--orders", "sideways"], "no order sideways"),
        (["score", "RUN", "--rows", "1"], "at least 2 rows"),
        (["train", "shakespeare"], "which text?"),
        (["train", "shakespeare", "--data", "x", "--packing", "documents"], "--model.padded is needed"),
        (["train", "shakespeare", "--data", "x", "--model.critic", "head"], "WithCritic"),
        (["train", "shakespeare", "--data", "x", "--model.num-classes", "3"], "text has no classes"),
        (["train", "tinystories", "--data", "x", "--tokenizer.file", "y"], "--tokenizer.vocab-size 0"),
        (["generate", "RUN", "--order", "raster", "--noise", "1"], "confidence or moment"),
    ],
)
def test_mistakes_are_one_line(run, capsys, arguments, said):
    code, error = refused(capsys, *[run if a == "RUN" else a for a in arguments])
    assert said in error
    assert code in (2, 3, 4)


def test_score_is_the_likelihood_of_the_held_out_rows(run, capsys, tmp_path):
    capsys.readouterr()
    main(["score", str(run), "--orders", "halton", "margin", "--steps", "1", "4", "--rows", "6", "--passes", "3",
          "--schedule", "linear", "--out", str(tmp_path / "score")])  # fmt: skip
    printed = capsys.readouterr().out
    assert "bound: any order" in printed
    table = list(csv.DictReader((tmp_path / "score/score.csv").read_text().splitlines()))
    assert [(row["order"], row["steps"]) for row in table] == [
        ("bound", "0"), ("halton", "1"), ("margin", "1"), ("halton", "4"), ("margin", "4"),
    ]  # fmt: skip
    assert (tmp_path / "score/score.png").stat().st_size > 1000
    assert table[1]["nats"] == table[2]["nats"], "in one step there is no order"
    recipe = read_config(run / "config.json", TextRecipe)
    ready = text_experiment.prepare_text(recipe, run / "tokens")
    pipeline = TextPipeline.from_pretrained(run, device="cpu", dtype=torch.float32)
    index = torch.arange(6) * len(ready.test) // 6
    tokens, _ = ready.test.read_rows(index, torch.device("cpu"))
    nats = compute_exact_nll(
        pipeline.predict(),
        tokens,
        ratios(Power(), 4),
        mask_id=pipeline.model.mask_id,
        rand=Rand(0, index, len(ready.test)),
        priority=Margin(),
    ).sum(1) / tokens.shape[1]  # fmt: skip
    assert float(table[4]["nats"]) == pytest.approx(float(nats.mean()), rel=1e-9)
    assert float(table[4]["error"]) == pytest.approx(float(nats.std() / math.sqrt(6)), rel=1e-9)
    assert json.loads((tmp_path / "score/score.json").read_text())["facts"]["rows"] == 6


def test_score_works_for_images_too(tmp_path, capsys):
    run = tmp_path / "digits"
    main(["train", "digits", "--out", str(run), "--model.dim", "16", "--model.depth", "1", "--model.heads", "2",
          "--training.steps", "2", "--training.batch-size", "8", "--device", "cpu"])  # fmt: skip
    capsys.readouterr()
    main(["score", str(run), "--orders", "halton", "raster", "--steps", "2", "--rows", "4"])
    assert ["raster", "2"] in [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert (run / "score" / "score.md").read_text().count("|") > 10


def test_documents_of_their_own_rows_train_and_write(tmp_path):
    """Texts shorter than a row, packed one a row: nothing absent is learned, and an end ends."""
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(corpus(n % 5 + 1, seed=n) for n in range(200)))
    run = tmp_path / "run"
    main(["train", "shakespeare", "--data", str(path), "--data.format", "lines", "--packing", "documents",
          "--model.padded", "--out", str(run), *SMALL, "--training.steps", "4"])  # fmt: skip
    pipeline = TextPipeline.from_pretrained(run)
    assert not pipeline.opens
    assert pipeline.infill("the [MASK:3] sat")[0].startswith("the ")


def test_one_rank_and_two_score_alike(run):
    """The rows are shared out, and the sum over ranks is that of one process."""
    from unmask.evaluation.scoring import measure_nats
    from unmask.method.likelihood import estimate_bound

    here = World(rank=0, size=1, device=torch.device("cpu"))
    subject, _, _, _ = open_subject(open_model(run), here)
    index = torch.arange(5)

    def measure(predict, tokens, rand):
        return estimate_bound(predict, tokens, mask_id=subject.mask_id, rand=rand, passes=2).mean(1)

    whole = measure_nats(subject, subject.plain, index, measure, 0, here)
    parts = []
    for rank in range(2):
        rows = index[rank::2]
        parts.append(measure_nats(subject, subject.plain, rows, measure, 0, here))
    for rank in range(2):
        for every, some in zip(whole, parts[rank], strict=True):
            torch.testing.assert_close(every[rank::2], some)


@pytest.mark.parametrize("name", ["shakespeare", "tinystories", "tinystories-gpu"])
def test_the_recipes_of_text_can_be_loaded(name):
    assert isinstance(load_recipe(name), TextRecipe)


def test_a_folder_of_tokens_serves_several_trainings(run, tmp_path, capsys):
    data, tokens = run.parent / "corpus.txt", tmp_path / "tokens"
    main(["tokenize-text", "shakespeare", "--data", str(data), "--tokenizer.context", "32", "--out", str(tokens)])
    assert "train 1 documents" in capsys.readouterr().out
    again = tmp_path / "again"
    main(["train", "shakespeare", "--data", str(tokens), "--out", str(again), *SMALL, "--training.steps", "8"])
    assert not (again / "tokens").exists()
    same = [(folder / "model.safetensors").read_bytes() for folder in (run, again)]
    assert same[0] == same[1]


def test_evaluate_text_measures_beside_held_out_text(run, capsys, tmp_path):
    capsys.readouterr()
    main(["evaluate-text", str(run), "--orders", "halton", "--steps", "2", "--temperatures", "0.5", "1",
          "--samples", "6", "--judge.steps", "4", "--judge.dim", "16", "--out", str(tmp_path / "w")])  # fmt: skip
    out = capsys.readouterr().out
    assert "held-out text (floor)" in out
    assert [line.split()[:3] for line in out.splitlines() if line.startswith("halton")] == [
        ["halton", "2", "0.5"],
        ["halton", "2", "1"],
    ]
    assert max(map(len, out.splitlines()[:-1])) <= 80
    table = list(csv.DictReader((tmp_path / "w/writing.csv").read_text().splitlines()))
    assert [row["order"] for row in table] == ["held-out text (floor)", "training text", "halton", "halton"]
    cold, warm = table[2:]
    assert float(cold["entropy"]) < float(warm["entropy"])
    assert (tmp_path / "w/frontier.png").stat().st_size > 1000
    assert "### halton, 2 steps" in (tmp_path / "w/samples.md").read_text()
    main(["evaluate-text", str(run), "--orders", "confidence", "halton", "--samplers", "parallel", "remask",
          "threshold", "--steps", "2", "--samples", "6", "--judge.steps", "4", "--judge.dim", "16",
          "--judge", str(save_tiny_gpt2(tmp_path / "gpt2")), "--out", str(tmp_path / "v")])  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "v/writing.csv").read_text().splitlines()))
    assert [row["order"] for row in rows][2:] == ["confidence", "confidence, remask", "threshold", "halton"]
    assert all(float(row["generative_perplexity"]) > 1 for row in rows)
    assert "| generative perplexity |" in (tmp_path / "v/writing.md").read_text()
    assert f"generative perplexity under {tmp_path / 'gpt2'}" in (tmp_path / "v/writing.md").read_text()


@pytest.mark.parametrize(
    "sampler", ["remask", "ancestral", "remdm-cap", "remdm-confidence", "entropy-bound", "threshold"]
)
def test_every_sampler_writes_from_the_command_line(run, capsys, sampler):
    capsys.readouterr()
    order = ["--order", "confidence"] if sampler == "remask" else []
    main(["generate", str(run), "--prompt", "the cat", "--num", "1", "--sampler", sampler, "--steps", "6", *order])
    assert capsys.readouterr().out.startswith("the cat")
    main(["generate", str(run), "--num", "1", "--sampler", sampler, "--steps", "6", "--block", "8", *order])


def test_flags_that_a_sampler_does_not_read_are_refused(run, capsys):
    for sampler, flag, value in (
        ("ancestral", "--order", "raster"),
        ("ancestral", "--noise", "2"),
        ("threshold", "--schedule", "cosine"),
    ):
        code, error = refused(capsys, "generate", run, "--sampler", sampler, flag, value)
        assert (code, "ignores it: add --sampler parallel" in error) == (2, True), error


def test_a_run_is_scored_and_exported_without_its_text(run, tmp_path, monkeypatch, capsys):
    """The tokens lie in the run: neither the text nor the folder the command was given in is needed."""
    there = tmp_path / "elsewhere"
    shutil.copytree(run, there / "run")
    config = json.loads((there / "run/config.json").read_text())
    config["data"]["path"] = "gone.txt"
    (there / "run/config.json").write_text(json.dumps(config))
    monkeypatch.chdir(there)
    main(["score", "run", "--orders", "raster", "--steps", "1", "99", "--rows", "4", "--passes", "1"])
    rows = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert ["raster", "32"] in rows, "more steps than tokens are as many"
    main(["export", "run", "--out", "model"])
    left = {path.name for path in (there / "model").iterdir()}
    assert left == {"README.md", "config.json", "manifest.json", "model.safetensors", "tokenizer.json"}
    assert "gone.txt" not in (there / "model/config.json").read_text()
    one, other = (TextPipeline.from_pretrained(there / name).generate("the", seed=3) for name in ("run", "model"))
    assert one == other
    for command in ("score", "evaluate-text"):
        code, error = refused(capsys, command, "model")
        assert (code, "give the run that trained it" in error) == (2, True), error


def test_a_training_may_start_from_another_of_the_same_tokenizer(run, tmp_path, capsys):
    main(["train", "shakespeare", "--data", str(run / "tokens"), "--init", str(run), "--out", str(tmp_path / "more"),
          *SMALL, "--training.steps", "1"])  # fmt: skip
    assert f"starting from {run}" in capsys.readouterr().out


def test_the_moment_order_brings_its_temperatures(run):
    spec = TextPipeline.from_pretrained(run).spec
    sampling = choose_sampling(SamplingFlags(order="moment", noise=2.0, steps=4), spec)
    assert sampling._temperatures(4) == tuple(compute_moment_temperatures(2.0, 4))
    cold = choose_sampling(SamplingFlags(order="moment", noise=2.0, steps=4, temperature=0.5), spec)
    assert cold._temperatures(4) == tuple(x / 2 for x in compute_moment_temperatures(2.0, 4))
    assert choose_sampling(SamplingFlags(order="entropy"), spec)._temperatures(4) == 1.0


def test_the_bound_of_a_self_conditioned_model_has_no_memory(tmp_path):
    """A pass must not remember what an earlier one saw: on uniform random text nothing beats log K by much."""
    draw = random.Random(0)
    (tmp_path / "noise.txt").write_text("".join(draw.choice("abcdefgh") for _ in range(4000)))
    recipe = tmp_path / "own.py"
    recipe.write_text(
        "from dataclasses import replace\n"
        "from unmask.method.objectives import MaskedDiffusion\n"
        "from unmask.recipes.reading import load_recipe\n"
        "def recipe():\n"
        "    base = load_recipe('shakespeare')\n"
        "    model = replace(base.model, dim=16, depth=1, heads=2, self_condition=True)\n"
        "    return replace(base, model=model, objective=MaskedDiffusion(self_condition=0.75),\n"
        "                   tokenizer=replace(base.tokenizer, context=32))\n"
    )
    run = tmp_path / "run"
    main(["train", str(recipe), "--data", str(tmp_path / "noise.txt"), "--out", str(run), "--device", "cpu",
          "--training.steps", "2", "--training.batch-size", "4"])  # fmt: skip
    here = World(rank=0, size=1, device=torch.device("cpu"))
    subject, sampling, _, _ = open_subject(open_model(run), here)
    asked = []

    def spy(make):
        def made(condition):
            predict = make(condition)
            asked.append(predict)
            return predict

        return made

    spied = replace(subject, predict=spy(subject.predict), plain=subject.plain)
    first = next(iter(score_subject(spied, [("raster", Raster())], sampling, [2], num=4, passes=3, seed=0, world=here)))
    assert not asked, "the bound asks the model without its memory"
    assert first.nats > math.log(8) - 0.2


def test_steps_are_shared_out_over_blocks_and_no_more_are_taken(run):
    pipeline = TextPipeline.from_pretrained(run)
    for block, steps in ((64, 8), (8, 8), (5, 16), (8, 4)):
        sampling = replace(pipeline.sampling, priority=Confidence(), steps=steps, block=block)
        states = list(pipeline.stream_states(pipeline.make_canvas("").tokens[None], sampling=sampling))
        assert len(states) - 1 == steps if 32 % min(block, 32) == 0 else len(states) - 1 <= steps, (block, steps)
    with pytest.raises(ValueError, match="2 steps for 4 blocks"):
        list(pipeline.stream_states(pipeline.make_canvas("").tokens[None], sampling=replace(sampling, steps=2)))


def test_parts_of_a_sampling_that_do_not_go_together_are_refused():
    for bad in (
        {"remask": True, "priority": Raster()},
        {"remask": True, "sampler": Ancestral()},
        {"block": 4, "priority": Halton((8,))},
        {"temperature": (1.0, 0.5), "steps": 3},
        {"temperature": (1.0, 0.5), "steps": 2, "sampler": Adaptive()},
    ):
        with pytest.raises(ValueError, match="sampling: "):
            Sampling(**bad)


def test_other_tokens_than_the_run_was_trained_on_are_refused(run, tmp_path, capsys):
    there = tmp_path / "run"
    shutil.copytree(run, there)
    other = tmp_path / "other.txt"
    other.write_text(corpus(2000, seed=9))
    shutil.rmtree(there / "tokens")
    main(["tokenize-text", "shakespeare", "--data", str(other), "--tokenizer.context", "32", "--out",
          str(there / "tokens")])  # fmt: skip
    code, error = refused(capsys, "score", there, "--rows", "4")
    assert code == 4
    assert "other tokens" in error


def test_score_divides_the_sum_of_all_rows_once(tmp_path):
    """Short and long documents: nats per token are those of all tokens together, not a mean of means."""
    lines = [("ab" if i % 2 else corpus(5, seed=i)[:28]) for i in range(400)]
    path, run = tmp_path / "lines.txt", tmp_path / "run"
    path.write_text("\n".join(lines))
    main(["train", "shakespeare", "--data", str(path), "--data.format", "lines", "--packing", "documents",
          "--model.padded", "--out", str(run), *SMALL, "--training.steps", "2"])  # fmt: skip
    main(["score", str(run), "--steps", "2", "--rows", "10", "--passes", "2"])
    table = list(csv.DictReader((run / "score/score.csv").read_text().splitlines()))
    subject, _, _, _ = open_subject(open_model(run), World(rank=0, size=1, device=torch.device("cpu")))
    index = torch.arange(10) * len(subject.rows) // 10
    tokens, _ = subject.rows.read_rows(index, torch.device("cpu"))
    nats = compute_exact_nll(subject.predict(None), tokens, ratios(Power(), 2), mask_id=subject.mask_id,
                 rand=Rand(0, index, len(subject.rows)), priority=Raster())  # fmt: skip
    row = next(row for row in table if row["order"] == "raster")
    assert float(row["nats"]) == pytest.approx(float(nats.sum() / (tokens >= 0).sum()), rel=1e-6)
