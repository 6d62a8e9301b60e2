"""Run one command and record its exit status, wall time, processor time and peak memory.

Linux counts the memory of the starting process towards the peak of the command, so the starter must be small: this file
runs alone in a bare interpreter.
"""

import json
import os
import sys
import time
from pathlib import Path


def main() -> None:
    record, *command = sys.argv[1:]
    start = time.perf_counter()
    child = os.posix_spawn(command[0], command, os.environ)
    _, status, usage = os.wait4(child, 0)
    seconds = time.perf_counter() - start
    exit_code = os.waitstatus_to_exitcode(status)
    measured = {
        "exit_code": exit_code,
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_rss_bytes": usage.ru_maxrss * 1024,
    }
    Path(record).write_text(json.dumps(measured))


if __name__ == "__main__":
    main()
