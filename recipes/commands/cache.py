"""``samgraft cache``: how large the store of features is, and how to empty it."""

import datetime
from collections.abc import Sequence
from pathlib import Path

from samgraft.recipes.cache.store import DEFAULT_LIMIT_GB, GB, FeatureStore
from samgraft.recipes.commands.parsing import plain_parser, say


def run(arguments: Sequence[str]) -> None:
    """Count or remove entries."""
    parser = plain_parser("cache", "Features of frozen encoders that training keeps on disk.")
    parser.add_argument("action", choices=("info", "prune"), help="count entries, or remove the least recently used")
    parser.add_argument("--folder", type=Path, default=None, help="default: $SAMGRAFT_CACHE, else the user's cache")
    parser.add_argument("--gb", type=float, default=None, help="prune: keep at most this many GB; 0 removes everything")
    values = parser.parse_args(list(arguments))
    store = FeatureStore(values.folder)
    if values.action == "prune":
        most = DEFAULT_LIMIT_GB if values.gb is None else values.gb
        removed, freed = store.prune(round(most * GB))
        say(f"removed {removed} entries, {freed / GB:.3f} GB")
    about = store.info()
    used = "-" if about.oldest is None else f"{datetime.datetime.fromtimestamp(about.oldest):%Y-%m-%d %H:%M}"
    for name, value in (
        ("folder", about.folder),
        ("entries", about.entries),
        ("size", f"{about.size / GB:.3f} GB"),
        ("oldest use", used),
    ):
        say(f"{name:<12} {value}")
