"""docs/methods/README.md: every method in a table, and which one to take as far as that was measured."""

from collections.abc import Mapping, Sequence

from tests.benchmarks._table import markdown
from tests.reference.facts import ROLES, SIZES, Facts, Method
from tests.reference.page import COMMAND
from tests.reference.parse import arxiv_links, inline

HEADINGS = {
    "graft": "Grafts: parts inside the frozen network",
    "prompter": "Prompters: they write prompts in the place of a person",
    "decoder": "Decoders: they turn features into class maps",
}
"""Role -> heading."""
SMALLEST = next(iter(SIZES))


def index(found: Sequence[tuple[Method, Facts]], which: str) -> str:
    """The Markdown text.

    Args:
        found: Every method with what was counted.
        which: The text under "Which one should I take".
    """
    parts = [
        f"<!-- Written by {COMMAND}; change the docstrings of the methods, not this page. -->",
        "# Methods",
        "Everything that can be attached to a frozen backbone, by the name that recipes use. Insertion points (I0 to "
        "I10) are explained in [the architecture](../architecture.md) and drawn on every page. Parameters are those of "
        f"the default options on {SMALLEST}.",
        f"## Which one should I take\n\n{which}",
    ]
    for role in ROLES:
        rows = [_row(method, facts) for method, facts in found if method.role == role]
        parts.append(f"## {HEADINGS[role]}\n\n{markdown(rows)}".rstrip("\n"))
    parts.append("Two figures about these methods are often quoted wrongly: [which, and why](../misquoted_figures.md).")
    return "\n\n".join(parts) + "\n"


def _row(method: Method, facts: Facts) -> Mapping[str, str]:
    count = next(count for count in facts.counts if count.backbone == SMALLEST)
    row = {
        "name": f"[{method.name}]({method.page}.md)",
        "what it is": inline(method.text.summary).replace("|", "\\|"),
        "where it attaches": facts.points,
        "parameters": "-" if count.trained is None else f"{count.trained:,}",
    }
    if method.role == "graft":
        row["mergeable"] = "no" if facts.merge_refusal else "yes"
    return row | {"source": ", ".join(arxiv_links(method.text.sections.get("Source", ""))) or "-"}
