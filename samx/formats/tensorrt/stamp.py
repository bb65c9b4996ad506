"""What an engine is bound to, written as engine.json beside it."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from samx.artifacts import strict_json as read
from samx.artifacts.manifest import SHA256
from samx.errors import ArtifactError, UsageError
from samx.formats.tensorrt.gpu import Gpu
from samx.formats.tensorrt.library import Library, library_of, version_of

STAMP_FILE, STAMP_ROLE = "engine.json", "engine_stamp"
FORMAT, SCHEMA_VERSION = "samx-engine-stamp", 1
WORDS = {"gpu": "GPU", "compute_capability": "compute capability", "driver": "driver", "os": "system"}
AMPERE = (8, 0)


@dataclass(frozen=True)
class Machine:
    """Describe the machine that builds or runs an engine; without a GPU its three facts are None."""

    version: str  # of the library
    os: str
    gpu: str | None = None
    compute_capability: str | None = None
    driver: str | None = None

    @classmethod
    def here(cls, version: str, gpu: Gpu | None) -> Machine:
        """Describe this machine."""
        system = f"{platform.system()} {platform.machine()}"
        if gpu is None:
            return cls(version, system)
        return cls(version, system, gpu.name, gpu.compute_capability, gpu.driver)


@dataclass(frozen=True)
class Stamp:
    """Bind an engine to its library, its machine, its graph and its bytes."""

    target: str
    compute: str
    machine: Machine
    onnx_sha256: str
    engine_sha256: str
    created: str

    @property
    def library(self) -> Library:
        """The library that made it."""
        return library_of(self.target)

    def to_bytes(self) -> bytes:
        """Write the file's content."""
        body = {"format": FORMAT, "schema_version": SCHEMA_VERSION, **asdict(self)}
        return (json.dumps(body, indent=2, allow_nan=False) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Stamp:
        """Read the file's content.

        Raises: ArtifactError for anything that to_bytes() would not have written.
        """
        body = read.fields(read.parse(data, where), ("format", "schema_version", *cls.__dataclass_fields__), where)
        if (body["format"], body["schema_version"]) != (FORMAT, SCHEMA_VERSION):
            raise ArtifactError(f"{where} has another format", found=body["format"], expected=FORMAT)
        machine = read.fields(body["machine"], Machine.__dataclass_fields__, f"{where}: machine")
        texts = {key: read.text(body[key], f"{where}: {key}") for key in cls.__dataclass_fields__ if key != "machine"}
        for key in ("onnx_sha256", "engine_sha256"):
            if not SHA256.fullmatch(texts[key]):
                raise ArtifactError(f"{where}: {key} is no hash", found=texts[key][: read.SHOWN_CHARACTERS])
        stamp = cls(machine=_machine(machine, f"{where}: machine"), **texts)
        try:
            known = stamp.compute in stamp.library.compute
        except UsageError:
            known = False
        if not known:
            raise ArtifactError(f"{where} is of no known target", found=f"{stamp.target}, {stamp.compute}"[:80])
        return stamp


def differs(stamp: Stamp, here: Machine) -> list[str]:
    """Say in words what keeps an engine from running here; an engine is at home where the list is empty."""
    library, built = stamp.library, stamp.machine
    found = []
    if library.engine_version(built.version) != library.engine_version(here.version):
        found.append(f"built with {library.title} {built.version}, here is {here.version}")
    for fact in library.binds:
        there, now = getattr(built, fact), getattr(here, fact)
        if there != now:
            found.append(f"built for {WORDS[fact]} {there}, here is {now or 'none'}")
    wrong = _wrong_generation(stamp.compute, here.compute_capability)
    return [*found, wrong] if wrong else found


def _wrong_generation(compute: str, capability: str | None) -> str | None:
    """Compare what an engine was compiled for with this machine's GPU, if there is one."""
    if capability is None or compute == "this_gpu":
        return None
    number = version_of(capability)
    if compute == "sm75" and number != (7, 5):
        return f"compiled for Turing (7.5), here is compute capability {capability}"
    if compute == "ampere_plus" and number < AMPERE:
        return f"compiled for Ampere and later (8.0), here is compute capability {capability}"
    return None


def _machine(facts: Mapping[str, Any], where: str) -> Machine:
    version, system = (read.text(facts[key], f"{where}: {key}") for key in ("version", "os"))
    gpu = (facts[key] for key in ("gpu", "compute_capability", "driver"))
    return Machine(version, system, *(None if fact is None else read.text(fact, where) for fact in gpu))
