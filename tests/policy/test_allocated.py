"""One cut for every request, by its bits, in either order; the link and the deadline change nothing."""

import pytest

from abkt.policy.bitrate.allocated import Allocated
from abkt.policy.view import GoodputSample, TransferView
from tests.policy.every import SLOPE, UNIFORM

VIEW = TransferView(1_000_000, 0.0, SLOPE, UNIFORM)


@pytest.mark.parametrize(
    ("bits", "order", "cut"), [(2.8, "slope", 3), (2.9, "slope", 4), (0.0, "slope", 0), (2.0, "uniform", 1), (3, "uniform", 2)]
)
def test_allocated_takes_the_coarsest_cut_with_at_least_its_bits(bits, order, cut):
    policy = Allocated(bits, order)
    first = policy.decide(0.0, VIEW)
    assert (first.mode, first.order, first.cut) == ("stream", order, cut)
    policy.observe(1.0, GoodputSample(1.0, 1.0))
    assert policy.decide(99.0, VIEW) == first


@pytest.mark.parametrize(("bits", "order"), [(-1, "slope"), (9, "slope"), (float("nan"), "slope"), (4, "best")])
def test_impossible_bits_or_orders_are_refused(bits, order):
    with pytest.raises(ValueError, match=r"bits is .* 0 to 8|order is 'best'; it must be slope or uniform"):
        Allocated(bits, order)
