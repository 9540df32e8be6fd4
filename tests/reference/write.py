"""From the registries to the files of docs/methods: all as texts first, so that a test can compare without writing.

The generator is part of the tests, not of the package: it reads source files and writes into ``docs``, which an
installed wheel does not have, and it shares the meta backbones and the tables of the benchmarks with other tests.
"""

from collections.abc import Mapping
from pathlib import Path

from samgraft.recipes.report import write_text
from tests.reference.facts import Bench, methods
from tests.reference.figure import figure
from tests.reference.index import index
from tests.reference.measured import ranking, section
from tests.reference.page import page

DOCS = Path(__file__).resolve().parents[2] / "docs"
FOLDER = DOCS / "methods"


def documents(benchmarks: Path = DOCS / "benchmarks") -> dict[str, str]:
    """Path below ``docs/methods`` -> text of every page, figure and the index.

    Args:
        benchmarks: Folder of grafts.json and graft_costs.json, which may be missing.
    """
    bench = Bench()
    found = [(method, bench.facts(method)) for method in methods()]
    texts = {}
    for method, facts in found:
        measured = section(method.name, benchmarks)
        texts[f"{method.page}.md"] = page(method, facts, measured)
        texts[f"figures/{method.page}.svg"] = figure(method.name, facts.attachment)
    links = {method.name: f"{method.page}.md" for method, _ in reversed(found)}
    texts["README.md"] = index(found, ranking(benchmarks, links))
    return texts


def stray(texts: Mapping[str, str], folder: Path = FOLDER) -> list[Path]:
    """Files in ``folder`` that the generator would not write."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and str(p.relative_to(folder)) not in texts)


def outdated(texts: Mapping[str, str], folder: Path = FOLDER) -> list[str]:
    """Paths whose file is missing or says something else."""
    return [name for name, text in texts.items() if not (folder / name).exists() or (folder / name).read_text() != text]


def write(texts: Mapping[str, str], folder: Path = FOLDER) -> list[str]:
    """Write what is outdated, each file whole or not at all; the paths written."""
    changed = outdated(texts, folder)
    for name in changed:
        write_text(folder / name, texts[name])
    return changed
