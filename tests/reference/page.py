"""One page: what the docstrings say, the figure, how to use it, its options, what it costs, what was measured."""

import textwrap
from collections.abc import Sequence
from typing import Any

from samgraft.recipes.config import to_yaml
from tests.benchmarks._table import markdown
from tests.reference.facts import TINY, Facts, Method, kind_of
from tests.reference.figure import alternative
from tests.reference.parse import inline, to_markdown

COMMAND = "python -m tests.reference"
LINE = 100
"""Width of code on a page."""
SLAB = 8
"""Slices that go together, in recipes of methods that look across slices."""


def page(method: Method, facts: Facts, measured: str) -> str:
    """The Markdown text of ``docs/methods/<method>.md``."""
    source = f"{method.config.__module__.removeprefix('samgraft.').replace('.', '/')}.py"
    sections = {title: to_markdown(text) for title, text in method.text.sections.items()}
    parts = [
        f"<!-- Written by {COMMAND} from {source}; change the docstrings there, not this page. -->",
        f"# {method.name}",
        inline(method.text.summary),
        to_markdown(method.text.body),
        "## Source\n\n" + sections.pop("Source", f"None is named in `{source}`."),
        "## Deviations\n\n" + sections.pop("Deviations", f"None are named in `{source}`."),
        *(f"## {title}\n\n{text}" for title, text in sections.items()),
        "## Where it attaches\n\n" + _where(method, facts),
        "## How to use it\n\n" + _usage(method, facts),
        "## Options\n\n" + _options(method),
        "## What trains and what it costs\n\n" + _costs(method, facts),
        "## Measured\n\n" + measured,
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def recipe(method: Method) -> str:
    """YAML of a recipe with every option of the method at its default; ``num_classes`` comes from the data."""
    options = _option_values(method)
    data = {"data": {"slab": SLAB}} if getattr(method.config, "volumetric", False) else {}
    if method.role == "graft":
        return to_yaml({"task": {"grafts": {method.name: options}}, **data})
    options.pop("num_classes", None)
    kind = {"kind": "instance"} if kind_of(method) == "instance" else {}
    return to_yaml({"task": {**kind, "grafts": {}, "head": method.name, "head_options": options}, **data})


def python(method: Method) -> str:
    """Python that attaches the method to graft-tiny with its own options at their defaults."""
    name = method.config.__name__
    arguments = [f"{option.name}={option.default}" for option in method.options if option.own]
    call = f"{name}({', '.join(arguments)})"
    keyword = "" if method.role == "graft" else f"{method.role}="
    line = f'grafted = attach(load_backbone("{TINY}"), {keyword}{call})'
    if len(line) > LINE:
        inner = ", ".join(arguments)
        wrapped = textwrap.wrap(inner, LINE - 4, break_long_words=False, break_on_hyphens=False)
        config = f"config = {name}(\n" + "".join(f"    {text}\n" for text in wrapped) + ")\n"
        line = config + f'grafted = attach(load_backbone("{TINY}"), {keyword}config)'
    package = method.config.__module__.rpartition(".")[0]  # which exports it
    imports = f"from samgraft import attach, load_backbone\nfrom {package} import {name}"
    return f"{imports}\n\n{line}\nprint(grafted.trainable_table())\n"


def _option_values(method: Method) -> dict[str, Any]:
    values: dict[str, Any] = method.config().to_dict()
    return {option.name: values[option.name] for option in method.options}


def _where(method: Method, facts: Facts) -> str:
    attachment = facts.attachment
    text = [f"![{alternative(attachment)}](figures/{method.page}.svg)", f"With the default options: {facts.points}."]
    if len(attachment.blocks) == attachment.num_blocks:
        text.append(f"On {TINY} that is in all {attachment.num_blocks} blocks.")
    elif attachment.blocks:
        text.append(f"On {TINY} that is in blocks {_series(attachment.blocks)} of {attachment.num_blocks}.")
    if facts.taps:
        text.append(f"On {TINY} it also reads what blocks {_series(facts.taps)} give.")
    if attachment.other:
        text.append("It also changes " + ", ".join(f"`{path}`" for path in attachment.other) + ".")
    return text[0] + "\n\n" + " ".join(text[1:])


def _usage(method: Method, facts: Facts) -> str:
    if facts.recipe_refusal:
        written = f"A recipe cannot name it alone: {inline(facts.recipe_refusal)}."
    else:
        name = f"my_{method.name}.yaml"
        written = (
            f"In a recipe, `samgraft fit --config {name} --data PATH` (or under `task:` of one of `recipes/configs`); "
            f"every option may be left out:\n\n```yaml\n{recipe(method)}```"
        )
    return f"{written}\n\nIn Python:\n\n```python\n{python(method)}```"


def _options(method: Method) -> str:
    lead = (
        f"`{method.config.__name__}`: {inline(' '.join((method.config.__doc__ or '').split(chr(10) * 2)[0].split()))}"
    )
    if not method.options:
        return f"{lead}\n\nIt has no options."
    rows = [
        {
            "option": f"`{option.name}`",
            "type": f"`{_cell(option.type)}`",
            "default": f"`{_cell(option.default)}`",
            "meaning": _cell(inline(option.meaning)) or "-",
        }
        for option in method.options
    ]
    return f"{lead}\n\n{markdown(rows)}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _costs(method: Method, facts: Facts) -> str:
    rows = [
        {"backbone": c.backbone, "trainable parameters": c.trained, "of the backbone's": share(c.trained, c.total)}
        for c in facts.counts
    ]
    lines = [
        "Counted on the modules that the default options build, for SAM on the meta device:\n",
        markdown(rows),
        *(f"- Not built for {c.backbone}: {inline(c.refusal)}" for c in facts.counts if c.refusal),
    ]
    if not any(count.trained for count in facts.counts):
        return "\n".join([*lines, "- Nothing trains, and a file holds the options only."])
    lines.append(f"- Adapter file on {TINY}: {megabytes(facts.file_bytes)} MB, tensors in float32 and a JSON header.")
    if method.role == "graft":
        lines += [
            f"- Merged into the frozen weights: {_yes(facts.merge_refusal)}.",
            f"- `torch.compile`: {_yes(facts.compile_refusal)}.",
        ]
    return "\n".join([*lines, f"- Features of the encoder kept between epochs: {_cached(facts)}."])


def _yes(refusal: str) -> str:
    return f"no, {inline(refusal)}" if refusal else "yes"


def _cached(facts: Facts) -> str:
    if facts.frozen_encoder:
        return "yes, nothing that is attached changes them (`frozen_encoder()`)"
    if facts.late_blocks:
        late = (
            f'`blocks="last:1"` keeps what the first {facts.late_blocks} of {facts.attachment.num_blocks} blocks give'
        )
        return f"not with the default options; on {TINY} {late}"
    return "no"


def share(trained: int | None, total: int) -> str:
    """Percentage with three significant digits."""
    return "-" if trained is None else f"{100 * trained / total:.3g} %" if trained else "0 %"


def megabytes(size: int) -> str:
    """10^6 bytes with two significant digits: the header's length follows the version, and no page should."""
    return f"{float(f'{size / 1e6:.2g}'):g}"


def _series(numbers: Sequence[int]) -> str:
    *first, last = [str(number) for number in numbers]
    return f"{', '.join(first)} and {last}" if first else last
