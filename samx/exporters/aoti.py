"""Write graphs as an AOTInductor package: code compiled for this machine's processor, run without tracing."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samx.errors import SamxError, UnavailableError
from samx.exporters.base import Exported, ExportJob, HalfOptions
from samx.extras import silent
from samx.models.spec import DecoderSpec

if TYPE_CHECKING:
    from samx.formats.aoti import PackageNames
    from samx.models.graph import Graph, Graphs

# Threads are counted when the code runs, so that it obeys --threads.
INDUCTOR: dict[str, Any] = {"aot_inductor.package": True, "cpp.dynamic_threads": True}


@dataclass(frozen=True)
class AotiOptions(HalfOptions):
    """Declare the options of compiled packages."""

    def check(self, precision: str, spec: DecoderSpec | None = None) -> None:
        """Refuse groups to keep in float32 where everything is, and a machine without a C++ compiler."""
        super().check(precision, spec)
        _require_compiler()


def decoder(job: ExportJob) -> Graphs:
    """Build the decoder's graphs: the image's part and the prompts' part."""
    from samx.models.fast.graphs import USUAL_POINTS, USUAL_PROMPTS, Needs, fast_graphs

    options: AotiOptions = job.options
    exact = job.precision == "fp32"  # low-rank norms cancel large sums, which float16 does not survive
    needs = Needs(
        options.points or USUAL_POINTS, options.prompts or USUAL_PROMPTS, split=True, low_rank=exact,
        keep_fp32=options.kept(job.precision),
    )  # fmt: skip
    return fast_graphs(job.loaded, job.spec, needs)


def write(graphs: Sequence[Graph], job: ExportJob, directory: Path) -> Exported:
    """Compile graphs, write the package and what it is bound to, and trust it.

    Raises: UnavailableError without a C++ compiler; SamxError when the compiler fails; WriteError.
    """
    from samx.formats.aoti import DECODER

    return _write(graphs, job, directory, DECODER)


def write_encoder(graph: Graph, job: ExportJob, directory: Path) -> Exported:
    """Compile the graph of an image encoder, to a package of its own.

    Raises: as write().
    """
    from samx.formats.aoti import ENCODER

    return _write([graph], job, directory, ENCODER)


def _write(graphs: Sequence[Graph], job: ExportJob, directory: Path, names: PackageNames) -> Exported:
    from samx.artifacts import trust
    from samx.artifacts.commit import write_file
    from samx.formats.aoti import Host, HostStamp

    package = directory / names.file
    write_package(graphs, package)
    sha256 = hashlib.sha256(package.read_bytes()).hexdigest()
    write_file(directory / names.stamp_file, HostStamp(Host.here(version("torch")), sha256).to_bytes())
    trust.remember(sha256, f"compiled from {job.loaded.name} {job.loaded.sha256}")
    return Exported({names.file: names.role, names.stamp_file: names.stamp_role}, {}, {"torch": version("torch")})


def write_package(parts: Sequence[Graph], path: Path) -> None:
    """Compile graphs and put them into one package, by their roles.

    Raises: UnavailableError without a C++ compiler; SamxError when the compiler fails.
    """
    from torch._inductor.package.package import package_aoti

    _require_compiler()
    with _compiling():
        package_aoti(str(path), {part.role: _compile(part) for part in parts})


def _require_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as cause:
        raise UnavailableError(
            "target 'aoti' needs a C++ compiler", found="none that works", fix="Install g++, or name a compiler in CXX."
        ) from cause


def _compile(part: Graph) -> Any:
    import torch

    from samx.models.graph import dynamic_shapes, examples

    given = examples(part.inputs)
    # Deferred: of strides in the low-rank form the tracer cannot prove what holds for every number of points.
    program = torch.export.export(
        part.module.eval(), given, dynamic_shapes=(dynamic_shapes(part.inputs),),
        prefer_deferred_runtime_asserts_over_guards=True,
    )  # fmt: skip
    return torch._inductor.aot_compile(program.module(), given, options=INDUCTOR)


@contextlib.contextmanager
def _compiling() -> Iterator[None]:
    """Compile in a directory of its own: the usual one has a name that others on the machine could have taken."""
    import torch
    from torch._inductor.exc import CppCompileError, InductorError
    from torch._inductor.utils import fresh_cache

    try:
        with (
            tempfile.TemporaryDirectory(prefix="samx-aoti-") as folder, silent("torch._inductor.utils"),
            fresh_cache(dir=folder), torch.no_grad(),
        ):  # fmt: skip
            yield
    except (CppCompileError, InductorError) as cause:
        lines = [line for line in str(cause).splitlines() if "error:" in line] or [str(cause).strip().splitlines()[-1]]
        raise SamxError("the C++ compiler refuses the graph", found=lines[0], fix="Please report this.") from cause
