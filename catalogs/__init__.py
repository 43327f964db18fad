"""STAC: where pixels come from, and where results are announced. Knows no dask and no torch."""
