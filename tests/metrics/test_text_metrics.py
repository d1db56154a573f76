"""Check metrics of text against brute force on lists, scipy and closed forms, and samples beside held-out text."""

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy as scipy_entropy

from unmask.data.tokens import TokenSet
from unmask.errors import CheckpointError, ConfigError, DataError
from unmask.evaluation import text as evaluate_text
from unmask.evaluation.text import find_frontier, measure_texts, open_judge
from unmask.metrics.features import hash_network
from unmask.metrics.judge import Judge, JudgeConfig, save_judge
from unmask.metrics.text import (
    compute_distinct,
    compute_doubles,
    compute_ngram_kl,
    compute_repetition,
    compute_unigram_entropy,
    number_ngrams,
    number_words,
)
from unmask.runtime.distributed import World

# Few different tokens, so that n-grams repeat; some far apart, so that numbering matters; -1 anywhere.
token_rows = st.integers(1, 9).flatmap(
    lambda length: st.lists(
        st.lists(st.sampled_from([-1, 0, 1, 2, 50_256]), min_size=length, max_size=length), min_size=1, max_size=7
    )
)


def grams_of(row, n):
    found = [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]
    return [gram for gram in found if -1 not in gram]


def row(*tokens):
    return torch.tensor([tokens])


# -- n-grams: distinct, repetition, doubles --


