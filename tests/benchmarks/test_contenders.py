"""Who may be measured beside artifacts, and what words of --against ask for them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from samx.benchmarks.contenders import CONTENDERS, EXTRAS, chosen
from samx.errors import UnavailableError, UsageError
from samx.registry import load


def names(*against: str) -> list[str]:
    return [entry.title for entry in chosen(against)]


def test_names_are_unique_and_everybody_can_be_installed_and_opened() -> None:
    assert len({entry.name for entry in CONTENDERS}) == len(CONTENDERS)
    assert {entry.library for entry in CONTENDERS} == set(EXTRAS)
    assert all(callable(load(reference)) for reference in {entry.open for entry in CONTENDERS})


def test_words_are_names_or_groups_separated_by_commas_and_repeated() -> None:
    assert names("meta,samexporter", "huggingface, pytorch") == [
        "meta", "samexporter", "huggingface", "pytorch", "reference",
    ]  # fmt: skip
    assert names("pytorch", "reference") == ["pytorch", "reference"]
    assert names("meta-pytorch:fp16,meta-pytorch") == ["meta-pytorch-fp16", "meta-pytorch"]
    assert names() == []


@pytest.mark.parametrize("word", ["nobody", "", "meta:fp16", "pytorch:int8"])
def test_a_word_that_asks_for_nobody_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match="nobody of that name") as caught:
        chosen([word])
    assert caught.value.exit_code == 2


def test_what_takes_minutes_to_compile_has_to_be_asked_for() -> None:
    assert not any("compiled" in name for name in names("meta,samexporter,huggingface,pytorch"))
    assert names("pytorch-compiled") == ["pytorch-compiled"]


def test_a_missing_package_another_family_and_another_device_are_named() -> None:
    (meta,) = chosen(["meta"])
    with pytest.raises(UnavailableError, match="no such family: found sam2"):
        replace(meta, library="torch").require("sam2", "cpu")
    with pytest.raises(UnavailableError, match="no such device: found cuda"):
        replace(meta, library="torch").require("sam1", "cuda")
    (peer,) = chosen(["samexporter"])
    with pytest.raises(
        UnavailableError, match=r"'a_package_that_nobody_has' is not installed\. 'make compare' installs"
    ):
        replace(peer, library="a_package_that_nobody_has").require("sam1", "cpu")
