"""The command line: dispatch, messages, exit codes, short names."""

import subprocess
import sys
from pathlib import Path

import pytest

from samgraft.recipes import cli
from samgraft.recipes.commands import parsing
from samgraft.recipes.commands.fit import run_folder
from tests.recipes._sets import write_volumes


def test_overview_and_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in cli.COMMANDS)
    assert cli.main(["segmnt"]) == 2
    assert "did you mean 'segment'?" in capsys.readouterr().err
    assert cli.main([]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "--config", "nothing"], "InputError: no recipe 'nothing'"),
        (["fit", "--config", "nuclei"], "no data set named; add --data PATH"),
        (["fit", "--config", "nuclei", "--sise", "3"], "ConfigError: "),
        (["segment", "x.nii.gz", "--box", "0", "0", "5", "5"], "no output named; add -o FILE"),
        (["segment", "x.nii.gz", "-o", "y.nii.gz"], "nothing says what to segment"),
        (["segment", "x.png", "--point", "1", "1", "7", "-o", "y.png"], "point label 7; expected 1"),
        (["info"], "nothing to describe"),
        (["info", "/nowhere/at/all.nii.gz"], "InputError"),
        (["info", "--adapter", "/nowhere/a.graft"], "CheckpointError"),
        (["export", "--size", "1", "2", "3", "-o", "x"], "--size has 3 numbers; expected a side, or height and width"),
        (["report", "/nowhere"], "expected the run folder of samgraft fit"),
        (["validate", "--adapter", "/nowhere/a.graft"], "no adapter file"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    captured = capsys.readouterr().err
    assert message in captured
    assert captured.count("\n") == 1 and "Traceback" not in captured


def test_debug_shows_the_error_itself() -> None:
    with pytest.raises(parsing.ConfigError, match="nothing to describe"):
        cli.main(["info", "--debug"])


def test_red_only_where_wanted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    cli.fail("two\nlines")
    assert capsys.readouterr().err == "samgraft: two lines\n"
    monkeypatch.setenv("FORCE_COLOR", "1")
    cli.fail("x")
    assert capsys.readouterr().err == "\033[31msamgraft: x\033[0m\n"


def test_short_names_and_order() -> None:
    words = parsing.fit_words(["--data", "d", "--steps=3", "--config", "nuclei", "--fast-dev-run"])
    assert words == [
        "--config", str(parsing.CONFIGS / "nuclei.yaml"), "--data.path", "d",
        "--train.steps=3", "--train.fast_dev_run=true",
    ]  # fmt: skip
    assert run_folder(words, None).name.startswith("nuclei-")
    assert run_folder(words, "out") == Path("out")


def test_options_win_over_the_recipe() -> None:
    parser = parsing.new_parser("fit", "")
    parsing.add_fit_config(parser)
    words = ["--data", "here", "--cases", "5", "--task.grafts", '{"bottleneck": {}}', "--config", "cardiac_mr"]
    config = parsing.to_fit_config(parser, parsing.parse(parser, parsing.fit_words(words)))
    assert (config.data.path, config.data.cases, config.data.size) == ("here", 5, 128)
    assert config.task.grafts == {"bottleneck": {}} and config.task.class_names == ("left_ventricle",)


def test_info_prints_the_scene(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volume = write_volumes(tmp_path / "v") / "imagesTr" / "case_00_0000.nii.gz"
    assert cli.main(["info", str(volume)]) == 0
    text = capsys.readouterr().out
    assert "NIfTI" in text and "D=6, H=36, W=40" in text and "lazy" in text


def test_help_and_version_load_nothing_heavy(repo_root: Path) -> None:
    code = (
        "import sys; from samgraft.recipes.cli import main; main(['--help']); main(['--version']);"
        "print(sorted({'torch', 'lightning', 'transformers', 'jsonargparse', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(repo_root / ".src")},
    )
    assert done.stdout.strip().endswith("[]")
