"""What a run records, and how: metric names and units, record files, phase timers, live progress."""
