"""What a method says about itself: docstrings of its module and configuration, and its options, read from the source.

parse_docstring(text) -> DocText(summary, body, sections)      to_markdown(text) -> the same text as Markdown
options(config class) -> one row per field, with the docstring that stands under it
"""

import ast
import dataclasses
import inspect
import re
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

TITLES = {
    "source": "Source",
    "sources": "Source",
    "reference": "Source",
    "references": "Source",
    "deviation": "Deviations",
    "deviations": "Deviations",
}
"""Headers that open the sections of a docstring -> title on the page."""
_HEADER = re.compile(r"^([A-Z][A-Za-z ]{2,30}):\s*(.*)$")
_CODE = re.compile(r"``(.+?)``|:[a-z]+:`~?([^`]+)`|(?<!`)`([^`]+)`(?!`)")
_ARXIV = re.compile(r"arXiv[: ](\d{4}\.\d{4,5})")
_ITEM = re.compile(r"^(?:[-*]|\d+[.)]) ")


@dataclass(frozen=True, kw_only=True)
class DocText:
    """A docstring in parts, as plain text."""

    summary: str = ""
    """The first paragraph in one line."""
    body: str = ""
    """What follows it."""
    sections: dict[str, str] = dataclasses.field(default_factory=dict)
    """Title -> dedented text."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One field of a configuration."""

    name: str
    type: str
    default: str
    meaning: str
    own: bool
    """Whether it belongs to the method, and not to all methods of its role (their base is in a module ``base``)."""


def parse_docstring(text: str | None) -> DocText:
    """Split a docstring. Sections start at one of ``TITLES``; after the first of them, at any header of that form."""
    before: list[str] = []
    sections: dict[str, list[str]] = {}
    current = before
    for line in inspect.cleandoc(text or "").splitlines():
        found = _HEADER.match(line)
        title = TITLES.get(found[1].lower()) if found else None
        if found and title is None and sections and not found[2]:
            title = found[1]
        if found and title is not None:
            current = sections.setdefault(title, [])
            if found[2]:
                current.append("    " + found[2])
        else:
            current.append(line)
    summary, _, body = "\n".join(before).strip().partition("\n\n")
    return DocText(
        summary=" ".join(summary.split()),
        body=body.strip("\n"),
        sections={title: textwrap.dedent("\n".join(lines)).strip("\n") for title, lines in sections.items()},
    )


def method_text(config: type, siblings: int) -> DocText:
    """What module and class docstring say about a method together; sections of the class go before the module's.

    Args:
        config: The configuration class.
        siblings: How many registered methods its module holds. One: the module is about it. Several: the class has
            the summary, and what the module says in common follows. A module called ``base`` is about an interface.
    """
    own, module = parse_docstring(config.__doc__), parse_docstring(module_of(config).__doc__)
    if config.__module__.endswith(".base"):
        return own
    parts = [module.body, own.body] if siblings == 1 else [own.body, module.summary, module.body]
    return DocText(
        summary=module.summary if siblings == 1 else own.summary,
        body="\n\n".join(part for part in parts if part),
        sections={**module.sections, **own.sections},
    )


def to_markdown(text: str) -> str:
    """Paragraphs in one line each, lists, and indented lines as code blocks."""
    blocks: list[tuple[str, list[str]]] = []
    kind, gap = "", True
    for line in text.splitlines():
        if not line.strip():
            gap = True
            if kind == "code":
                blocks[-1][1].append("")
            continue
        new = _kind(line, kind, gap, blocks[-1][1][-1] if blocks else "")
        if new == "more":
            blocks[-1][1][-1] += " " + line.strip()
        elif new == kind and (new != "text" or not gap):
            blocks[-1][1].append(line)
        else:
            blocks.append((new, [line]))
            kind = new
        gap = False
    return "\n\n".join(_block(kind, lines) for kind, lines in blocks)


def _kind(line: str, kind: str, gap: bool, last: str) -> str:
    """ "text", "code" or "list"; "more" for an indented line that goes on with the sentence before it."""
    if line[0] == " ":
        if kind == "code" or gap:
            return "code"
        return "code" if kind == "text" and last.rstrip().endswith(":") else "more"
    return "list" if _ITEM.match(line) else "text"


def _block(kind: str, lines: list[str]) -> str:
    if kind == "code":
        return "```text\n" + textwrap.dedent("\n".join(lines)).strip("\n") + "\n```"
    if kind == "list":
        return "\n".join(inline(line) for line in lines)
    return inline(" ".join(line.strip() for line in lines))


def inline(text: str) -> str:
    """One paragraph as Markdown: literals and references in code, arXiv numbers as links, signs of Markdown escaped."""
    marker = "- " if _ITEM.match(text) and text[0] in "-*" else ""
    rest, result, end = text[len(marker) :], "", 0
    for found in _CODE.finditer(rest):
        literal, reference, plain = found.groups()
        code = literal or (reference.rpartition(".")[2] if reference else plain)
        result += _escape(rest[end : found.start()]) + f"`{code}`"
        end = found.end()
    return marker + result + _escape(rest[end:])


def _escape(text: str) -> str:
    text = re.sub(r"(?<!\w)_|_(?!\w)|[*<~]", lambda found: "\\" + found[0], text)
    return _ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def arxiv_links(text: str) -> list[str]:
    """Links of the papers that ``text`` names, each once, in order."""
    return [f"[arXiv:{number}](https://arxiv.org/abs/{number})" for number in dict.fromkeys(_ARXIV.findall(text))]


def options(config: type[Any]) -> list[Option]:
    """Fields of a configuration dataclass: those of the method first, then those that all methods of its role have."""
    found = []
    bases = [base for base in config.__mro__ if dataclasses.is_dataclass(base)]
    sources = [_fields_of(base) for base in bases]
    shared = {name for base in bases[1:] if base.__module__.endswith(".base") for name in _fields_of(base)}
    for field in dataclasses.fields(config):
        texts = [source[field.name] for source in sources if field.name in source]
        default = field.default_factory() if callable(field.default_factory) else field.default
        found.append(
            Option(
                name=field.name,
                type=texts[0][0],
                default="required" if default is dataclasses.MISSING else literal(default),
                meaning=next((" ".join(meaning.split()) for _, meaning in texts if meaning), ""),
                own=field.name not in shared,
            )
        )
    return sorted(found, key=lambda option: not option.own)


def literal(value: object) -> str:
    """``value`` as Python source, with double quotes."""
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, tuple):
        return "(" + ", ".join(literal(item) for item in value) + ("," if len(value) == 1 else "") + ")"
    return repr(value)


def module_of(config: type) -> ModuleType:
    """The module that defines ``config``."""
    module = inspect.getmodule(config)
    if module is None:
        raise LookupError(f"{config.__name__} has no module; define it in a file")
    return module


@cache
def _fields_of(config: type) -> dict[str, tuple[str, str]]:
    """Name -> (annotation, docstring or "") of the annotated names in the body of a class."""
    tree = ast.parse(Path(inspect.getsourcefile(config) or "").read_text())
    body = next(n.body for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == config.__name__)
    found = {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            says = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            found[node.target.id] = (ast.unparse(node.annotation).replace("'", '"'), str(says))
    return found
