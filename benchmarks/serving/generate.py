"""One order of load: `python -m benchmarks.serving.generate` reads an Order and writes a Log, both pickled.

benchmarks/serving/load.py starts it anew for each measurement, or several at once.
"""

import gc
import os
import pickle
import sys
from contextlib import suppress

from benchmarks.serving.generator import Generator, Order


def main() -> None:
    """From standard input to standard output."""
    if sys.platform == "linux":
        # Clients of other machines do not interrupt the server at each answer to have it read at once.
        with suppress(OSError):  # a sandbox may forbid it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    order: Order = pickle.load(sys.stdin.buffer)
    generator = Generator(order)
    gc.disable()  # nothing here makes cycles, and a collection would be a pause of ours
    pickle.dump(generator.run(), sys.stdout.buffer)


if __name__ == "__main__":
    main()
