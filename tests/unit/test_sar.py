"""Decibel and power: inverse of each other, and only where the units say so."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from tilewright.errors import InputError
from tilewright.pipeline.sar import from_db, to_db


def test_known_values_and_round_trip() -> None:
    power = np.array([1.0, 10.0, 0.01, 0.0, -1.0, np.nan], "float32")
    decibel = to_db(power)
    assert decibel.dtype == np.float32
    np.testing.assert_allclose(decibel[:3], [0, 10, -20], atol=1e-5)
    assert np.isnan(decibel[3:]).all()
    np.testing.assert_allclose(from_db(decibel)[:3], power[:3], rtol=1e-6)


def test_units_are_checked_and_changed() -> None:
    power = xr.DataArray([0.1, 0.0], dims="x", attrs={"units": "gamma0 power", "long_name": "VV"})
    decibel = to_db(power)
    assert decibel.attrs == {"units": "gamma0 dB", "long_name": "VV"}
    assert power.attrs["units"] == "gamma0 power"
    assert from_db(decibel).attrs["units"] == "gamma0 power"
    with pytest.raises(InputError, match="units are 'gamma0 dB'"):
        to_db(decibel)
    with pytest.raises(InputError, match="units are 'gamma0 power'"):
        from_db(power)
    with pytest.raises(InputError, match="units are None"):
        to_db(xr.DataArray([1.0]))
    lazy = to_db(power.chunk({"x": 1}))
    assert lazy.chunks is not None
    np.testing.assert_array_equal(lazy.compute(), decibel)
