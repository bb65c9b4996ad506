"""Code compiled for a processor: what it is called in an artifact, and what it is bound to."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from typing import NamedTuple

from samx.artifacts.manifest import ENCODER_ROLE
from samx.artifacts.strict_json import Document, Sha256
from samx.devices import cpu
from samx.devices.adapter import Tree

TARGET, PACKAGE_ROLE = "aoti", "package"
STAMP_FILE, STAMP_ROLE = "host.json", "package_stamp"


class PackageNames(NamedTuple):
    """Name a package and what binds it to its machine."""

    file: str
    role: str
    stamp_file: str
    stamp_role: str


DECODER = PackageNames("decoder.pt2", PACKAGE_ROLE, STAMP_FILE, STAMP_ROLE)  # two models, 'image' and 'prompt'
ENCODER = PackageNames("encoder.pt2", ENCODER_ROLE, "encoder_host.json", "encoder_stamp")  # one, 'encoder'
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
        """Return in words what keeps code that was compiled on another host from running here."""
        missing = sorted(set(needed.instructions) - set(self.instructions))
        return [
            *([f"compiled with PyTorch {needed.torch}, here is {self.torch}"] if needed.torch != self.torch else []),
            *([f"compiled for {needed.os}, here is {self.os}"] if needed.os != self.os else []),
            *([f"this processor has no {' '.join(missing)}"] if missing else []),
        ]


@dataclass(frozen=True)
class HostStamp(Document):
    """Bind compiled code, by its hash, to the machine that compiled it."""

    HEADER = {"format": "samx-host-stamp", "schema_version": 1}

    host: Host
    sha256: Sha256


def instructions(tree: Tree) -> tuple[str, ...]:
    """Name the instruction sets of this processor that a compiler may use; none where the system does not list them."""
    found = cpu.cpuinfo(tree)
    x86 = [flag for flag in found.get("flags", "").split() if X86_INSTRUCTIONS.fullmatch(flag)]
    return tuple(sorted({*x86, *found.get("Features", "").split()}))
