"""Models on tensors. Knows no STAC, no dask, and no files but weights."""
