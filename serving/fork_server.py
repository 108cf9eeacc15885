"""Imported last into the fork server, for its effect: what is there by then stays shared with all that it forks.

Else the first garbage collection in a worker writes into the header of every object, and so copies their memory: some
60 MB for each worker.
"""

import gc

gc.collect()
gc.freeze()
