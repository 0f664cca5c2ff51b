"""The vLLM servers of an evaluation: started here, or given."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch

from pyrl.config import ConfigError
from pyrl.evaluation.config import EvaluationConfig
from pyrl.rollout.control import EngineCallError, EngineControl
from pyrl.rollout.server import ServerPool
from pyrl.rollout.vllm_adapter import ServerSettings

log = logging.getLogger("pyrl")


def check_positions(config: EvaluationConfig, tokens: int) -> None:
    """Raises ConfigError where the model has fewer positions than prompts with responses of up to `tokens`."""
    settings = json.loads((config.model / "config.json").read_text(encoding="utf-8"))
    positions = settings.get("max_position_embeddings")
    if positions is not None and not settings.get("rope_scaling") and positions < tokens:
        most = max(b.max_tokens for b in config.chosen.values())
        raise ConfigError(
            f"model {config.model} has {positions} positions, the longest prompt with its max_tokens needs {tokens}: "
            f"lower benchmarks.NAME.max_tokens to {most - (tokens - positions)}"
        )


def start_servers(config: EvaluationConfig, folder: Path, tokens: int) -> ServerPool:
    """Launch servers for prompts with responses of up to `tokens`; their logs go to `folder`.

    Raises ConfigError for a `server.max_model_len` below that.
    """
    server = config.server
    if server.max_model_len is not None and server.max_model_len < tokens:
        raise ConfigError(
            f"server.max_model_len {server.max_model_len}: the longest prompt with its max_tokens needs {tokens}; "
            "raise it, or lower benchmarks.NAME.max_tokens"
        )
    settings = ServerSettings(
        model=config.model,
        dtype=server.dtype,
        max_model_len=server.max_model_len or tokens,
        transport=None,
        device="cuda" if torch.cuda.is_available() else "cpu",
        tp=server.tp,
        max_num_seqs=server.max_num_seqs,
        kv_cache_gib=server.kv_cache_gib,
        gpu_memory_utilization=server.gpu_memory_utilization,
        threads=server.threads,
        extra_args=server.extra_server_args,
    )
    return ServerPool.from_settings(
        settings, folder, count=server.count, startup_timeout=server.startup_timeout_seconds
    )


def check_given(config: EvaluationConfig, tokens: int) -> None:
    """Ask each of `server.urls` what it serves. A model of another name is warned of: its folder may have another path
    on the server's machine. Raises ConfigError for a server that gives no answer or whose context is below `tokens`."""
    for url in config.server.urls:
        try:
            with EngineControl(url) as control:
                name, context = control.served_model()
        except EngineCallError as error:
            raise ConfigError(f"server.urls: {error}") from error
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"server.urls: {url} does not say what it serves as vLLM does: {error!r}") from error
        if context < tokens:
            raise ConfigError(
                f"server.urls: {url} was started with max_model_len {context}, the longest prompt with its max_tokens "
                f"needs {tokens}: restart it with more, or lower benchmarks.NAME.max_tokens"
            )
        if Path(name).name != config.model.name:
            log.warning("%s serves %s, the scores will name %s: is it the same model?", url, name, config.model)
