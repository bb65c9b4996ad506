"""Code compiled for a processor: what it is called in an artifact, and what it is bound to."""

from __future__ import annotations

import json
import platform
import re
from dataclasses import asdict, dataclass

from samx.artifacts import strict_json as read
from samx.artifacts.manifest import SHA256
from samx.devices import cpu
from samx.devices.files import Tree
from samx.errors import ArtifactError

TARGET, PACKAGE_ROLE = "aoti", "package"
STAMP_FILE, STAMP_ROLE = "host.json", "package_stamp"
FORMAT, SCHEMA_VERSION = "samx-host-stamp", 1
# Of what x86 calls flags, those that a compiler makes use of when it builds for the machine that it runs on.
X86_INSTRUCTIONS = re.compile(
    r"3dnow\w*|abm|adx|aes|amx\w*|apx\w*|avx\w*|bmi\d|cldemote|cx16|f16c|fma4?|gfni|lahf_lm|mmx\w*|mov\w+|pclmul\w*|pni|"
    r"popcnt|rdrand|rdseed|sha\w*|sse\w*|ssse3|tbm|vaes|vpclmul\w*|xop|xsave\w*"
)


@dataclass(frozen=True)
class Host:
    """Describe the machine that compiles or runs such code."""

    torch: str
    os: str
    instructions: tuple[str, ...]  # sorted; empty where the system does not list them

    @classmethod
    def here(cls, torch: str, tree: Tree | None = None) -> Host:
        """Describe this machine, with the version of PyTorch that is installed."""
        return cls(torch, f"{platform.system()} {platform.machine()}", instructions(tree or Tree()))

    def lacks(self, needed: Host) -> list[str]:
        """Say in words what keeps code that was compiled on another host from running here."""
        missing = sorted(set(needed.instructions) - set(self.instructions))
        return [
            *([f"compiled with PyTorch {needed.torch}, here is {self.torch}"] if needed.torch != self.torch else []),
            *([f"compiled for {needed.os}, here is {self.os}"] if needed.os != self.os else []),
            *([f"this processor has no {' '.join(missing)}"] if missing else []),
        ]


@dataclass(frozen=True)
class HostStamp:
    """Bind compiled code, by its hash, to the machine that compiled it."""

    host: Host
    sha256: str

    def to_bytes(self) -> bytes:
        """Write the file's content."""
        body = {"format": FORMAT, "schema_version": SCHEMA_VERSION, **asdict(self)}
        return (json.dumps(body, indent=2, allow_nan=False) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> HostStamp:
        """Read the file's content.

        Raises: ArtifactError for anything that to_bytes() would not have written.
        """
        body = read.fields(read.parse(data, where), ("format", "schema_version", "host", "sha256"), where)
        if (body["format"], body["schema_version"]) != (FORMAT, SCHEMA_VERSION):
            raise ArtifactError(f"{where} has another format", found=repr(body["format"])[:80], expected=FORMAT)
        sha256 = read.text(body["sha256"], f"{where}: sha256")
        if not SHA256.fullmatch(sha256):
            raise ArtifactError(f"{where}: sha256 is no hash", found=sha256[: read.SHOWN_CHARACTERS])
        host = read.fields(body["host"], Host.__dataclass_fields__, f"{where}: host")
        torch, system = (read.text(host[key], f"{where}: {key}") for key in ("torch", "os"))
        names = [read.text(name, f"{where}: instructions") for name in read.items(host["instructions"], where)]
        return cls(Host(torch, system, tuple(names)), sha256)


def instructions(tree: Tree) -> tuple[str, ...]:
    """Name the instruction sets of this processor that a compiler may use; none where the system does not list them."""
    found = cpu.cpuinfo(tree)
    x86 = [flag for flag in found.get("flags", "").split() if X86_INSTRUCTIONS.fullmatch(flag)]
    return tuple(sorted({*x86, *found.get("Features", "").split()}))
