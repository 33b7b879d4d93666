"""The histogram of call latencies."""

from __future__ import annotations

import math
import random
import struct

import pytest

from tablebay.client.errors import BadRequest
from tablebay.client.latency import BUCKETS, FIRST_S, GROWTH, LatencyHistogram


def test_a_bucket_holds_what_its_formula_says() -> None:
    """Bucket i takes 1e-6 * 1.1**i <= seconds < 1e-6 * 1.1**(i + 1), but for rounding at the very border."""
    for bucket in range(BUCKETS):
        assert LatencyHistogram.bucket(FIRST_S * GROWTH ** (bucket + 0.5)) == bucket
    assert LatencyHistogram.bucket(0.0) == 0
    assert LatencyHistogram.bucket(-1.0) == 0
    assert LatencyHistogram.bucket(1e9) == BUCKETS - 1


def test_quantiles_are_right_to_within_a_bucket() -> None:
    """Against sorted values, to 10 %."""
    for seed in range(20):
        draw = random.Random(seed)
        values = sorted(draw.lognormvariate(-6.0, 1.0) for _ in range(draw.randint(1, 500)))
        histogram = LatencyHistogram()
        for value in values:
            histogram.record(value)
        for q in (0.0, 0.5, 0.99, 1.0):
            exact = values[max(1, math.ceil(q * len(values))) - 1]
            assert exact / GROWTH <= histogram.quantile(q) <= exact * GROWTH, f"seed {seed}, quantile {q}"


def test_p50_and_p99_are_in_milliseconds() -> None:
    """99 calls of 2 ms and one of 3 s."""
    histogram = LatencyHistogram()
    for _ in range(99):
        histogram.record(0.002)
    histogram.record(3.0)
    assert 0.0018 < histogram.quantile(0.5) < 0.0022
    assert 0.0018 < histogram.quantile(0.99) < 0.0022
    assert 2700.0 < 1000.0 * histogram.quantile(1.0) < 3300.0


def test_an_empty_histogram_has_no_quantile() -> None:
    """NaN, not 0, which would look like a fast pull."""
    assert math.isnan(LatencyHistogram().quantile(0.5))


def test_histograms_travel_and_add_up() -> None:
    """256 little-endian u32 there and back; merging adds counts."""
    one, other = LatencyHistogram(), LatencyHistogram()
    one.record(0.001)
    other.record(0.001)
    other.record(5.0)
    packed = other.pack()
    assert len(packed) == 1024
    assert struct.unpack("<256I", packed)[LatencyHistogram.bucket(5.0)] == 1
    one.merge(LatencyHistogram.unpack(packed))
    assert one.count == 3
    assert one.counts[LatencyHistogram.bucket(0.001)] == 2
    assert LatencyHistogram.unpack(b"").count == 0


def test_what_is_no_histogram_is_refused() -> None:
    """By its length, and a quantile by its range."""
    with pytest.raises(BadRequest, match="7 bytes, wanted 1024"):
        LatencyHistogram.unpack(b"1234567")
    with pytest.raises(BadRequest, match=r"quantile is 1\.5"):
        LatencyHistogram().quantile(1.5)
