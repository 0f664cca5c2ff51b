"""Rollout: vLLM servers that are started and watched (`server`), asked for completions (`client`), and the group filter
of dynamic sampling (`filters`). What depends on vLLM's version is in `vllm_adapter`."""
