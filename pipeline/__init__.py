"""Pixels on a grid: grid, cube, stitching, engine, store, ledger. Knows no Prefect, of models only the contract."""
