"""Every command line of the documentation is one that the command line understands; nothing is run.

Lines that begin with ``samgraft`` in code blocks (fenced or indented) are parsed as a user's would be, up to the point
where the command begins to work. Of ``samgraft`` in running text, the command and its options have to exist.
"""

import argparse
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonargparse
import pytest

from samgraft.recipes import cli
from samgraft.recipes.commands import segment
from samgraft.recipes.commands.everything import everything_options
from samgraft.recipes.commands.mosaic import by_tiles
from samgraft.recipes.commands.parsing import SHORT, to_fit_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(p for p in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")))
SPAN = re.compile(r"(?<!`)`(samgraft [a-z][^`]*)`")


class Parsed(BaseException):
    """Thrown where a command has read its words."""

    def __init__(self, parser: Any, values: Any) -> None:
        self.parser, self.values = parser, values


def blocks(text: str) -> Iterator[tuple[int, str]]:
    """Lines of code blocks with their numbers; a line that ends with a backslash goes on."""
    fenced, before = False, ""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            whole = before + line.strip()
            before = f"{whole[:-1]} " if whole.endswith("\\") else ""
            if not before:
                yield number, whole


def lines(page: Path) -> list[tuple[str, str]]:
    """Where a command stands, and the command."""
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(ROOT)
    found = [(f"{name}:{number}", line) for number, line in blocks(text)]
    return [(where, line) for where, line in found if line.startswith("samgraft ")]


COMMANDS = [pytest.param(line, id=where) for page in PAGES for where, line in lines(page)]
INLINE = sorted({(page.name, span) for page in PAGES for span in SPAN.findall(page.read_text(encoding="utf-8"))})


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[bool], None]:
    """Make every parser throw what it read; or, before it reads anything, itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("samgraft.recipes.commands.validate.read_fit_config", lambda path: None)

    def stop(after: bool) -> None:
        for kind in (argparse.ArgumentParser, jsonargparse.ArgumentParser):
            own: Any = kind.parse_args

            def parse_args(self: Any, *words: Any, own: Any = own, **options: Any) -> Any:
                raise Parsed(self, own(self, *words, **options) if after else None)

            monkeypatch.setattr(kind, "parse_args", parse_args)

    return stop


def words_of(line: str) -> list[str]:
    """Words after the program's name; what the shell would put in place of variables is a number here."""
    return [re.sub(r"\$[A-Z_]+", "1", word) for word in shlex.split(line, comments=True)[1:]]


def read(words: list[str]) -> Parsed:
    """What the command's parser makes of the words."""
    if "--run" in words:  # the recipe of an earlier run
        folder = Path(words[words.index("--run") + 1])
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("{}\n")
    with pytest.raises(Parsed) as caught:
        assert cli.main(words) == 0, "see the message on stderr"
    return caught.value


def test_the_pages_hold_commands() -> None:
    """At least one of each that a user begins with; otherwise the collection is broken."""
    seen = {param.values[0].split()[1] for param in COMMANDS}
    assert {"fit", "segment", "predict", "doctor", "labels", "info", "plan", "trust", "locate", "distill"} <= seen
    assert len(COMMANDS) > 40


def test_lines_that_go_on_are_one_command() -> None:
    text = "```bash\nsamgraft fit \\\n    --data A  # why\n```\n\n    samgraft info b\n\nsamgraft no\n"
    assert list(blocks(text)) == [(3, "samgraft fit  --data A  # why"), (6, "samgraft info b")]
    assert words_of("samgraft predict A --rank $RANK  # part") == ["predict", "A", "--rank", "1"]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_documentation_is_understood(line: str, stopping: Callable[[bool], None]) -> None:
    words = words_of(line)
    if "--help" in words:
        assert cli.main(words) == 0
        return
    stopping(True)
    found = read(words)
    if words[0] in ("fit", "plan", "validate", "trust"):
        to_fit_config(found.parser, found.values)
    if words[0] == "segment":
        segment._check(found.values)
        everything_options(found.values)
        if len(found.values.input) > 1:
            assert by_tiles(found.values, None)


@pytest.mark.parametrize(("page", "span"), INLINE)
def test_options_in_running_text_exist(page: str, span: str, stopping: Callable[[bool], None]) -> None:
    command, *words = span.split()[1:]
    assert command in cli.COMMANDS, f"{page}: {span}"
    stopping(False)
    found = read([command, *(word for word in words if word == "fit")])
    known = {*found.parser._option_string_actions, *SHORT}
    given = [word.partition("=")[0] for word in words if word.startswith("--")]
    plain = {name[2:].replace("_", "-") for name in known}  # distill takes both forms
    unknown = [word for word in given if word[2:].replace("_", "-") not in plain]
    assert not set(unknown) - {"--help", "--debug"}, f"{page}: {span}"


def test_an_option_that_is_gone_is_found(stopping: Callable[[bool], None], capsys: pytest.CaptureFixture[str]) -> None:
    stopping(True)
    assert cli.main(["segment", "a.tif", "--no-such-option", "3", "-o", "b.tif"]) == 2
    assert "--no-such-option" in capsys.readouterr().err
