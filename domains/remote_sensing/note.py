"""The note on its making that every result carries: JSON, and the names under which formats keep it."""

import json
from collections.abc import Mapping

TAG = "SAMGRAFT"
"""GeoTIFF tag; ``SAMGRAFT_<NAME>`` are single values."""
KEY = "samgraft"
"""Name in vector files."""


def canonical_json(values: Mapping[str, object]) -> str:
    """One line of JSON, the same for equal values."""
    return json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
