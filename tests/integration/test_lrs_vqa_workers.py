"""Token pruning on Dask workers: two keep the same tokens, and map the same relevance, as one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
from fakes import ArraySource
from running import job_of

from tilewright.kernels.vlm.lrs_vqa import relevance, tile_answers
from tilewright.kernels.vlm.tiny import tiny_checkpoint
from tilewright.pipeline.run import Request, execute
from tilewright.pipeline.tiles import execute_records

pytestmark = pytest.mark.integration

QUESTION = "How many ships are there?"


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def ground() -> ArraySource:
    draw = np.random.default_rng(0)
    cells = draw.integers(0, 256, (3, 24, 23)).repeat(16, 1).repeat(16, 2)
    return ArraySource(cells[None].astype(np.float32), bands=("red", "green", "blue"))


@pytest.mark.slow
def test_two_workers_keep_the_tokens_that_one_keeps(client: Any, ground: ArraySource, tmp_path: Path) -> None:
    weights = tiny_checkpoint(tmp_path / "tiny", seed=5)
    kernel = tile_answers(weights, question=QUESTION, answer_tokens=3)
    job = job_of(kernel, ground, tile=256, shard=192)
    alone = execute_records(job, Request(tmp_path / "a", "answers"))
    shared = execute_records(job, Request(tmp_path / "b", "answers", cluster=client))
    assert shared.digest == alone.digest
    assert shared.work_factor == 1.0
    assert alone.shards > 1
    tables = [geopandas.read_parquet(next((tmp_path / name).glob("*.parquet"))) for name in "ab"]
    assert len(tables[0]) > 1
    assert tables[0].equals(tables[1])
    assert len(set(tables[0].trace)) > 1


def test_two_workers_map_the_relevance_that_one_maps(
    client: Any, ground: ArraySource, tmp_path: Path
) -> None:
    weights = tiny_checkpoint(tmp_path / "tiny", seed=5)
    job = job_of(relevance(weights, question=QUESTION), ground, tile=256, shard=192)
    alone = execute(job, Request(tmp_path / "a", "relevance"))
    shared = execute(job, Request(tmp_path / "b", "relevance", cluster=client))
    assert shared.digest == alone.digest
    assert alone.shards > 1
