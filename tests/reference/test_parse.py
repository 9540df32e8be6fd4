"""Docstrings to Markdown, and options from the source."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from samgraft.adapters.config import MethodConfig
from samgraft.adapters.decoders import MaskConfig
from samgraft.adapters.grafts import GRAFTS, LoraConfig
from tests.reference.parse import arxiv_links, inline, literal, method_text, options, parse_docstring, to_markdown

TEXT = """Short: what it is,
    in two lines.

    Body with ``code``:

        y = W x
            + s B A x

    More.

    Source:
        A paper, arXiv:2106.09685,
        section 4.
    Deviations:
        ``init="identity"`` starts at zero.
    Cost: this is no header.
    Memory:
        Little.
    """


def test_docstring_in_parts() -> None:
    text = parse_docstring(TEXT)
    assert text.summary == "Short: what it is, in two lines."
    assert text.body == "Body with ``code``:\n\n    y = W x\n        + s B A x\n\nMore."
    assert list(text.sections) == ["Source", "Deviations", "Memory"]
    assert text.sections["Source"] == "A paper, arXiv:2106.09685,\nsection 4."
    assert "Cost: this is no header." in text.sections["Deviations"]


@pytest.mark.parametrize(
    ("text", "sections"),
    [
        ("A.", {}),
        (None, {}),
        ("A.\n\nSource: B, arXiv:1.", {"Source": "B, arXiv:1."}),
        ("A.\n\nReferences:\n    B.\n\nDeviation:\n    C.", {"Source": "B.", "Deviations": "C."}),
        ("A.\n\nUpdate:\n    x = y\n", {}),
    ],
)
def test_sections_are_read_leniently(text: str | None, sections: dict[str, str]) -> None:
    assert parse_docstring(text).sections == sections


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\ntwo\n\nthree", "one two\n\nthree"),
        ("is\n\n    y = x\n\n      + 1\n\nend", "is\n\n```text\ny = x\n\n  + 1\n```\n\nend"),
        ("so:\n    y = x", "so:\n\n```text\ny = x\n```"),
        ("a sentence that\n    goes on", "a sentence that goes on"),
        ("- a\n  more\n- b\n\nend", "- a more\n- b\n\nend"),
        ("1. a\n2. b", "1. a\n2. b"),
    ],
)
def test_blocks(text: str, expected: str) -> None:
    assert to_markdown(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("``a * b`` and a * b", "`a * b` and a \\* b"),
        (":class:`~x.y.Z`, :meth:`merge`", "`Z`, `merge`"),
        ("<name> of lin_1, _x", "\\<name> of lin_1, \\_x"),
        ("arXiv:2106.09685.", "[arXiv:2106.09685](https://arxiv.org/abs/2106.09685)."),
    ],
)
def test_inline(text: str, expected: str) -> None:
    assert inline(text) == expected


def test_arxiv_links_once_each() -> None:
    assert arxiv_links("arXiv:2106.09685 and arXiv 2304.13785 and arXiv:2106.09685") == [
        "[arXiv:2106.09685](https://arxiv.org/abs/2106.09685)",
        "[arXiv:2304.13785](https://arxiv.org/abs/2304.13785)",
    ]


@dataclass(frozen=True, kw_only=True)
class FirstConfig(MethodConfig):
    method: ClassVar[str] = "first"
    width: int = 3
    """Of the
    inside."""
    silent: str | None = None


@dataclass(frozen=True, kw_only=True)
class SecondConfig(FirstConfig):
    """Own words.

    Source:
        Own paper.
    """

    width: int = 5
    names: tuple[str, ...] = field(default_factory=lambda: ("a",))
    """Names."""


def test_options_with_inherited_texts_and_new_defaults() -> None:
    found = {option.name: option for option in options(SecondConfig)}
    assert [found["width"].meaning, found["width"].default, found["width"].type] == ["Of the inside.", "5", "int"]
    assert [found["names"].default, found["names"].meaning] == ['("a",)', "Names."]
    assert found["silent"].meaning == ""


def test_own_options_come_first() -> None:
    names = [(option.name, option.own) for option in options(LoraConfig)]
    assert names[-3:] == [("blocks", False), ("init", False), ("lr_factor", False)]
    assert all(own for _, own in names[:-3])


def test_a_class_speaks_for_itself_in_a_shared_module() -> None:
    text = method_text(SecondConfig, siblings=2)
    assert text.summary == "Own words."
    assert text.body == "Docstrings to Markdown, and options from the source."
    assert text.sections == {"Source": "Own paper."}
    assert method_text(SecondConfig, siblings=1).summary == "Docstrings to Markdown, and options from the source."
    assert method_text(MaskConfig, siblings=1).summary == "The backbone's own mask decoder; nothing is trained."
    assert method_text(GRAFTS.get("bias"), siblings=4).summary.startswith("All biases of every block")


@pytest.mark.parametrize("value", ["it's", 'a "b"', ("x",), (), (1, "y"), None, 0.5, True])
def test_literal_is_python(value: object) -> None:
    assert eval(literal(value)) == value
