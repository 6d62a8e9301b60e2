"""eckart compared with common tools: paired runs on one machine, with the accuracy of both sides.

Both sides use two threads and no network. This is set before any numeric library is imported, and child processes
inherit it.
"""

import os

THREADS = 2

for _pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_pool] = str(THREADS)
os.environ["HF_HUB_OFFLINE"] = "1"
