"""vLLM's OpenAI server, ready in half the time on CPU: `python -m pyrl.rollout.vllm_main ARGUMENTS_OF_VLLM_SERVE`.

vLLM's CPU platform starts the engine as a new interpreter, which imports again what the server has just imported: 13 of
31 seconds on two slow cores. Here the engine is forked from the server. A child would wait in vain for the OpenMP
threads of its parent; the server has none by then, as it has only read its arguments.
"""

from __future__ import annotations

import gc
import multiprocessing


def main() -> None:
    gc.disable()  # a fifth of the time of importing 5,000 modules, none of which is garbage
    from vllm.entrypoints.launchers.api_server.entry import main as serve
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from vllm.v1.engine import core, utils  # core: what the engine's process runs

        del core
        utils.get_mp_context = lambda: multiprocessing.get_context("fork")
    gc.freeze()  # nor will it be: left to be searched, it costs the engine 4 s until it is ready
    gc.enable()
    serve()


if __name__ == "__main__":
    main()
