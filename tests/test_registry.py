"""Tables of names: entries that a module above adds are there for whoever asks, and not before."""

import subprocess
import sys

import pytest

from samgraft.errors import ConfigError, NoMatchError
from samgraft.registry import Registry


def test_names_duplicates_and_typos() -> None:
    table: Registry[int] = Registry("graft")
    table.register("lora")(1)
    table.register("fact")(2)
    assert table.names() == ("fact", "lora") and list(table) == ["fact", "lora"] and table.get("lora") == 1
    assert "lora" in table and "nothing" not in table
    with pytest.raises(ConfigError, match="graft 'lora' is already registered as 1"):
        table.register("lora")(3)
    with pytest.raises(NoMatchError, match=r"unknown graft 'lira'; did you mean 'lora'\? known: fact, lora"):
        table.get("lira")


@pytest.mark.parametrize(
    "question", ['GRAFTS.get("ma_sam")', '"ma_sam" in GRAFTS', '"ma_sam" in GRAFTS.names()', '"ma_sam" in list(GRAFTS)']
)
def test_what_lies_above_is_imported_when_somebody_asks(question: str) -> None:
    """A file with a volumetric graft is read by ``adapters``, which does not import ``volumetric``."""
    code = (
        "import sys; from samgraft.adapters.grafts import GRAFTS; home = 'samgraft.volumetric.grafts'; "
        f"assert home not in sys.modules; assert GRAFTS.get('lora') and home not in sys.modules; assert {question}; "
        "assert home in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_module_that_fails_is_asked_again() -> None:
    table: Registry[int] = Registry("graft", more="samgraft.no_such_module")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_module"):
            table.names()
