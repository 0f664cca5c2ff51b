"""Several runs, one or more at a time: a worker has servers of its own, which serve its runs in turn."""
