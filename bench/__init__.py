"""eckart beside the tools people use today: paired runs on one machine, with the accuracy of both sides.

Both sides run on two threads and without network. The settings are made before any numeric library is imported,
and processes started from here inherit them.
"""

import os

THREADS = 2

for _pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_pool] = str(THREADS)
os.environ["HF_HUB_OFFLINE"] = "1"
