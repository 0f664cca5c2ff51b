import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrl.config import ConfigError
from pyrl.data.cursor import PromptCursor
from pyrl.ops.counter import as_int64, derive_seed, mix

PINNED = [5, 2, 4, 6, 3, 0, 7, 1]


@given(st.integers(1, 30), st.integers(0, 2**31 - 1), st.lists(st.integers(0, 25), max_size=10))
@settings(deadline=None)
def test_every_epoch_is_a_permutation_however_it_is_read(num_prompts, seed, counts):
    whole = PromptCursor(num_prompts, seed=seed, shuffle=True).next(num_prompts * 4)
    for start in range(0, len(whole), num_prompts):
        assert sorted(whole[start : start + num_prompts]) == list(range(num_prompts))
    pieces = PromptCursor(num_prompts, seed=seed, shuffle=True)
    read = [i for count in counts for i in pieces.next(count)]
    shared = min(len(read), len(whole))
    assert read[:shared] == whole[:shared]
    assert pieces.consumed == sum(counts)


@given(st.integers(1, 20), st.integers(0, 70), st.integers(0, 30))
@settings(deadline=None)
def test_a_saved_cursor_goes_on_where_it_stood(num_prompts, consumed, count):
    cursor = PromptCursor(num_prompts, seed=5, shuffle=True)
    cursor.next(consumed)
    resumed = PromptCursor(num_prompts, seed=5, shuffle=True)
    resumed.load_state_dict(json.loads(json.dumps(cursor.state_dict())))
    assert resumed.next(count) == cursor.next(count)


def test_seeds_and_epochs_differ_and_no_shuffle_keeps_the_order():
    cursor = PromptCursor(50, seed=0, shuffle=True)
    first, second = cursor.next(50), cursor.next(50)
    assert first != second and first != PromptCursor(50, seed=1, shuffle=True).next(50)
    assert PromptCursor(3, seed=0, shuffle=False).next(7) == [0, 1, 2, 0, 1, 2, 0]


def test_an_epoch_is_sorted_by_the_counter_based_mix():
    cursor = PromptCursor(30, seed=11, shuffle=True)
    for epoch in range(3):
        seed = derive_seed(11, step=epoch, mini_batch=0, purpose="prompt_order")
        assert cursor.next(30) == sorted(range(30), key=lambda index: as_int64(mix(seed, index)))


def test_the_order_is_pinned():
    """A change of the order would silently break the resume of older runs: this is the recorded one."""
    assert PromptCursor(8, seed=7, shuffle=True).next(8) == PINNED


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"num_prompts": 9}, r"number of prompts in data\.path changed: num_prompts is 9 now and was 8 when"),
        ({"seed": 4}, "seed changed: seed is 4 now and was 3 when"),
        ({"shuffle": False}, r"data\.shuffle changed: shuffle is False now and was True when"),
        ({"fingerprint": "b2"}, r"order of the prompts in data\.path, .* changed: prompts_sha256 is b2 now and was a1"),
    ],
)
def test_a_cursor_of_other_data_is_refused(other, message):
    arguments = {"num_prompts": 8, "seed": 3, "shuffle": True, "fingerprint": "a1"}
    state = json.loads(json.dumps(PromptCursor(**arguments).state_dict()))
    PromptCursor(**arguments).load_state_dict(state)
    with pytest.raises(ConfigError, match=rf"(?s){message}.*restore what it was, or start anew"):
        PromptCursor(**arguments | other).load_state_dict(state)
