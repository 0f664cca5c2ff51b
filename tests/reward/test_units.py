"""What stands around a number."""

import time

import pytest

from pyrl.reward.units import split_unit


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        (r"34\text{ cm}^2", "34", "cm^2"), (r"34\text{ square centimeters}", "34", "cm^2"),
        (r"34\,\mathrm{cm}", "34", "cm"),
        (r"\$34", "34", "dollar"), (r"34\text{ dollars}", "34", "dollar"), (r"12.5\%", "12.5", "%"),
        (r"12\text{ percent}", "12", "%"), (r"90^{\circ}", "90", "degree"), (r"90^\circ\text{C}", "90", "degree C"),
        (r"60\text{ miles per hour}", "60", "mile/hour"), (r"60\text{ mph}", "60", "mile/hour"), ("34 cm", "34", "cm"),
        ("4210_{5}", "4210", "base 5"), (r"3\text{ million}", r"3\cdot 10^{6}", None),
        (r"2\pi\text{ inches}", r"2\pi", "inch"),
        ("2k", "2k", None), (r"\text{Evelyn}", r"\text{Evelyn}", None), ("x_5", "x_5", None),
        (r"3\min", r"3\min", None),
        (r"34\text{ or more}", r"34\text{ or more}", None), (r"\sin 30^\circ", r"\sin 30^\circ", None), ("", "", None),
        (r"34\text{ squared}", r"34\text{ squared}", None),
    ],
)  # fmt: skip
def test_value_and_unit(text, value, unit):
    assert split_unit(text) == (value, unit)


def test_a_long_text_takes_no_long_time():
    start = time.process_time()
    split_unit("3 a" * 100_000)
    split_unit(r"\text{ " * 50_000)
    assert time.process_time() - start < 1.0