@settings(max_examples=150, deadline=None)
@given(rows=token_rows, n=st.integers(1, 5))
def test_figures_of_ngrams_are_their_definitions(rows, n):
    every = [gram for each in rows for gram in grams_of(each, n)]
    tokens = torch.tensor(rows)
    if not every:
        assert all(math.isnan(figure(tokens, n)) for figure in (compute_distinct, compute_repetition))
        return
    assert compute_distinct(tokens, n) == pytest.approx(len(set(every)) / len(every), abs=1e-12)
    again = sum(gram in grams_of(each, n)[:i] for each in rows for i, gram in enumerate(grams_of(each, n)))
    assert compute_repetition(tokens, n) == pytest.approx(again / len(every), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(rows=token_rows, n=st.integers(1, 5))
def test_ngrams_have_one_number_if_and_only_if_they_are_equal(rows, n):
    numbers = number_ngrams(torch.tensor(rows), n)
    assert numbers.shape == (len(rows), max(0, len(rows[0]) - n + 1))
    places = [(i, j) for i in range(numbers.shape[0]) for j in range(numbers.shape[1])]
    spelled = {place: tuple(rows[place[0]][place[1] : place[1] + n]) for place in places}
    pairs = {(spelled[place], int(numbers[place])) for place in places if -1 not in spelled[place]}
    assert len(pairs) == len({gram for gram, _ in pairs}) == len({number for _, number in pairs})
    assert all((int(numbers[place]) == -1) == (-1 in spelled[place]) for place in places)


def test_long_ngrams_of_a_large_vocabulary_do_not_overflow():
    rows = torch.randint(2**31 - 1, (20, 40), generator=torch.Generator().manual_seed(0))
    assert compute_distinct(torch.cat([rows, rows]), 12) == 0.5
    assert compute_repetition(torch.cat([rows, rows], 1), 8) == pytest.approx(33 / 73)  # 7 of 80 - 7 cross the seam


@settings(max_examples=100, deadline=None)
@given(rows=token_rows)
def test_doubles_are_equal_neighbours(rows):
    pairs = [pair for each in rows for pair in pairwise(each) if -1 not in pair]
    if not pairs:
        assert math.isnan(compute_doubles(torch.tensor(rows)))
        return
    assert compute_doubles(torch.tensor(rows)) == pytest.approx(sum(a == b for a, b in pairs) / len(pairs), abs=1e-12)


def test_known_figures():
    song = row(5, 6, 5, 6, 5, 6, 7, 7)
    assert compute_distinct(song, 1) == 3 / 8
    assert compute_distinct(song, 2) == 4 / 7  # 56, 65, 67, 77
    assert compute_repetition(song, 2) == pytest.approx(3 / 7)
    assert compute_doubles(song) == 1 / 7
    assert compute_repetition(torch.tensor([[1, 2, 3], [1, 2, 3]]), 1) == 0  # other rows do not count
    assert compute_distinct(torch.tensor([[1, 2, 3], [1, 2, 3]]), 1) == 0.5  # here they do


def test_n_is_at_least_one():
    with pytest.raises(ConfigError, match="n is 0"):
        number_ngrams(row(1, 2), 0)


# -- words --


def test_words_are_numbered_over_all_texts_without_case_and_marks_stay_between_them():
    rows = number_words(["Max Max, said max.", "It's Max's... MAX", ""])
    assert rows.tolist() == [[0, 0, 1, 2, 0, 3], [4, 5, 6, 0, -1, -1], [-1] * 6]


def test_doubled_words_are_found_and_a_mark_between_excuses_them():
    assert compute_doubles(number_words(["Max Max went home"])) == pytest.approx(1 / 3)
    assert compute_doubles(number_words(["Max, Max went home"])) == 0
    assert compute_doubles(number_words(["It is is. Is it?"])) == pytest.approx(1 / 6)


def test_texts_without_words_are_refused():
    with pytest.raises(DataError, match="no words in 2 texts"):
        number_words(["", " \n"])


# -- entropy --


@settings(max_examples=100, deadline=None)
@given(rows=token_rows)
def test_entropy_is_scipys_of_each_rows_counts(rows):
    kept = [[token for token in each if token >= 0] for each in rows]
    expected = [scipy_entropy(list(Counter(each).values())) if each else 0.0 for each in kept]
    assert compute_unigram_entropy(torch.tensor(rows)).tolist() == pytest.approx(expected, abs=1e-12)


def test_entropy_of_even_and_of_constant_rows():
    rows = torch.stack([torch.arange(16), torch.full((16,), 3), torch.arange(16) % 2])
    assert compute_unigram_entropy(rows).tolist() == pytest.approx([math.log(16), 0, math.log(2)], abs=1e-12)


# -- divergence --


@settings(max_examples=150, deadline=None)
@given(a=token_rows, b=token_rows, n=st.integers(1, 3), smoothing=st.sampled_from([1e-3, 0.5, 1.0]))
def test_divergence_is_scipys_of_smoothed_counts(a, b, n, smoothing):
    counts = [Counter(gram for each in rows for gram in grams_of(each, n)) for rows in (a, b)]
    if not all(counts):
        assert math.isnan(compute_ngram_kl(torch.tensor(a), torch.tensor(b), n, smoothing=smoothing))
        return
    union = sorted(counts[0] | counts[1])
    p, q = ([count[gram] + smoothing for gram in union] for count in counts)
    found = compute_ngram_kl(torch.tensor(a), torch.tensor(b), n, smoothing=smoothing)
    assert found == pytest.approx(scipy_entropy(p, q), abs=1e-9)


def test_divergence_of_known_counts():
    # Counts (3, 1) and (1, 3); with one half more of each, 3.5/5 and 1.5/5.
    expected = 0.7 * math.log(0.7 / 0.3) + 0.3 * math.log(0.3 / 0.7)
    assert compute_ngram_kl(row(0, 0, 0, 1), row(0, 1, 1, 1), 1) == pytest.approx(expected)
    assert compute_ngram_kl(row(0, 1, 2), row(2, 0, 1, -1), 1) == 0


def test_divergence_tells_order_where_single_tokens_do_not():
    forward, backward = torch.arange(12)[None], torch.arange(12).flip(0)[None]
    assert compute_ngram_kl(forward, backward, 1) == 0
    assert compute_ngram_kl(forward, backward, 2) > 0.5


@pytest.mark.parametrize("smoothing", [0.0, -1.0, math.inf, math.nan])
def test_smoothing_is_positive(smoothing):
    with pytest.raises(ConfigError, match="smoothing is"):
        compute_ngram_kl(row(1), row(1), 1, smoothing=smoothing)


# -- samples beside held-out text --


def draw(seed, num, length=32, kinds=30):
    """Sample a chain in which each token is one of two after its predecessor."""
    rand = torch.Generator().manual_seed(seed)
    steps = torch.randint(1, 3, (num, length), generator=rand)
    return (torch.randint(kinds, (num, 1), generator=rand) + steps.cumsum(1)) % kinds


@pytest.fixture(scope="module")
def uniform():
    """Return a judge that finds all 32 tokens equally likely."""
    judge = Judge(JudgeConfig(dim=4), 32, 31)
    torch.nn.init.zeros_(judge.head.weight)
    torch.nn.init.zeros_(judge.head.bias)
    return judge.eval()


def test_every_figure_has_a_floor_and_samples_of_the_same_law_meet_it(uniform):
    found = measure_texts(draw(0, 300), draw(1, 600), uniform, lambda tokens: " ".join(map(str, tokens.tolist())))
    names = {name for name in found if not name.endswith("_floor")}
    assert {f"{name}_floor" for name in names} == found.keys() - names
    assert {"distinct_2", "ngram_kl_3", "word_doubles", "word_ngram_kl_1", "repetition_4", "entropy"} <= names
    assert found["perplexity"] == found["perplexity_floor"] == pytest.approx(32, rel=1e-5)
    assert found["nats_per_token"] == pytest.approx(math.log(32), rel=1e-5)
    for name in names:
        ratio = 3.1 if "_kl_" in name else 1.2  # n-gram KL is mostly noise here, for both parts
        assert found[name] <= ratio * found[f"{name}_floor"] <= ratio**2 * found[name], name
        if not name.startswith("word_") and f"word_{name}" in names:
            assert found[f"word_{name}"] == pytest.approx(found[name], abs=1e-9), name  # each token is a word here


def test_repetition_shows_whatever_the_perplexity_says(uniform):
    stuck = draw(0, 200).roll(1, 1)
    stuck[:, 1::2] = stuck[:, ::2]  # every token twice
    found = measure_texts(stuck, draw(1, 400), uniform)
    assert found["perplexity"] == pytest.approx(found["perplexity_floor"])
    assert found["doubles_floor"] == 0
    assert found["doubles"] > 0.5
    assert found["ngram_kl_2"] > 20 * found["ngram_kl_2_floor"]
    assert not any(name.startswith("word_") for name in found)


@pytest.mark.parametrize("num", [12, 5000])
def test_both_sides_of_what_falls_with_the_number_of_rows_have_as_many(uniform, num):
    found = measure_texts(draw(0, num), draw(1, 600), uniform)
    for name in ("distinct_3", "ngram_kl_2"):  # with 12 rows and 588 rows it would differ 40 times
        assert found[name] <= 3.1 * found[f"{name}_floor"] <= 3.1**2 * found[name], name
    plenty = measure_texts(draw(0, 300), draw(1, 600), uniform)
    assert (found["ngram_kl_2_floor"] > 5 * plenty["ngram_kl_2_floor"]) == (num == 12)
    assert found["entropy_floor"] == plenty["entropy_floor"]


def test_a_frontier_is_the_measure_at_each_temperature_in_order(uniform):
    samples = {1.0: draw(0, 40), 0.5: draw(2, 40, kinds=6)}
    held_out = draw(1, 80)
    lines = find_frontier(samples, held_out, uniform)
    assert [line["temperature"] for line in lines] == [0.5, 1.0]
    for line in lines:
        rows = samples[line["temperature"]]
        assert line == {"temperature": line["temperature"], **measure_texts(rows, held_out, uniform)}
    assert lines[0]["entropy"] < lines[1]["entropy"]
    assert lines[0]["entropy_floor"] == lines[1]["entropy_floor"]


def test_rows_that_do_not_compare_are_refused(uniform):
    with pytest.raises(ConfigError, match="samples are 16 tokens long and held-out rows 32"):
        measure_texts(draw(0, 4, 16), draw(1, 8), uniform)
    with pytest.raises(ConfigError, match="0 samples, 8 held-out rows"):
        measure_texts(draw(0, 4)[:0], draw(1, 8), uniform)


def test_a_judge_is_trained_once_for_a_text_and_a_configuration(tmp_path, monkeypatch):
    trained = []
    train = evaluate_text.train_judge

    def counted(rows, config, **options):
        trained.append(config)
        return train(rows, config, **options)

    monkeypatch.setattr(evaluate_text, "train_judge", counted)
    world, path = World(0, 1, torch.device("cpu")), tmp_path / "new" / "judge.safetensors"
    config = JudgeConfig(dim=4, steps=2)

    def keep(config=config, vocab_size=8, text="a"):
        data = TokenSet(tokens=draw(0, 20, kinds=6))
        return hash_network(open_judge(data, config, path, world, vocab_size=vocab_size, end_id=7, text=text))

    first = keep()
    assert keep() == first
    assert len(trained) == 1
    for other in ({"text": "b"}, {"vocab_size": 9}, {"config": JudgeConfig(dim=4, steps=2, seed=1)}):
        keep(**other)
        keep(**other)
    assert len(trained) == 4
    assert keep() == first
    save_judge(Judge(config, 8, 7), path)  # without the digest of its text
    assert keep() == first
    path.write_bytes(b"no judge")
    with pytest.raises(CheckpointError, match="is not a saved judge"):
        keep()
