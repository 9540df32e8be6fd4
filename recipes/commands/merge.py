"""``samgraft merge``: one adapter file of several."""

from collections.abc import Sequence
from typing import Any

from samgraft.recipes.commands.parsing import plain_parser, say

HOWS = ("average", "exact", "svd")


def run(arguments: Sequence[str]) -> None:
    """Merge and write."""
    parser = plain_parser(
        "merge",
        "Make one adapter of several that have the same backbone, parts and options. What it costs on each domain has "
        "to be measured (samgraft validate); docs/continual.md.",
    )
    parser.add_argument("adapters", nargs="+", metavar="FILE", help="two or more adapter files")
    parser.add_argument("-o", "--output", required=True, help="file to write")
    parser.add_argument("--weights", nargs="+", type=float, default=None, metavar="W", help="one for each; even")
    parser.add_argument(
        "--how",
        default="average",
        choices=HOWS,
        help="average of tensors; exact: sum of changes, the ranks of LoRA are stacked; svd: the same, cut to --rank",
    )
    parser.add_argument("--rank", type=int, default=None, metavar="R", help="svd: rank; the largest of the adapters'")
    parser.add_argument("--like", default=None, metavar="FILE", help="whose classes and inputs count where they differ")
    parser.add_argument("--backbone", default=None, help="name, folder or file; by default the adapters'")
    values = parser.parse_args(list(arguments))

    from samgraft.recipes.continual.merging import merge_adapters

    options: dict[str, Any] = {name: getattr(values, name) for name in ("weights", "how", "rank", "like", "backbone")}
    report = merge_adapters(values.adapters, values.output, **options)
    say(report.text())
    say(f"wrote {report.adapter}")
