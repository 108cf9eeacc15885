"""One order of load: `python -m benchmarks.serving.generate` reads an Order and writes a Log, both pickled.

benchmarks/serving/load.py starts it anew for each measurement, or several at once.
"""

import gc
import pickle
import sys

from benchmarks.serving.generator import Generator, Order


def main() -> None:
    """From standard input to standard output."""
    order: Order = pickle.load(sys.stdin.buffer)
    generator = Generator(order)
    gc.disable()  # nothing here makes cycles, and a collection would be a pause of ours
    pickle.dump(generator.run(), sys.stdout.buffer)


if __name__ == "__main__":
    main()
