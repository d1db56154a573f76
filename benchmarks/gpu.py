"""All that a GPU can show, in one run of at most eight minutes: how close to the chip sampling and training come.

    python benchmarks/gpu.py --data mnist --out gpu.json
    python benchmarks/gpu.py --device cpu --quick --out gpu.json      (tries the script; its figures mean nothing)

It installs nothing. It samples with the published size, 24 blocks of width 768, at 16x16 and 32x32 tokens, with plain,
compiled and captured networks (CUDA graphs), and with a partition network of the same size; takes training steps; runs
the tests for CUDA; and trains `mnist-gpu` for the time that is left. MFU is the share of the chip's peak in bfloat16
that the multiplications of the networks reach. Each part that does not end in time is named in the JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unmask.method.guidance import guided
from unmask.method.models.configs import TransformerConfig
from unmask.method.models.partition_config import PartitionConfig
from unmask.method.objectives import MaskGIT
from unmask.method.partitioning import Partition
from unmask.method.ramps import LinearRamp
from unmask.method.rand import seeded
from unmask.method.sampling.decode import decode
from unmask.method.sampling.priorities import Halton
from unmask.method.schedules import Arccos, ratios
from unmask.runtime.provenance import describe_environment

PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
"""Operations per second in dense bfloat16, by a part of the name: NVIDIA's data sheets."""
STEPS, CLASSES, VOCABULARY = 8, 1000, 1024
TRAINING_BATCH = 64
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--data", default="mnist", help="folder of MNIST for the training")
    parser.add_argument("--seconds", type=float, default=450, help="end after about this time")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    device, start = torch.device(arguments.device), time.monotonic()
    result: Row = {"environment": describe_environment(device), "quick": arguments.quick, "rows": []}
    result["peak"] = next((peak for name, peak in PEAKS.items() if name in result["environment"]["hardware"]), None)
    sides = (4,) if arguments.quick else (16, 32)
    for part in (time_sampling, time_training):
        for side in sides:
            for row in part(device, side, arguments.quick):
                row["mfu"] = row.pop("operations") / row["seconds"] / result["peak"] if result["peak"] else None
                result["rows"].append(row)
                print(json.dumps(row), flush=True)
                arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    left = arguments.seconds - (time.monotonic() - start)
    result["tests"] = run_tests(device, min(120, left / 3), quick=arguments.quick)
    left = arguments.seconds - (time.monotonic() - start)
    result["training"] = train_digits(arguments.data, device, left, quick=arguments.quick)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({name: result[name] for name in ("tests", "training")}, indent=2))


# -- networks ----------------------------------------------------------------------------------------------------------


def build(kind: str, side: int, device: torch.device, *, quick: bool) -> nn.Module:
    torch.manual_seed(0)
    dim, depth, heads = (32, 2, 2) if quick else (768, 24, 16)
    if kind == "partition":
        half = depth // 2
        config = PartitionConfig(
            dim=dim, encoder_depth=half, decoder_depth=half, heads=heads, num_classes=CLASSES, prefix=True
        )
        return config.build(VOCABULARY, (side, side)).to(device)
    plain = TransformerConfig(dim=dim, depth=depth, heads=heads, num_classes=CLASSES, prefix=True)
    return plain.build(VOCABULARY, (side, side)).to(device)


class Captured:
    """A network as CUDA graphs, one for each shape of its inputs: a forward pass is one launch."""

    def __init__(self, model: nn.Module):
        self.model = model
        self._graphs: dict[torch.Size, tuple[Any, Tensor, Tensor, Tensor]] = {}

    def __call__(self, tokens: Tensor, condition: Tensor) -> Tensor:
        if tokens.shape not in self._graphs:
            self._graphs[tokens.shape] = self._capture(tokens.clone(), condition.clone())
        graph, held, classes, logits = self._graphs[tokens.shape]
        held.copy_(tokens)
        classes.copy_(condition)
        graph.replay()
        return logits

    def _capture(self, tokens: Tensor, condition: Tensor) -> tuple[Any, Tensor, Tensor, Tensor]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.model(tokens, condition)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self.model(tokens, condition)
        return graph, tokens, condition, logits


def compile_blocks(model: nn.Module) -> None:
    """Compile the blocks: all are alike, so that takes the time of one."""
    for block in model.blocks:
        block.compile(dynamic=False)


# -- parts -------------------------------------------------------------------------------------------------------------


