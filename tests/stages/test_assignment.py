"""Which servers a leader asks, on one node and on several, and which layouts are refused."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import pytest
import torch

from pyrl.config import ConfigError, RunConfig, parse_config
from pyrl.stages import assignment
from pyrl.stages.assignment import Nodes, check_head_dim, check_servers, check_shared_memory, own_share
from pyrl.weights.families import ModelShape

CPU = torch.device("cpu")


@dataclass
class Layout:
    """What `assignment` reads of `Parallel`."""

    world_size: int
    tp_size: int
    dp_size: int
    rank: int = 0
    device: torch.device = CPU


def config(deterministic: bool = True, **rollout: object) -> RunConfig:
    return parse_config(
        {"model": {"path": "m"}, "data": {"path": "d"}, "deterministic": deterministic, "rollout": rollout}
    )


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of rank 0, four ranks a node."""
    for name, value in {"LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "0", "GROUP_RANK": "0"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("servers", range(1, 9))
@pytest.mark.parametrize("leaders", range(1, 9))
def test_no_server_is_idle_and_none_is_shared_where_there_are_enough(servers: int, leaders: int) -> None:
    urls = [f"s{i}" for i in range(servers)]
    ranks = range(10, 10 + leaders)  # those of the second node, say
    shares = [own_share(urls, ranks, rank) for rank in ranks]
    asked = [url for share in shares for url in share]
    assert all(shares)
    if servers >= leaders:
        assert sorted(asked) == sorted(urls)  # each by one leader
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    else:
        counts = [asked.count(url) for url in urls]
        assert all(len(share) == 1 for share in shares) and max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("tp", "pp", "leaders"),
    [(1, 1, [[0, 1, 2, 3], [4, 5, 6, 7]]), (2, 1, [[0, 1], [2, 3]]), (4, 2, [[0], []]), (2, 2, [[0, 1], []]),
     (8, 1, [[0], []])],
)  # fmt: skip
def test_leaders_are_found_on_their_nodes(two_nodes: None, tp: int, pp: int, leaders: list[list[int]]) -> None:
    nodes = Nodes.of(Layout(8, tp, 8 // (tp * pp)))
    assert nodes.count == 2 and [nodes.leaders_on(node) for node in range(2)] == leaders


def test_uneven_nodes_are_refused(two_nodes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUP_RANK", "1")  # its first rank would be 4
    with pytest.raises(ConfigError, match=r"rank 3 .* 4 ranks on every node"):
        Nodes.of(Layout(8, 1, 8, rank=3))


def test_a_deterministic_run_needs_a_server_for_each_leader_of_each_node(two_nodes: None) -> None:
    all_data_parallel = Layout(8, 1, 8)
    check_servers(config(servers_per_node=4), all_data_parallel)
    with pytest.raises(ConfigError, match=r"4 data-parallel replicas share 3 servers .*servers_per_node on node 0"):
        check_servers(config(servers_per_node=3), all_data_parallel)
    check_servers(config(deterministic=False, servers_per_node=1), all_data_parallel)
    # With two pipeline stages both leaders are on the first node: 2 nodes x 1 server would not do.
    two_stages = Layout(8, 2, 2)
    check_servers(config(servers_per_node=2), two_stages)
    with pytest.raises(ConfigError, match="2 data-parallel replicas share 1 servers"):
        check_servers(config(servers_per_node=1), two_stages)


def test_given_servers_are_counted_once(two_nodes: None) -> None:
    urls = [f"http://h:{i}" for i in range(8)]
    check_servers(config(urls=urls), Layout(8, 1, 8))
    with pytest.raises(ConfigError, match=r"8 data-parallel replicas share 7 servers \(rollout.urls\)"):
        check_servers(config(urls=[*urls[:7], urls[0]]), Layout(8, 1, 8))


@pytest.mark.parametrize("transport", ["ipc", "nccl"])
def test_rank_zero_must_reach_every_server(two_nodes: None, transport: str) -> None:
    layout = Layout(8, 4, 2)
    with pytest.raises(ConfigError, match=f"transport {transport} with 2 nodes.*rollout.urls"):
        check_servers(config(deterministic=False, transport=transport), layout)
    check_servers(config(deterministic=False, transport=transport, urls=["http://h:1"]), layout)
    check_servers(config(deterministic=False, transport="shm"), layout)


@pytest.mark.parametrize("transport", ["ipc", "nccl"])
def test_one_node_may_use_any_transport(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK"):
        monkeypatch.delenv(name, raising=False)
    check_servers(config(deterministic=False, transport=transport), Layout(1, 1, 1))


TIED = ModelShape("LlamaForCausalLM", num_layers=1, hidden_size=8, num_heads=2, num_kv_heads=1, head_dim=4, ffn_size=6,
                  vocab_size=50, norm_eps=1e-6, qkv_bias=False, tied_embeddings=True)  # fmt: skip
PARAMETERS = 50 * 8 + (8 * 8 + 2 * 4 * 8 + 8 * 8) + 3 * 6 * 8 + 3 * 8


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_shared_memory_must_hold_the_weights_twice(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, size: int
) -> None:
    free = [2 * size * PARAMETERS]
    monkeypatch.setattr(assignment, "free_bytes", lambda: free[0])
    check_shared_memory(config(), Layout(1, 1, 1), TIED, dtype)
    free[0] -= 1
    with pytest.raises(ConfigError, match=r"/dev/shm on .* has 0 MiB free, .* model.path m: enlarge it"):
        check_shared_memory(config(), Layout(1, 1, 1), TIED, dtype)
    check_shared_memory(config(transport="nccl"), Layout(1, 1, 1), TIED, dtype)  # travels elsewhere
    free[0] = None
    with pytest.raises(ConfigError, match=r"/dev/shm on .* is not there .*rollout.transport shm"):
        check_shared_memory(config(), Layout(1, 1, 1), TIED, dtype)


def test_only_ranks_that_send_need_shared_memory(two_nodes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment, "free_bytes", lambda: 0)

    def refused(urls: list[str], pp: int = 1, **environment: int) -> bool:
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        node, local = (int(os.environ[name]) for name in ("GROUP_RANK", "LOCAL_RANK"))
        try:
            check_shared_memory(config(urls=urls), Layout(8, 1, 8 // pp, rank=4 * node + local), TIED, torch.float32)
        except ConfigError:
            return True
        return False

    assert refused([]) and refused(["http://h:1"])
    assert not refused([], LOCAL_RANK=1) and not refused(["http://h:1"])
    assert refused([], LOCAL_RANK=0, GROUP_RANK=1) and not refused(["http://h:1"])
    assert not refused([], pp=2)  # no leader is on the second node


def test_a_head_dimension_that_the_servers_could_not_run_is_refused() -> None:
    layout = Layout(1, 1, 1)
    good, bad = replace(TIED, head_dim=64), replace(TIED, head_dim=24)
    check_head_dim(config(), layout, good)
    with pytest.raises(ConfigError, match=r"model.path m: .* head dimension, 24; it has for 32, 64"):
        check_head_dim(config(), layout, bad)
    check_head_dim(config(urls=["http://h:1"]), layout, bad)  # who knows what they run on
    check_head_dim(config(), Layout(1, 1, 1, device=torch.device("cuda")), bad)


def test_a_head_dimension_that_vllm_ignores_is_refused() -> None:
    layout, urls = Layout(1, 1, 1, device=torch.device("cuda")), ["http://h:1"]
    qwen2 = replace(TIED, family="Qwen2ForCausalLM", head_dim=64)
    check_head_dim(config(), layout, replace(qwen2, hidden_size=128))
    check_head_dim(config(), layout, replace(qwen2, family="Qwen3ForCausalLM"))
    with pytest.raises(ConfigError, match=r"sets head_dim 64, but vLLM's Qwen2ForCausalLM ignores.* 8 by 2"):
        check_head_dim(config(urls=urls), layout, qwen2)
