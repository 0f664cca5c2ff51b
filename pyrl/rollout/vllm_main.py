"""vLLM's OpenAI server, ready in half the time on CPU: `python -m pyrl.rollout.vllm_main ARGUMENTS_OF_VLLM_SERVE`.

vLLM's CPU platform starts the engine as a new interpreter, which imports again what the server has just imported: 13 of
31 seconds on two slow cores. Here the engine is forked from the server. A child would wait in vain for the OpenMP
threads of its parent; the server has none by then, as it has only read its arguments.
"""

from __future__ import annotations

import gc
import multiprocessing
import sys


def main() -> None:
    """Exit code: vLLM's, or that of its engine where the engine died: by then the server ends as if all were well."""
    gc.disable()  # a fifth of the time of importing 5,000 modules, none of which is garbage
    from vllm.entrypoints.launchers.api_server.entry import main as serve
    from vllm.platforms import current_platform
    from vllm.v1.engine import utils

    died = note_deaths(utils.CoreEngineProcManager)
    if current_platform.is_cpu():
        from vllm.v1.engine import core  # what the engine's process runs

        del core
        utils.get_mp_context = lambda: multiprocessing.get_context("fork")
    gc.freeze()  # nor will it be: left to be searched, it costs the engine 4 s until it is ready
    gc.enable()
    try:
        serve()
    finally:
        if died:
            sys.exit(died[0] if died[0] >= 0 else 128 - died[0])  # as a shell says it


def note_deaths(manager: type) -> list[int]:
    """The list to which `manager`, vLLM's keeper of engine processes, will add the exit code of one that ended without
    being asked to; minus the signal that ended it."""
    died: list[int] = []
    monitor = manager.monitor_engine_liveness

    def monitor_and_note(self: object) -> None:
        monitor(self)
        if self.failed_proc_name is not None:
            died.append(self.finished_procs()[self.failed_proc_name])

    manager.monitor_engine_liveness = monitor_and_note
    return died


if __name__ == "__main__":
    main()