def time_sampling(device: torch.device, side: int, quick: bool) -> Iterator[Row]:
    """Yield the seconds of a batch, in Halton order with guidance: plain, captured, compiled, both; then partition."""
    on_gpu = device.type == "cuda"
    plain = build("plain", side, device, quick=quick).bfloat16().eval()
    ways: list[tuple[str, Callable[..., Tensor]]] = [("plain", plain)]
    if on_gpu:
        ways.append(("captured", Captured(plain)))
        other = build("plain", side, device, quick=quick).bfloat16().eval()
        compile_blocks(other)
        ways += [("compiled", other), ("compiled and captured", Captured(other))]
    ways.append(("partition", build("partition", side, device, quick=quick).bfloat16().eval()))
    for batch in (1, 2) if quick else (1, 64):
        tokens = torch.full((batch, side * side), VOCABULARY, device=device)
        labels = torch.arange(batch, device=device) % CLASSES
        for way, model in ways:
            run = partial(sample, model, tokens, labels, side)
            if way in ("plain", "partition"):  # the other ways do the work of the plain one
                operations = count_operations(run)
            seconds = measure(run, device, 2 if quick else 5)
            yield {"part": "sampling", "way": way, "tokens": side * side, "batch": batch, "steps": STEPS,
                   "seconds": seconds, "images_per_second": batch / seconds, "operations": operations}  # fmt: skip


def sample(model: Callable[..., Tensor], tokens: Tensor, labels: Tensor, side: int) -> Tensor:
    predict = guided(model, labels, scale=LinearRamp(4.0))
    rand = seeded(0, len(tokens), device=tokens.device)
    with torch.inference_mode():
        *_, last = decode(
            predict, tokens, ratios(Arccos(), STEPS), mask_id=VOCABULARY, rand=rand, priority=Halton((side, side))
        )
    return last.tokens


def time_training(device: torch.device, side: int, quick: bool) -> Iterator[Row]:
    """Yield the seconds of a training step under bfloat16 autocast with AdamW."""
    batch = 2 if quick else TRAINING_BATCH
    rand = seeded(0, batch, device=device)
    tokens = torch.randint(VOCABULARY, (batch, side * side), device=device)
    labels = torch.arange(batch, device=device) % CLASSES
    for way in ("plain", "compiled", "partition") if device.type == "cuda" else ("plain", "partition"):
        model = build("partition" if way == "partition" else "plain", side, device, quick=quick)
        if way == "compiled":
            compile_blocks(model)
        objective = Partition() if way == "partition" else MaskGIT(schedule=Arccos())
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

        def step(model=model, objective=objective, optimizer=optimizer) -> None:
            with torch.autocast(device.type, torch.bfloat16):
                loss = objective(model, tokens, labels, mask_id=VOCABULARY, rand=rand)
            (loss.total / loss.count).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        if way != "compiled":
            operations = count_operations(step)
        seconds = measure(step, device, 2 if quick else 5)
        yield {"part": "training step", "way": way, "tokens": side * side, "batch": batch, "seconds": seconds,
               "images_per_second": batch / seconds, "operations": operations}  # fmt: skip


def count_operations(run: Callable[[], Any]) -> int:
    """Return the multiplications and additions of matrix products and attention in a run."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def measure(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Return the median seconds of a run, after two that warm up."""
    times = []
    for _ in range(2 + repeats):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def run_tests(device: torch.device, seconds: float, *, quick: bool) -> Row:
    """Run the tests whose names hold "cuda"."""
    if quick or device.type != "cuda":
        return {"left_out": "they need a GPU"}
    return {"command": "pytest -k cuda", **run_for([sys.executable, "-m", "pytest", "-q", "-k", "cuda"], seconds)}


def train_digits(data: str, device: torch.device, seconds: float, *, quick: bool) -> Row:
    """Train `mnist-gpu` until it ends or the time does, and return its last losses."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "unmask", "train", "mnist-gpu", "--data", data, "--out", str(run)]
        tiny = ["--model.dim", "32", "--model.depth", "1", "--training.steps", "2", "--training.batch-size", "8"]
        command += ["--device", str(device), *(tiny if quick else [])]
        ended = run_for(command, seconds)
        curve = run / "metrics.jsonl"
        lines = [json.loads(line) for line in curve.read_text().splitlines()] if curve.exists() else []
        ended["said"] = [line.replace(folder, "FOLDER") for line in ended.get("said", [])]
        return {"command": "unmask train mnist-gpu", **ended, "last": lines[-2:]}


def run_for(command: list[str], seconds: float) -> Row:
    """Run a command for at most some seconds, then ask it to stop; return how it ended."""
    start = time.monotonic()
    if seconds < 5:
        return {"left_out": "no time was left"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        said, _ = process.communicate(timeout=60)
    taken = time.monotonic() - start
    return {"seconds": taken, "code": process.returncode, "said": said.strip().splitlines()[-1:]}


if __name__ == "__main__":
    main()
