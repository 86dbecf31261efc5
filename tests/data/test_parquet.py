"""The plan of the stage `ingest`, and Parquet files that it reads in another order than theirs."""

import types

import jax
import numpy as np
import pytest
import tiny
from etils import epath

from srum_jax.core import distributed
from srum_jax.data import images
from srum_jax.data.parquet import Parquet
from srum_jax.stages import ingest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def test_one_process_reads_the_source_for_the_plan(tmp_path, monkeypatch):
    cfg, tokenizer = tiny.load_config("unused"), object()
    plan = ingest.IngestPlan(((ingest.PlannedSample(0, 0, 0, 8, 8),),), ("one",), False, ())
    made = []
    monkeypatch.setattr(ingest, "make_plan", lambda *args: made.append(args) or plan)
    for process in (0, 1, 0, 1):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        monkeypatch.setattr(ingest, "barrier", lambda label: None)
        folder = epath.Path(tmp_path)
        assert ingest.planned(None, folder, "key", cfg, None, tokenizer) == plan
    assert len(made) == 1


def test_a_row_group_is_read_once_however_many_shards_it_feeds(tmp_path):
    """Pictures of three sizes in turn, two a row group, on one host and on two."""
    sizes = [(8 * (1 + i % 3), 8) for i in range(36)]
    rows = [
        {"image": images.encode_png(np.full((*size, 3), i, np.uint8)), "prompt": f"picture {i}"}
        for i, size in enumerate(sizes)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "0.parquet", row_group_size=2)
    entries = [ingest.PlannedSample(i, i, 0, *size) for i, size in enumerate(sizes)]
    order = ingest.in_shards(entries, 4)
    assert sorted(e.place for shard in order for e in shard) == list(range(36))
    assert all(len({e.height for e in shard}) == 1 and len(shard) == 4 for shard in order)
    for mine in (order, order[::2], order[1::2]):
        groups, most = [], 0
        source = Parquet(str(tmp_path / "0.parquet"))
        opened = source._open

        def watched(file, opened=opened, groups=groups):
            inner = opened(file)
            read = inner.read_row_group
            return types.SimpleNamespace(
                schema_arrow=inner.schema_arrow,
                read_row_group=lambda n, columns: groups.append(n) or read(n, columns=columns),
            )

        source._open = watched
        places = [entry.place for shard in mine for entry in shard]
        source.expect(places)
        for place in places:
            sample = source[place]
            assert sample.prompt == f"picture {place}"
            assert sample.image.shape == (*sizes[place], 3) and (sample.image == place).all()
            most = max(most, len(source._kept))
        assert len(groups) == len(set(groups)) and not source._kept
        assert most <= 3 * 4 + 2  # a shard of each size in the making, and a group


def test_one_process_reads_the_source_for_its_digest(tmp_path, monkeypatch):
    """And writes what it remembers: hosts that did so at once met each other's temporary file."""
    told = []
    source = types.SimpleNamespace(digest=lambda kept: told.append(kept) or "0123")
    monkeypatch.setattr(distributed, "from_first", lambda text, label: text or "0123")
    for process in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert ingest.digest(source, tmp_path / "kept.json") == "0123"
    assert told == [tmp_path / "kept.json"]
