"""Infill masked spans of held-out text, and record which positions a model unmasks first if it chooses the order.

    python docs/results/text/infilling.py runs/shakespeare runs/shakespeare/infilling

The script writes infilling.md, infilling.csv, reveal-order.md, reveal-order.csv and reveal-order.png. It is made for
characters. With larger tokens, the size of a span counts tokens.
"""

import csv
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.data.text.shards import open_text_dataset
from unmask.decoding.sampling import Order, Sampling
from unmask.method.guidance import Predict
from unmask.method.rand import seeded
from unmask.method.sampling.decode import State
from unmask.method.sampling.priorities import Confidence, Halton, Margin, Random, Raster
from unmask.method.schedules import Power
from unmask.pipelines.text import TextPipeline
from unmask.runtime.provenance import describe_environment

ROWS, BATCH, SEED = 200, 50, 0
STEPS = {1: (1,), 2: (1, 2), 4: (1, 4), 8: (1, 8), 16: (1, 4, 16)}
FILLS: dict[str, Order] = {
    "halton": Halton(grid=(1,)),  # `Sampling.on` puts the grid of the canvas in
    "margin": Margin(),
    "confidence-without-noise": Confidence(noise=0.0),
    "raster": Raster(),
}
CHOOSES: dict[str, Order] = {"confidence-without-noise": Confidence(noise=0.0), "margin": Margin()}
GIVEN: dict[str, Order] = {"halton": Halton(grid=(1,)), "random": Random()}
KINDS = ("space", "end of line", "punctuation", "capital", "vowel", "consonant")
GROUPS = ("kind", "letter of its word")
COLOURS = ("#3366cc", "#dc3912", "#109618", "#888888")


def main(run: str, out: str) -> None:
    torch.set_num_threads(1)
    pipeline, folder = TextPipeline.from_pretrained(run, device="cpu"), Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    here = describe_environment(pipeline.device)
    made = f"Seed {SEED}. `python docs/results/text/{here['command']}`, commit {here['commit']}, {here['hardware']}."
    rows = list(filled(pipeline, *holes(pipeline, Path(run))))
    write_csv(folder / "infilling.csv", rows)
    (folder / "infilling.md").write_text(filled_table(rows) + f"\n{ROWS} held-out rows. {made}\n")
    orders = list(watched(pipeline))
    write_csv(folder / "reveal-order.csv", [row for order in orders for row in order["rows"]])
    (folder / "reveal-order.md").write_text(order_table(orders) + f"\n{ROWS} texts each. {made}\n")
    draw_order(orders, folder / "reveal-order.png")


