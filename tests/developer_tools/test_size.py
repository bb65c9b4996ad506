"""What may not grow: the lengths of functions, the import circles. And the counting itself."""

from __future__ import annotations

import ast
import statistics
from pathlib import Path

import pytest

from tools import size


@pytest.fixture(scope="module")
def files() -> list[size.Source]:
    return size.sources()


def source(text: str, name: str = "samx/toy.py") -> size.Source:
    return size.Source(name, text, ast.parse(text))


def test_functions_are_short(files: list[size.Source]) -> None:
    lengths = {name: count for file in files for name, count in size.function_lengths(file).items()}
    assert len(lengths) > 1000
    assert statistics.median(lengths.values()) <= size.FUNCTION_MEDIAN
    assert statistics.quantiles(lengths.values(), n=10)[-1] <= size.FUNCTION_P90
    assert {name: count for name, count in lengths.items() if count > size.FUNCTION_MOST} == {}


def test_no_files_import_each_other_in_a_circle(files: list[size.Source]) -> None:
    assert size.circles(size.arrows_between(files)) == []


def test_no_file_is_too_long(files: list[size.Source]) -> None:
    assert {file.name for file in files if file.text.count("\n") > size.LONG} == set()


def test_a_planted_circle_is_found() -> None:
    files = [
        source("from samx.b import x", "samx/a.py"),
        source("def late():\n    from samx import c", "samx/b.py"),
        source("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import samx.a", "samx/c.py"),
        source("import samx.a", "samx/d.py"),
    ]
    assert size.circles(size.arrows_between(files)) == [["samx.a", "samx.b", "samx.c"]]


def test_code_is_counted_without_blanks_comments_and_docstrings() -> None:
    text = (
        '"""Words.\n\nMore."""\n\nx = 1  # said\n# alone\n\n\n'
        'def f(\n    a,\n):\n    """Say."""\n    return """one\n\ntwo"""\n'
    )
    assert sorted(size.code_lines(source(text))) == [5, 9, 10, 11, 13, 14, 15]
    assert size.function_lengths(source(text)) == {"samx/toy.py:f:9": 6}


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("@dataclass\nclass A: ...", True),
        ("@dataclasses.dataclass(frozen=True)\nclass A: ...", True),
        ("class A(NamedTuple): ...", True),
        ("class A(typing.TypedDict, total=False): ...", True),
        ("class A(Exception): ...", False),
    ],
)
def test_classes_of_fields_are_counted(text: str, is_one: bool) -> None:
    assert len(size.field_classes(source(text))) == is_one


def test_the_figures_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    size.main()
    assert "import circles" in capsys.readouterr().out


def test_it_counts_this_checkout() -> None:
    assert Path(size.__file__).parents[1] == size.ROOT
