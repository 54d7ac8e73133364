"""A GPU of PTX: Triton's compiled kernels run on a CPU, every access watched.

with emulated() as driver:
    kernel[(4,)](x, y, n, BLOCK=128)  # tensors on the CPU
driver.findings
"""

from .cuda import LaunchError
from .driver import Driver, Record, emulated
from .shadow import Tracker
from .simt import Finding, Memory, Options

__all__ = ["Driver", "Finding", "LaunchError", "Memory", "Options", "Record", "Tracker", "emulated"]
