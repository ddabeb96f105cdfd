"""One thread per process: the tests' tensors are tiny, and several processes share the cores."""

import os

import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
