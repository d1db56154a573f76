"""One thread per test process: the tests share a few cores, and small tensors gain nothing from more."""

import torch

torch.set_num_threads(1)
