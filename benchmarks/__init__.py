"""Every figure that the project states, and the commands that make them: docs/benchmarks.md."""

import os

# MKL would choose its number of threads for an FFT by how busy the machine has been lately, so that
# the order of the providers would matter. It reads this when torch is imported.
os.environ.setdefault("MKL_DYNAMIC", "FALSE")
# Without a GPU, PyTorch's profiler says at every start that it has found none.
os.environ.setdefault("KINETO_LOG_LEVEL", "5")
