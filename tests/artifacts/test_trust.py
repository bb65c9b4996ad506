"""Only engines that this user built or named are loaded, and only this user can name them."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_toys import home as home
from engine_toys import named_at_once

from samx.artifacts import trust
from samx.artifacts.trust import cache_path, read_cached, read_private, write_cached, write_private
from samx.errors import ArtifactError, WriteError
from samx.exporters.tensorrt import build

pytestmark = pytest.mark.usefixtures("home")
ENGINE = "a" * 64


def test_an_engine_is_trusted_once_it_is_named() -> None:
    with pytest.raises(ArtifactError, match=r"samx build here.*samx trust here") as caught:
        trust.require_trusted(ENGINE, Path("here"))
    assert caught.value.exit_code == 6
    trust.remember(ENGINE, "built here")
    trust.require_trusted(ENGINE, Path("here"))
    with pytest.raises(ArtifactError, match=f"found sha256 {'b' * 64}"):
        trust.require_trusted("b" * 64, Path("here"))


def test_naming_keeps_the_others() -> None:
    for letter in "abc":
        trust.remember(letter * 64, letter)
    assert all(trust.is_trusted(letter * 64) for letter in "abc")


def test_engines_named_at_the_same_time_are_all_kept() -> None:
    assert all(map(trust.is_trusted, named_at_once(12)))


def test_the_list_is_this_users_alone(home: Path) -> None:
    trust.remember(ENGINE, "built here")
    path = home / "state" / "samx" / "trusted-engines.json"
    assert path == trust.trust_file()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_list_that_others_could_write_is_not_believed(what: str) -> None:
    trust.remember(ENGINE, "built here")
    path = trust.trust_file() if what == "file" else trust.trust_file().parent
    path.chmod(0o722)
    with pytest.raises(ArtifactError, match="could have been written by somebody else"):
        trust.is_trusted(ENGINE)


def test_a_list_of_somebody_else_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    trust.remember(ENGINE, "built here")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(ArtifactError, match="could have been written by somebody else"):
        trust.is_trusted(ENGINE)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{}", b"[]", b'{"format": "other", "schema_version": 1, "engines": {}}',
        json.dumps({**trust.HEADER, "engines": {"no hash": {}}}).encode(),
    ],
)  # fmt: skip
def test_a_damaged_list_trusts_nothing(body: bytes) -> None:
    write_private(trust.trust_file(), body)
    for act in (lambda: trust.is_trusted(ENGINE), lambda: trust.remember(ENGINE, "built here")):
        with pytest.raises(ArtifactError):
            act()
    assert trust.trust_file().read_bytes() == body


def test_a_list_that_cannot_be_written_is_a_write_error(home: Path) -> None:
    (home / "state").write_text("in the way")
    with pytest.raises(WriteError) as caught:
        trust.remember(ENGINE, "built here")
    assert caught.value.exit_code == 7


@pytest.mark.parametrize("value", ["", "relative/path"])
def test_a_variable_that_is_no_absolute_path_counts_as_none(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", value)
    assert trust.trust_file() == Path.home() / ".local/state/samx/trusted-engines.json"


CACHE_DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[:-1],
    "longer": lambda data: data + b"x",
    "changed": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "empty": lambda data: b"",
    "header alone": lambda data: data[:16],
}


@pytest.mark.parametrize("how", CACHE_DAMAGE)
def test_a_cache_is_there_whole_or_not_at_all(how: str, home: Path) -> None:
    path = home / "cache" / "samx" / "kernels" / "toy.cache"
    assert read_cached(path) is None
    assert write_cached(path, b"kernels") is None
    assert read_cached(path) == b"kernels"
    path.write_bytes(CACHE_DAMAGE[how](path.read_bytes()))
    assert read_cached(path) is None


def test_a_cache_that_others_could_write_is_not_read(home: Path) -> None:
    path = home / "cache" / "toy.cache"
    write_cached(path, b"kernels")
    path.chmod(0o666)
    assert read_cached(path) is None


def test_a_cache_that_cannot_be_written_says_why_and_stops_nothing(home: Path) -> None:
    (home / "cache").write_text("in the way")
    problem = write_cached(trust.cache_directory() / "toy.cache", b"kernels")
    assert problem is not None
    assert "cannot write" in problem


def test_a_killed_write_leaves_the_old_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = home / "toy"
    write_private(path, b"old")

    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(WriteError):
        write_private(path, b"new")
    assert read_private(path) == b"old"
    assert [entry.name for entry in home.iterdir()] == ["toy"]


class FakeTimingCache:
    """Remember what it was made from."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data + b"+learnt"


class FakeConfig:
    """Take a timing cache, unless it is of another GPU."""

    def __init__(self, refused: bytes | None = None) -> None:
        self.refused = refused
        self.cache: FakeTimingCache | None = None

    def create_timing_cache(self, data: bytes) -> FakeTimingCache:
        return FakeTimingCache(data)

    def set_timing_cache(self, cache: FakeTimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.data == self.refused:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> FakeTimingCache | None:
        return self.cache


def test_the_timing_cache_grows_from_build_to_build() -> None:
    path = cache_path("timing", "trt", "10.3.0", "Orin 8.7")
    for kept, words in ((b"", "new"), (b"+learnt", "kept"), (b"+learnt+learnt", "kept")):
        config = FakeConfig()
        assert build._attach(config, path) == words
        assert config.cache is not None
        assert config.cache.data == kept
        assert build._keep(config, path) is None


def test_a_damaged_or_refused_timing_cache_is_begun_anew() -> None:
    path = cache_path("timing", "trt", "10.3.0", "Orin 8.7")
    write_cached(path, b"of another driver")
    assert build._attach(FakeConfig(refused=b"of another driver"), path) == "new"
    assert path is not None
    path.write_bytes(b"damaged")
    assert build._attach(FakeConfig(), path) == "new"


def test_every_library_version_and_gpu_has_a_timing_cache_of_its_own() -> None:
    facts = [("trt", "10.3.0", "Orin 8.7"), ("trt", "10.7.0", "Orin 8.7"), ("trt", "10.3.0", "A100 8.0")]
    assert len({cache_path("timing", *fact) for fact in facts}) == 3
