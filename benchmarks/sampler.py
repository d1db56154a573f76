"""What the sampler itself costs: decoding with a `predict` that is free. One thread, CPU seconds, median of 7.

OMP_NUM_THREADS=1 python benchmarks/sampler.py
"""

import statistics
import time

import torch

from unmask import Confidence, Cosine, Entropy, Halton, Margin, Random, decode, ratios, seeded
from unmask.runtime.provenance import describe_environment


def main() -> None:
    torch.set_num_threads(1)
    print(describe_environment(torch.device("cpu")))
    print("batch  tokens  vocabulary  order       CPU s for 8 steps")
    for batch, length, vocab_size in ((256, 49, 16), (256, 16, 256), (1, 256, 1024), (8, 256, 1024)):
        logits = torch.randn(batch, length, vocab_size)
        canvas = torch.full((batch, length), vocab_size)
        for order in (Confidence(), Halton((length,)), Margin(), Entropy(), Random()):
            times = []
            for _ in range(8):
                start = time.process_time()
                for _ in decode(
                    lambda tokens, t, logits=logits: logits,
                    canvas,
                    ratios(Cosine(), 8),
                    mask_id=vocab_size,
                    rand=seeded(0, batch),
                    priority=order,
                ):
                    pass
                times.append(time.process_time() - start)
            median = statistics.median(times[1:])
            print(f"{batch:5d}  {length:6d}  {vocab_size:10d}  {type(order).__name__:10s}  {median:.4f}")


if __name__ == "__main__":
    main()
