"""Tuning: the counts are the best there are, the figures come from rows that did not choose, and presets stay with
their weights."""

import itertools
import json
import shutil
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask import load
from unmask.cli import main
from unmask.data.tokens import TokenSet
from unmask.decoding.sampling import ListedCounts, Sampling
from unmask.errors import ConfigError
from unmask.evaluation import tuned_model
from unmask.evaluation.costs import MOST_CUTS, choose_counts, choose_cuts, measure_costs
from unmask.evaluation.scoring import ScoredSubject, average_nats, build_measure, measure_nats
from unmask.evaluation.searching import SearchSpace, TrialLog, search_sampling
from unmask.evaluation.tuning import RIVALS, split_held_out, tune_counts
from unmask.method.ramps import Interval, LinearRamp
from unmask.method.sampling.priorities import Confidence, Halton, Raster
from unmask.method.schedules import Power, count_reveals
from unmask.published.opening import open_model
from unmask.published.tuned import TunedPresets, write_presets
from unmask.recipes.spec import NamedSampling
from unmask.runtime.distributed import World
from unmask.storage.config import to_json
from unmask.storage.layout import TUNED

ALONE = World(0, 1, torch.device("cpu"))
TINY = ["--model.dim", "16", "--model.depth", "1", "--model.heads", "2", "--training.batch-size", "8"]
TINY += ["--classifier.steps", "5", "--device", "cpu", "--training.steps", "2"]
LITTLE = ["--passes", "2", "3", "--rows", "100", "--trials", "4", "--samples", "20", "--measured", "20"]
GRID = (3, 3)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A tiny run that was tuned."""
    out = tmp_path_factory.mktemp("tuned") / "run"
    main(["train", "digits", "--out", str(out), *TINY])
    main(["tune", str(out), *LITTLE])
    return out


@pytest.fixture
def subject():
    """A function whose logits depend on all known tokens, and 40 rows."""
    rand = torch.Generator().manual_seed(0)
    rows, weight = torch.randint(5, (40, 9), generator=rand), torch.randn(6 * 9, 9 * 5, generator=rand)

    def predict(tokens, t):
        return (torch.nn.functional.one_hot(tokens, 6).flatten(1).float() @ weight).unflatten(1, (9, 5))

    make = lambda condition: predict  # noqa: E731
    return ScoredSubject(predict=make, plain=make, rows=TokenSet(tokens=rows), mask_id=5)


# -- counts ------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 7), st.data())
def test_no_other_counts_cost_less(length, data):
    passes = data.draw(st.integers(1, length))
    costs = torch.rand(length + 1, length + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(length))
    costs = costs.masked_fill(torch.ones_like(costs, dtype=torch.bool).tril(), torch.inf)

    def price(ends):
        return sum(float(costs[a, b]) for a, b in itertools.pairwise((0, *ends, length)))

    counts = choose_counts(costs, list(range(length + 1)), passes)
    assert len(counts) == passes
    assert sum(counts) == length
    assert min(counts) >= 1
    ends = tuple(itertools.accumulate(counts))[:-1]
    least = min(price(other) for other in itertools.combinations(range(1, length), passes - 1))
    assert price(ends) == pytest.approx(least)


@given(st.integers(1, 5000))
def test_a_pass_may_begin_at_few_places_and_at_all_of_a_short_canvas(length):
    cuts = choose_cuts(length)
    assert (cuts[0], cuts[-1]) == (0, length)
    assert cuts == sorted(set(cuts))
    assert len(cuts) <= MOST_CUTS + 1
    assert length > MOST_CUTS or cuts == list(range(length + 1))


@pytest.mark.parametrize("order", [Halton(GRID), Raster()])
@pytest.mark.parametrize("counts", [(9,), (1, 8), (4, 4, 1), (2, 3, 1, 3)])
def test_the_costs_of_the_passes_add_up_to_the_exact_likelihood(subject, order, counts):
    cuts, index = choose_cuts(9), torch.arange(0, 40, 2)
    costs = measure_costs(subject, order, cuts, index=index, seed=0, world=ALONE)
    ends = [0, *itertools.accumulate(counts)]
    measure = build_measure(subject, order, Sampling(schedule=ListedCounts(counts)), len(counts))
    nats, _ = measure_nats(subject, subject.plain, index, measure, 0, ALONE)
    assert float(sum(costs[a, b] for a, b in itertools.pairwise(ends))) == pytest.approx(float(nats.mean()), rel=1e-6)


def test_the_counts_score_best_on_the_rows_that_chose_them(subject):
    order, rows = Halton(GRID), split_held_out(200, 100)
    rows = replace(rows, choose=rows.choose % 40, score=rows.score % 40)
    found = tune_counts(subject, order, (1, 2, 4, 9), rows, 9, seed=0, world=ALONE)
    for passes, counts in found.items():
        nats = []
        for schedule in (ListedCounts(tuple(counts)), *RIVALS.values()):
            measure = build_measure(subject, order, Sampling(schedule=schedule), passes)
            nats.append(average_nats(*measure_nats(subject, subject.plain, rows.choose, measure, 0, ALONE)))
        assert nats[0] <= min(nats) + 1e-6


def test_rows_that_choose_do_not_score():
    rows = split_held_out(1001, 300)
    assert len(rows.choose) == len(rows.score) == 300
    assert not set(rows.choose.tolist()) & set(rows.score.tolist())
    with pytest.raises(ConfigError, match=r"99 held-out rows .* at least 100"):
        split_held_out(199, 300)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(1, 30), st.integers(1, 400))
def test_listed_counts_are_revealed_as_they_stand_and_are_a_curve_elsewhere(counts, steps, unknown):
    listed = Sampling(steps=len(counts), schedule=ListedCounts(tuple(counts)))
    whole = count_reveals(torch.tensor([sum(counts)]), listed.ratios(sum(counts)))
    assert whole[:, 0].tolist() == counts
    other = count_reveals(torch.tensor([unknown]), replace(listed, steps=steps).ratios(unknown))
    assert int(other.sum()) == unknown


def test_listed_counts_refuse_a_pass_that_reveals_nothing():
    with pytest.raises(ValueError, match="counts of at least 1"):
        ListedCounts((3, 0, 2))


# -- the search --------------------------------------------------------------------------------------------------------

SPACE = SearchSpace(counts=(2, 7), grid=GRID, guided=True, any_order=True)
START = Sampling(steps=2)


def price(sampling):
    """A distance that is least at one value of each setting."""
    scale = sampling.scale
    return (
        abs(scale.scale - 2.0)
        + isinstance(scale, Interval)
        + abs(sum(sampling.temperature) / 2 - 1.0 if isinstance(sampling.temperature, tuple) else 3.0)
        + (not isinstance(sampling.priority, Halton))
        + (not isinstance(sampling.schedule, ListedCounts))
    )


@pytest.fixture
def made():
    """The trials that are really made."""
    return []


def search(made, log, trials):
    measure = lambda sampling: made.append(sampling) or float(price(sampling))  # noqa: E731
    return list(search_sampling(measure, (START,), SPACE, log, trials=trials))


def test_each_setting_is_found_and_no_trial_is_made_twice(made, tmp_path):
    found = search(made, TrialLog(tmp_path / "trials.json", {}, write=True), 500)
    best = min(found, key=lambda trial: trial.distance)
    assert best.sampling.scale == LinearRamp(2.0)
    assert isinstance(best.sampling.priority, Halton)
    assert best.sampling.schedule == ListedCounts((2, 7))
    assert best.sampling.temperature in ((1.2, 0.8), (1.1, 0.9), (0.9, 1.1))
    assert len({str(to_json(sampling)) for sampling in made}) == len(made) == len(found)
    assert found[-1].best == best.distance


def test_a_stopped_search_goes_on_and_one_of_other_weights_begins_again(made, tmp_path):
    path = tmp_path / "trials.json"
    first = search(made, TrialLog(path, {"weights": "a"}, write=True), 7)
    assert len(first) == len(made) == 7
    more = search(made, TrialLog(path, {"weights": "a"}, write=True), 12)
    assert len(more) == len(made) == 12
    assert more[:7] == first
    search(made, TrialLog(path, {"weights": "b"}, write=True), 5)
    assert len(made) == 17


def test_an_unconditional_model_is_not_guided_and_a_partition_model_keeps_its_order():
    narrow = replace(SPACE, guided=False, any_order=False)
    tried = [sampling for change in narrow.list_axes() for sampling in change(START)]
    assert {sampling.scale for sampling in tried} == {START.scale}
    assert {type(sampling.priority) for sampling in tried} == {Halton, Confidence}  # Confidence is where it began
    assert not [s for change in narrow.list_axes() for s in change(replace(START, priority=Halton(GRID)))
                if isinstance(s.priority, Confidence)]  # fmt: skip


# -- the command -------------------------------------------------------------------------------------------------------


def refused(capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("unmask: ")]
    assert len(lines) == 1
    return stop.value.code, lines[0]


def test_the_presets_serve_the_command_python_and_an_export(tuned, tmp_path, monkeypatch):
    pipe = load(tuned)
    assert [preset.name for preset in pipe.spec.presets] == ["tuned-2", "tuned-3"]
    sampling = pipe.spec.presets[0].sampling
    assert sampling.steps == 2
    images = pipe([3], preset="tuned-2", seed=1)
    assert images[0].tobytes() == pipe([3], sampling=sampling, seed=1)[0].tobytes()
    out = tmp_path / "export"
    main(["export", str(tuned), "--out", str(out)])
    assert not (out / TUNED).exists()
    assert load(out).spec.presets == pipe.spec.presets
    main(["sample", str(out), "--preset", "tuned-3", "--num", "2", "--out", str(tmp_path / "images.png")])


def test_the_report_names_what_was_measured(tuned):
    page = (tuned / "tune/tune.md").read_text()
    assert page.count("| tuned |") == 2
    for row in ("own, 2 passes", "own, 3 passes", "tuned-2", "tuned-3"):
        assert f"| {row} |" in page
    assert {path.name for path in (tuned / "tune").iterdir()} >= {"counts.png", "frontier.png", "costs.json"}


def test_the_same_call_makes_no_trial_again(tuned, tmp_path, monkeypatch):
    out = shutil.copytree(tuned, tmp_path / "run")
    before = (out / TUNED).read_bytes()
    monkeypatch.setattr(tuned_model, "measure_to_training", lambda *args: pytest.fail("a trial was made again"))
    main(["tune", str(out), *LITTLE])
    assert (out / TUNED).read_bytes() == before


def test_presets_of_other_weights_are_left_out_in_one_line(tuned, tmp_path):
    out, said = shutil.copytree(tuned, tmp_path / "run"), []
    found = json.loads((out / TUNED).read_text())
    (out / TUNED).write_text(json.dumps({**found, "weights": "0" * 64}))
    assert open_model(out, say=said.append).config.presets == ()
    assert len(said) == 1
    assert "for other weights" in said[0]
    write_presets([NamedSampling(name="tuned-9", sampling=START)], out)
    assert [preset.name for preset in open_model(out).config.presets] == ["tuned-9"]
    write_presets([NamedSampling(name="tuned-8", sampling=START)], out)
    assert [preset.name for preset in open_model(out).config.presets] == ["tuned-9", "tuned-8"]
    (out / TUNED).write_text("{")
    with pytest.raises(ConfigError, match=TUNED):
        open_model(out)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--order", "confidence"], "looks at the logits"),
        (["--order", "haltom"], "did you mean halton"),
        (["--passes", "17"], "from 1 to 16"),
        (["--passes", "0"], "from 1 to 16"),
        (["--rows", "99"], "at least 100"),
        (["--samples", "1"], "2 samples or more"),
        (["--trials", "-1"], "0 trials or more"),
    ],
)
def test_what_cannot_be_tuned_is_one_line(tuned, capsys, flags, message):
    code, said = refused(capsys, "tune", tuned, *LITTLE, *flags)
    assert code == 2
    assert message in said


def test_text_is_tuned_by_its_counts(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question. " * 3000)
    run = tmp_path / "run"
    small = ["--model.dim", "16", "--model.depth", "1", "--model.heads", "2", "--tokenizer.context", "16"]
    main(["train", "shakespeare", "--data", str(tmp_path / "text.txt"), "--out", str(run), "--device", "cpu",
          "--training.steps", "2", "--training.batch-size", "4", *small])  # fmt: skip
    main(["tune", str(run), "--passes", "4", "--rows", "100"])
    (preset,) = open_model(run).config.presets
    assert sum(preset.sampling.schedule.counts) == 16
    assert preset.sampling.schedule != Power(1.0)
    capsys.readouterr()
    main(["generate", str(run), "--preset", "tuned-4"])
    assert capsys.readouterr().out
    code, said = refused(capsys, "generate", run, "--preset", "besnier-256-8")
    assert code == 2
    assert "it has tuned-4" in said


def test_the_presets_of_an_export_lie_with_its_results(tuned, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["export", str(tuned), "--out", "mine"])
    capsys.readouterr()
    main(["tune", "mine", "--data", "digits", "--passes", "5", "--rows", "100", "--trials", "0"])
    command = capsys.readouterr().out.splitlines()[-1]
    assert command == "unmask sample runs/mine --preset tuned-5"
    assert (tmp_path / "runs/mine" / TUNED).exists()
    assert not (tmp_path / "mine" / TUNED).exists()
    main([*command.split()[1:], "--num", "2", "--out", "images.png"])


def test_presets_are_read_as_they_were_written(tmp_path):
    made = TunedPresets(weights="0" * 64, presets=(NamedSampling(name="tuned-2", sampling=START),))
    assert made == TunedPresets(**{**made.__dict__})
