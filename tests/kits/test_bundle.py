"""A kit holds what a device needs, always in the same bytes, and only of an artifact that was shown to be right."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from kits import Toy, artifact, copied, engine_artifact, kit_of, passed_report, suite

from samx.artifacts.store import Artifact
from samx.commands.bundle import FOLDER, bundle
from samx.errors import ArtifactError, ParityError, UsageError, WriteError
from samx.registry import BACKENDS, Backend
from samx.validators.gate import run_gate
from samx.validators.metrics import bounds_for

MOST_BYTES = 2 * 2**20  # of a kit for ONNX Runtime, beside its artifact


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifact(tmp_path_factory.mktemp("bundle") / "toy")


@pytest.fixture(scope="module")
def kit(made: Path) -> Path:
    return kit_of(made)


def test_the_artifact_is_in_the_kit_as_it_is(made: Path, kit: Path) -> None:
    inside = {path.name: path.read_bytes() for path in (kit / "artifact").iterdir()}
    assert inside == {path.name: path.read_bytes() for path in made.iterdir()}
    assert Artifact.open(kit / "artifact").manifest.target == "onnx"


def test_every_file_is_listed_with_its_hash(kit: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", "kit.sha256"], cwd=kit, check=True, capture_output=True)
    names = {path.relative_to(kit).as_posix() for path in kit.rglob("*") if path.is_file()}
    listed = {line.partition("  ")[2] for line in (kit / "kit.sha256").read_text().splitlines()}
    assert listed == names - {"kit.sha256"}


def test_what_a_build_on_the_device_changes_is_not_listed(tmp_path: Path) -> None:
    kit = kit_of(engine_artifact(tmp_path / "toy", "trt"))
    listed = (kit / "kit.sha256").read_text()
    assert "artifact/manifest.json" not in listed
    assert "artifact/decoder.onnx" in listed


def test_a_kit_is_small(made: Path, tmp_path: Path) -> None:
    beside = bundle(made, tmp_path / "kit.zip")["bytes"] - sum(path.stat().st_size for path in made.iterdir())
    assert 100_000 < beside <= MOST_BYTES


def test_the_same_artifact_gives_the_same_bytes(made: Path, tmp_path: Path) -> None:
    twin = copied(made, tmp_path)
    for path in twin.iterdir():
        os.utime(path, (0, 0))
    (twin.parent / "toy").mkdir()
    twin = twin.rename(twin.parent / "toy" / "toy")
    first, second = bundle(made, tmp_path / "one.zip"), bundle(twin, tmp_path / "two.zip")
    assert first["sha256"] == second["sha256"] == hashlib.sha256((tmp_path / "two.zip").read_bytes()).hexdigest()


def test_the_archive_says_nothing_of_this_machine(made: Path, tmp_path: Path) -> None:
    bundle(made, tmp_path / "kit.zip")
    with zipfile.ZipFile(tmp_path / "kit.zip") as archive:
        entries = archive.infolist()
    assert [entry.filename for entry in entries] == sorted(entry.filename for entry in entries)
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.filename for entry in entries if entry.external_attr >> 16 & 0o111} == {f"{FOLDER}/samx.pyz"}


def test_the_result_says_what_was_written(made: Path, tmp_path: Path) -> None:
    result = bundle(made, tmp_path / "kit.zip")
    assert result["devices"] == ("cpu", "cuda")
    assert result["bytes"] == (tmp_path / "kit.zip").stat().st_size
    assert json.loads(json.dumps(result))["path"] == str(tmp_path / "kit.zip")
    assert "read README.txt" in result["summary"]


def test_an_output_that_exists_is_kept_unless_asked(made: Path, tmp_path: Path) -> None:
    (tmp_path / "kit.zip").write_bytes(b"precious")
    with pytest.raises(WriteError, match="exists already"):
        bundle(made, tmp_path / "kit.zip")
    assert (tmp_path / "kit.zip").read_bytes() == b"precious"
    bundle(made, tmp_path / "kit.zip", overwrite=True)
    assert zipfile.is_zipfile(tmp_path / "kit.zip")


def test_a_kit_that_cannot_be_written_leaves_nothing(made: Path, tmp_path: Path) -> None:
    with pytest.raises(WriteError):
        bundle(made, tmp_path / "no" / "such" / "kit.zip")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"evidence": None}, "no parity evidence"),
        ({"evidence": {"level": "lowered"}}, "no parity evidence"),
        ({"evidence": {"passed": False}}, "failed evidence parity_report.json"),
        ({"report": run_gate(Toy(error=1.0), suite(), bounds_for("fp32"), level="graph"), "evidence": {"passed": True}},
         "failed evidence parity_report.json"),
    ],
    ids=["none", "lowered only", "failed", "failed, and the manifest lies"],
)  # fmt: skip
def test_what_was_not_shown_to_be_right_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = artifact(tmp_path / "toy", **changes)
    with pytest.raises(ParityError, match=words):
        bundle(path, tmp_path / "kit.zip")
    assert not (tmp_path / "kit.zip").exists()


def test_the_reports_that_these_tests_plant_are_what_they_are_said_to_be() -> None:
    assert passed_report(suite()).passed
    assert not run_gate(Toy(error=1.0), suite(), bounds_for("fp32"), level="graph").passed


def test_an_altered_artifact_is_refused(made: Path, tmp_path: Path) -> None:
    path = copied(made, tmp_path)
    data = bytearray((path / "decoder.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "decoder.onnx").write_bytes(data)
    with pytest.raises(ArtifactError, match="was altered"):
        bundle(path, tmp_path / "kit.zip")


def test_an_unknown_target_is_named(tmp_path: Path) -> None:
    path = artifact(tmp_path / "toy", target="abacus")
    with pytest.raises(UsageError, match="unknown export target: found 'abacus'"):
        bundle(path, tmp_path / "kit.zip")


KITS = [entry for entry in BACKENDS if entry.kit is not None]


def test_the_targets_of_devices_have_kits() -> None:
    assert {"onnx", "trt", "trt-rtx", "coreml"} <= {entry.target for entry in KITS}
    assert [entry.target for entry in BACKENDS if entry not in KITS] == ["aoti"]  # PyTorch is what it runs in


@pytest.mark.parametrize("entry", KITS, ids=lambda entry: entry.target)
def test_a_kit_names_its_target_s_own_device_first(entry: Backend) -> None:
    assert entry.kit is not None
    assert next(iter(entry.kit)) == entry.device
    lines = [line for lines in entry.kit.values() for line in lines]
    assert all(line.startswith(("python3 ", "# ")) for line in lines)
    assert all(entry.library.partition("_")[0] in lines for lines in ["".join(next(iter(entry.kit.values())))])


def commands(kit: Path) -> list[str]:
    """Return what the page tells to type, without the installing."""
    lines = [line.strip() for line in (kit / "README.txt").read_text().splitlines() if line.startswith("    python3")]
    return [line for line in lines if "-m pip" not in line]


def test_the_page_has_the_commands_of_each_device(kit: Path) -> None:
    assert commands(kit) == [
        "python3 samx.pyz validate artifact", "python3 samx.pyz bench artifact -o report.json",
        "python3 samx.pyz validate artifact --device cuda",
        "python3 samx.pyz bench artifact --device cuda -o report.json",
        "python3 samx.pyz segment photo.png --model artifact --embedding photo.npz --point 300,200 -o overlay.png",
    ]  # fmt: skip


@pytest.mark.parametrize("target", ["trt", "trt-rtx"])
def test_the_page_of_an_engine_says_to_build_it_first(target: str, tmp_path: Path) -> None:
    kit = kit_of(engine_artifact(tmp_path / "toy", target))
    assert commands(kit)[:2] == [
        "python3 samx.pyz build artifact", "python3 samx.pyz validate artifact --device cuda"
    ]  # fmt: skip
    text = (kit / "README.txt").read_text()
    assert "one that was built elsewhere is not loaded, but built again" in text
    assert ("JetPack" in text) is (target == "trt")
    assert not re.search(r"\$\w", text)


def test_samx_alone_is_written_without_an_artifact(tmp_path: Path) -> None:
    result = bundle(None, tmp_path / "samx.pyz")
    assert (result["devices"], result["files"]) == ((), 1)
    assert zipfile.is_zipfile(tmp_path / "samx.pyz")
    assert bundle(None, tmp_path / "twin.pyz")["sha256"] == result["sha256"]
