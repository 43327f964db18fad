"""Pixels on a grid: grid, cube, stitching, engine, store, ledger. Knows no Prefect, and of models only their contract."""
