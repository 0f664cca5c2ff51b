import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrl.algorithms.order_statistics import kth_largest

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(finite | st.sampled_from([0.0, -0.0, 1.0, 1e-45, -1e-45]), min_size=1, max_size=60), st.data())
@settings(deadline=None)
def test_kth_largest_equals_sorting(values, data):
    ranks = data.draw(st.lists(st.integers(1, len(values)), min_size=1, max_size=4))
    ordered = np.sort(np.array(values, dtype=np.float32))[::-1]
    found = kth_largest(torch.tensor(values, dtype=torch.float32), ranks, group=None)
    assert [k.value for k in found] == [ordered[rank - 1] for rank in ranks]
    assert [k.above for k in found] == [int((ordered > ordered[rank - 1]).sum()) for rank in ranks]


def test_many_values_in_one_bin():
    """Values that share their first 22 bits are told apart by the last round."""
    values = 1.0 + torch.arange(1000, dtype=torch.float32) * 2.0**-23
    found = kth_largest(values[torch.randperm(1000)], [1, 500, 1000], group=None)
    assert [k.value for k in found] == [values[999].item(), values[500].item(), values[0].item()]


def test_bad_arguments():
    with pytest.raises(ValueError, match="wanted fp32"):
        kth_largest(torch.zeros(3, dtype=torch.float64), [1], group=None)
    with pytest.raises(ValueError, match="got 1 that are not"):
        kth_largest(torch.tensor([1.0, float("nan")]), [1], group=None)
    with pytest.raises(ValueError, match="wanted 1 to 3, got 4"):
        kth_largest(torch.zeros(3), [1, 4], group=None)
    with pytest.raises(ValueError, match="wanted 1 to 3, got 0"):
        kth_largest(torch.zeros(3), [0], group=None)
