"""Budgets of specs/style.md 2.1: a file has at most 400 lines, a function at most 80."""

import ast

import pytest

from tests.architecture._tree import ROOT, python_files

FILE_LINES = 400
FUNCTION_LINES = 80
PY = [str(path.relative_to(ROOT)) for path in python_files()]


@pytest.mark.parametrize("path", PY)
def test_file_and_functions_stay_short(path: str) -> None:
    text = (ROOT / path).read_text()
    lines = text.count("\n") + 1
    assert lines <= FILE_LINES, f"{path} has {lines} lines; split it by what it does"
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {f.name: size for f in functions if (size := (f.end_lineno or f.lineno) - f.lineno + 1) > FUNCTION_LINES}
    assert not long, f"{path}: functions over {FUNCTION_LINES} lines: {long}"


@pytest.mark.parametrize("path", PY)
def test_file_opens_with_what_it_is(path: str) -> None:
    text = (ROOT / path).read_text()
    assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring in its first lines"
