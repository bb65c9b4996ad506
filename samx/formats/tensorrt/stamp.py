"""What an engine is bound to, written as engine.json beside it."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from samx.artifacts.strict_json import Document, Sha256, refusal
from samx.errors import UsageError
from samx.formats.tensorrt.gpu import Gpu
from samx.formats.tensorrt.library import Library, library_of, version_of

STAMP_FILE, STAMP_ROLE = "engine.json", "engine_stamp"
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
class Stamp(Document):
    """Bind an engine to its library, its machine, its graph and its bytes."""

    HEADER = {"format": "samx-engine-stamp", "schema_version": 1}

    target: str
    compute: str
    machine: Machine
    onnx_sha256: Sha256
    engine_sha256: Sha256
    created: str

    @property
    def library(self) -> Library:
        """The library that made it."""
        return library_of(self.target)

    def check(self, where: str) -> None:
        """Refuse a target that is unknown, and GPUs that it has no engines for."""
        try:
            known = self.compute in self.library.compute
        except UsageError:
            known = False
        if not known:
            raise refusal(f"{where} is of no known target", f"{self.target}, {self.compute}")


def differs(stamp: Stamp, here: Machine) -> list[str]:
    """Return in words what keeps an engine from running here; nothing, where it runs."""
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
