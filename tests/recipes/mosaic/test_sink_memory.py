"""Memory of a vector sink does not follow the number of objects."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks._process import isolated

pytestmark = [pytest.mark.remote_sensing, pytest.mark.slow]


@pytest.mark.parametrize("suffix", ["gpkg", "parquet", "geojson"])
def test_ten_times_as_many_objects_need_no_more_memory(tmp_path: Path, suffix: str) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    tasks: list[dict[str, Any]] = [{"format": suffix, "folder": str(tmp_path), "count": n} for n in (20_000, 200_000)]
    few, many = (isolated("mosaic_writing", ["--task", json.dumps(task)], threads=1) for task in tasks)
    assert many["file_mb"] > 9 * few["file_mb"]
    assert many["extra_mb"] < few["extra_mb"] + 40
