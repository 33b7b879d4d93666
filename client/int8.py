"""Rows as int8 with a scale each, for reading: a quarter of the bytes of float32."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST = 127


def to_int8(rows: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 of rows' shape, and scales, float32, of that shape without its last dimension.

    rows: float32. The scale is the row's largest size over 127, so that a weight is its int8 times the scale to within
    half a scale; a row of zeros has a scale of 0. Rounded to the nearest, ties to even. A row with NaN or infinity has
    NaN for its scale, and zeros.
    """
    largest = np.abs(rows).max(axis=-1, initial=0.0)
    # Of the largest numbers' scale no product may overflow; of the smallest no quotient.
    scales = (largest.astype(np.float64) / LARGEST).astype(np.float32)
    scales[~np.isfinite(largest)] = np.nan
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = rows.astype(np.float64) / scales.astype(np.float64)[..., None]
    shares[~np.isfinite(shares)] = 0.0
    return np.clip(np.rint(shares), -LARGEST, LARGEST).astype(np.int8), scales
