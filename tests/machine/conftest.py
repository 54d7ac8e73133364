"""What Triton interprets cannot be compiled."""

import os

collect_ignore = []
if os.environ.get("TRITON_INTERPRET") == "1":
    collect_ignore = ["test_kernels.py", "test_sanitizers.py"]