def holes(pipeline: TextPipeline, run: Path) -> tuple[Int[Tensor, "n l"], Int[Tensor, "n"]]:
    """Return evenly spaced held-out rows, and the position where the span of each begins, for all sizes."""
    length = pipeline.model.length
    test = open_text_dataset(run / "tokens", length).test
    rows, _ = test.read_rows(torch.arange(ROWS) * len(test) // ROWS, pipeline.device)
    generator = torch.Generator().manual_seed(SEED)
    widest = max(STEPS)
    return rows, torch.randint(widest, length - 2 * widest, (ROWS,), generator=generator)


def filled(
    pipeline: TextPipeline, rows: Int[Tensor, "n l"], starts: Int[Tensor, "n"]
) -> Iterator[dict[str, str | int | float]]:
    """Yield the accuracy for each span size, order, number of passes and temperature, after that of a blind guess."""
    places, space = torch.arange(rows.shape[1]), int(pipeline.tokenizer.encode(" ")[0])
    for size, budgets in STEPS.items():
        hole = (places >= starts[:, None]) & (places < starts[:, None] + size)
        yield measured(rows, torch.full_like(rows, space), hole, order="always a space", hole=size, steps=0)
        for steps in budgets:
            for name, order in list(FILLS.items())[: 1 if steps == 1 else None]:  # in one pass there is no order
                for temperature in (0.0, 1.0):
                    sampling = Sampling(steps=steps, schedule=Power(), priority=order, temperature=temperature)
                    filling = fill(pipeline, rows.masked_fill(hole, pipeline.model.mask_id), sampling)
                    said = "any" if steps == 1 else name
                    yield measured(rows, filling, hole, order=said, hole=size, steps=steps, temperature=temperature)


def fill(pipeline: TextPipeline, canvas: Int[Tensor, "n l"], sampling: Sampling) -> Int[Tensor, "n l"]:
    ends = []
    for first in range(0, len(canvas), BATCH):
        part = canvas[first : first + BATCH]
        *_, last = pipeline.stream_states(part, seed=SEED, first=first, sampling=sampling, ends=False)
        ends.append(last.tokens)
    return torch.cat(ends)


def measured(
    rows: Int[Tensor, "n l"], filling: Int[Tensor, "n l"], hidden: Bool[Tensor, "n l"], **setting: str | int | float
) -> dict[str, str | int | float]:
    """Return the share of whole spans and of characters that are right, with standard errors over the rows."""
    right = (((filling == rows) & hidden).sum(1) / hidden.sum(1)).double()
    whole = (right == 1).double()
    figures = {"exact": whole, "characters": right}
    out = {"temperature": "", **setting, "rows": len(rows)}
    for name, values in figures.items():
        out |= {name: float(values.mean()), f"{name}_error": float(values.std() / len(values) ** 0.5)}
    return {name: out[name] for name in ("hole", "order", "steps", "temperature", "rows", *list(out)[-4:])}


def filled_table(rows: list[dict[str, str | int | float]]) -> str:
    lines = [
        "| hole | order | passes | likeliest: whole hole | characters | drawn: whole hole | characters |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    settings = dict.fromkeys((r["hole"], r["order"], r["steps"]) for r in rows)
    for hole, order, steps in settings:
        cells = []
        for row in [r for r in rows if (r["hole"], r["order"], r["steps"]) == (hole, order, steps)]:
            cells += [f"{100 * row[n]:.1f} ± {100 * row[n + '_error']:.1f} %" for n in ("exact", "characters")]
        lines.append(f"| {hole} | {order} | {steps or '–'} | {' | '.join((cells + ['–'] * 2)[:4])} |")
    return "\n".join(lines) + "\n"


def watched(pipeline: TextPipeline) -> Iterator[dict]:
    """Yield when each position is unmasked, and beside which, in texts that each order writes from nothing."""
    length, size = pipeline.model.length, pipeline.model.vocab_size
    kinds = torch.tensor([KINDS.index(kind(pipeline.tokenizer.decode([i]))) for i in range(size - 1)] + [len(KINDS)])

    def blind(tokens: Tensor, t: float) -> Tensor:
        return torch.zeros(*tokens.shape, pipeline.model.mask_id)

    for name, order in {**CHOOSES, **GIVEN}.items():
        sampling = replace(pipeline.sampling, steps=64, schedule=Power(), priority=order, temperature=1.0)
        make = (lambda: blind) if name in GIVEN else pipeline.predict
        times, texts, same, beside = reveal(pipeline, sampling, make)
        rows = [{"order": name, "by": "place", "value": i, "share": 1 / length, "t": float(v)}
                for i, v in enumerate(times.mean(0))]  # fmt: skip
        if name in CHOOSES:
            rows += grouped(name, "kind", KINDS, kinds[texts], times)
            letter = letters(kinds[texts])
            rows += grouped(name, "letter of its word", ("none", *map(str, range(1, 9))), letter, times)[1:]
        yield {"order": name, "same": same, "beside": beside, "rows": rows}


def reveal(
    pipeline: TextPipeline, sampling: Sampling, make: Callable[[], Predict]
) -> tuple[Float[Tensor, "n l"], Int[Tensor, "n l"], float, float]:
    """Return the time t of each position, the texts, and the shares unmasked with and beside a neighbour."""
    mask_id, length = pipeline.model.mask_id, pipeline.model.length
    sampling, times, texts, together, beside = sampling.fit_to((length,)), [], [], 0, 0
    for first in range(0, ROWS, BATCH):
        tokens = torch.full((min(BATCH, ROWS - first), length), mask_id)
        rand = seeded(SEED, len(tokens), first=first)
        when = torch.zeros(tokens.shape)
        before: State | None = None
        for state in sampling.run(make(), tokens, mask_id=mask_id, rand=rand, priority=sampling.priority):
            when[state.revealed] = state.t
            together += int((state.revealed & touching(state.revealed)).sum())
            beside += 0 if before is None else int((state.revealed & touching(before.tokens != mask_id)).sum())
            before = state
        times.append(when)
        texts.append(state.tokens)
    num = ROWS * length
    return torch.cat(times), torch.cat(texts), together / num, beside / num


def touching(places: Bool[Tensor, "n l"]) -> Bool[Tensor, "n l"]:
    """Return the positions that have one of these positions to their left or right."""
    out = torch.zeros_like(places)
    out[:, 1:] |= places[:, :-1]
    out[:, :-1] |= places[:, 1:]
    return out


def kind(character: str) -> str:
    if character in "\n ":
        return "space" if character == " " else "end of line"
    if not character.isalpha():
        return "punctuation"
    return "capital" if character.isupper() else "vowel" if character in "aeiou" else "consonant"


def letters(kinds: Int[Tensor, "n l"]) -> Int[Tensor, "n l"]:
    """Return the index of a letter in its word, from 1 up to 8; 0 for other characters."""
    letter, count = kinds >= KINDS.index("capital"), torch.zeros(len(kinds), dtype=torch.long)
    out = torch.zeros_like(kinds)
    for place in range(kinds.shape[1]):
        count = torch.where(letter[:, place], count + 1, 0)
        out[:, place] = count.clamp(max=8)
    return out


def grouped(
    order: str, by: str, names: tuple[str, ...], which: Int[Tensor, "n l"], times: Float[Tensor, "n l"]
) -> list[dict]:
    hits = [which == i for i in range(len(names))]
    return [
        {"order": order, "by": by, "value": name, "share": float(hit.double().mean()), "t": float(times[hit].mean())}
        for name, hit in zip(names, hits, strict=True)
    ]


def order_table(orders: list[dict]) -> str:
    chosen = [{(r["by"], r["value"]): r for r in o["rows"]} for o in orders if o["order"] in CHOOSES]
    lines = [f"| mean time t of revealing | share | {' | '.join(CHOOSES)} |", "| --- " + "| ---: " * 3 + "|"]
    for by, value in [key for key in chosen[0] if key[0] in GROUPS]:
        said = value if by == "kind" else f"letter {value}{' and later' * (value == '8')} of a word"
        times = " | ".join(f"{rows[by, value]['t']:.3f}" for rows in chosen)
        lines.append(f"| {said} | {100 * chosen[0][by, value]['share']:.1f} % | {times} |")
    lines += ["", "| order | revealed in one step with a neighbour | beside what was there |", "| --- | ---: | ---: |"]
    lines += [f"| {o['order']} | {100 * o['same']:.1f} % | {100 * o['beside']:.1f} % |" for o in orders]
    return "\n".join(lines) + "\n"


def draw_order(orders: list[dict], path: Path) -> None:
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(14, 4.2), dpi=110, layout="constrained", width_ratios=(1.6, 1, 1)
    )
    for colour, order in zip(COLOURS, orders, strict=True):
        by = {group: [r for r in order["rows"] if r["by"] == group] for group in ("place", *GROUPS)}
        if order["order"] != "halton":  # its time is a fixed pattern, which hides the others
            left.plot([r["t"] for r in by["place"]], color=colour, label=order["order"], linewidth=1.2)
        for axes, group, line in ((middle, "kind", ""), (right, "letter of its word", "-")):
            values, times = [str(r["value"]) for r in by[group]], [r["t"] for r in by[group]]
            axes.plot(values, times, color=colour, marker="o", linestyle=line)
    left.set(xlabel="place in the text", ylabel="mean time t of revealing", title="By place")
    middle.set(title="By kind of character")
    middle.tick_params(axis="x", rotation=35)
    right.set(xlabel="number of the letter (8: or later)", title="By place in its word")
    left.legend(frameon=False)
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e9ecef")
    figure.savefig(path)


def write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
