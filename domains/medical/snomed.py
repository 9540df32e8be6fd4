"""Codes for names of structures: "left_kidney" -> SNOMED CT 64033007 "Kidney" with laterality 7771000 "Left".

The map is ``snomed.json`` beside this file: a few dozen frequent structures, not a terminology. An unknown name gets
the code of tissue, and says so. Codes: SNOMED CT as used by DICOM PS3.16 (CID 7150, 7151, 244).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

MAP_FILE = Path(__file__).with_name("snomed.json")
"""The map; one entry per structure with all its names."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """A coded concept."""

    value: str
    """Such as "64033007"."""
    scheme: str
    """Such as "SCT"."""
    meaning: str
    """In words."""


@dataclass(frozen=True, kw_only=True)
class Concept:
    """What a structure is, in codes."""

    category: Code
    """Segmented property category."""
    type: Code
    """Segmented property type."""
    laterality: Code | None = None
    """Left or right, where the name says so."""
    known: bool = True
    """False if the name is not in the map, so that the type is only "Tissue"."""


def concept(name: str) -> Concept:
    """Codes of a structure by its name; case, spaces, dashes and underscores make no difference.

    "GTV" as first word is enough ("GTV_Mass_CT"): in radiotherapy it always means the gross tumour volume.

    Args:
        name: such as "spleen", "Left kidney" or "kidney_left".
    """
    table = _table()
    words = re.sub(r"[^a-z0-9]+", " ", name.lower()).split()
    whole = " ".join(words)
    sides = [word for word in words if word in table["laterality"]]
    bare = " ".join(word for word in words if word not in table["laterality"])
    if whole in table["structures"]:
        return _concept(table, table["structures"][whole], None)
    if len(sides) == 1 and bare in table["structures"]:
        return _concept(table, table["structures"][bare], table["laterality"][sides[0]])
    if words and words[0] in table["first_words"]:
        return _concept(table, table["first_words"][words[0]], None)
    return _concept(table, table["unknown"], None, known=False)


def _concept(table: Mapping[str, Any], entry: Mapping[str, Any], side: list[str] | None, known: bool = True) -> Concept:
    return Concept(
        category=_code(table["categories"][entry["category"]]),
        type=_code(entry["type"]),
        laterality=None if side is None else _code(side),
        known=known,
    )


def _code(triple: list[str]) -> Code:
    value, scheme, meaning = triple
    return Code(value=value, scheme=scheme, meaning=meaning)


@cache
def _table() -> dict[str, Any]:
    """The map, with one key per name."""
    table: dict[str, Any] = json.loads(MAP_FILE.read_text(encoding="utf-8"))
    table["first_words"] = {word: entry for entry in table["structures"] for word in entry.get("first_words", ())}
    table["structures"] = {name: entry for entry in table["structures"] for name in entry["names"]}
    return table
