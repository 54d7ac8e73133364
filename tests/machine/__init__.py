"""A GPU of PTX: Triton's compiled kernels run on a CPU, every access watched.

with emulated() as driver:
    kernel[(4,)](x, y, n, BLOCK=128)  # tensors on the CPU
driver.findings
"""

from .driver import Driver, LaunchError, Record, emulated
from .shadow import Tracker
from .simt import Finding, Memory

__all__ = ["Driver", "Finding", "LaunchError", "Memory", "Record", "Tracker", "emulated"]
