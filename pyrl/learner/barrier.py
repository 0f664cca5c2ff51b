"""Waits of ranks for one another that last longer than a collective may, each with a name and a deadline of its own.

A collective that waits for a slow rank ends in torch's timeout and a message that names nobody. Where ranks wait for
work outside the learner (a rollout, servers that start), they meet here first, over the key-value store through which
the job was joined.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch.distributed as dist

LONGEST_PAUSE_SECONDS = 0.25
"""Between two looks; shorter at first, 2% of the time waited."""
GRACE_SECONDS = 30.0
"""Those that wait are more patient than those at work, whose own error says more."""


class RankWaitError(RuntimeError):
    """Ranks did not arrive in time, or the store through which they meet is gone."""


class RankBarrier:
    """Every rank calls `wait` equally often and in the same order."""

    def __init__(self, store: dist.Store | None, rank: int, world_size: int) -> None:
        """`store`: one that every rank can reach and that nobody else uses; None where the rank is alone."""
        self._store = store
        self._rank = rank
        self._world_size = world_size
        self._round = 0

    def wait(self, what: str, *, seconds: float, setting: str, check: Callable[[], None] | None = None) -> None:
        """Return once every rank is here.

        `what` says what is waited for; `setting` is the config field behind `seconds`, which is what the others have
        for it. `check` raises where waiting has become vain; it is asked at every look. Raises RankWaitError, which
        names the ranks that are missing.
        """
        if self._store is None:
            return
        self._round += 1
        started = time.monotonic()
        try:
            self._store.set(f"round/{self._rank}", str(self._round))
            here = self._store.add(f"here/{self._round}", 1)
            # Looks and sleeps, so that a signal is handled at once; a blocking wait would hold it back.
            while here < self._world_size:
                if check is not None:
                    check()
                waited = time.monotonic() - started
                if waited > seconds + GRACE_SECONDS:
                    late = [str(rank) for rank in range(self._world_size) if not self._arrived(rank)]
                    raise RankWaitError(
                        f"rank {self._rank} waited {waited:.0f} s ({setting}) for {what}: rank {', '.join(late)} did "
                        f"not come. If it was at work and not stuck, raise {setting}"
                    )
                time.sleep(min(LONGEST_PAUSE_SECONDS, 0.001 + 0.02 * waited))
                here = self._store.add(f"here/{self._round}", 0)
        except dist.DistError as error:
            raise RankWaitError(f"rank {self._rank} waited for {what}, and the job's store is gone: {error}") from error

    def _arrived(self, rank: int) -> bool:
        key = f"round/{rank}"
        return self._store.check([key]) and int(self._store.get(key)) >= self._round
