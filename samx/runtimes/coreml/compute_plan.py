"""Ask Core ML which Mac this is, where it means to run each operation of a function, and what that is to cost."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from samx.artifacts.commit import write_file
from samx.artifacts.manifest import Evidence, Lowered, Manifest, utc_now
from samx.artifacts.store import Artifact
from samx.artifacts.strict_json import Document
from samx.errors import ArtifactError, UnavailableError
from samx.formats.coreml.contract import contract_of, functions_of
from samx.formats.coreml.package import SINGLE_FUNCTION, PackageFiles, package_from_directory, read_package, unpacked
from samx.formats.coreml.program import open_coremltools, operations, parse_model

if TYPE_CHECKING:
    from coremltools.models import compute_plan as ct_plan


PLAN_FILE, PLAN_ROLE = "compute_plan.json", "compute_plan"
UNITS = "CPU_AND_NE"  # of coremltools' ComputeUnit: what the packages are made for
PURPOSE = "a compute plan"
INSTEAD = "What there is here is the lint of the program, neural_engine_lint.json: known rules, no plan."
COMPILED = ".mlmodelc"
DIGITS = 4  # of a cost in percent
PLAN_MACOS, MULTIFUNCTION_MACOS = (14, 4), (15, 0)  # the first that make compute plans; that have several functions
SYSCTL = "/usr/sbin/sysctl"
EVALUATE = "'samx validate DIR' (device cpu) evaluates the saved program here."
ENGINE, GPU, CPU = "ANE", "GPU", "CPU"
DEVICES = (ENGINE, GPU, CPU)
CLASSES: Mapping[str, str] = {
    "MLNeuralEngineComputeDevice": ENGINE,
    "MLGPUComputeDevice": GPU,
    "MLCPUComputeDevice": CPU,
}

Progress = Callable[[str], None]


def is_mac() -> bool:
    """Tell whether Core ML can be here."""
    return platform.system() == "Darwin"


def require_macos(what: str, minimum: tuple[int, ...], instead: str) -> None:
    """Check that this is a Mac, and new enough.

    Raises: UnavailableError saying what there is instead.
    """
    version, found = ".".join(map(str, minimum)), platform.mac_ver()[0]
    if not is_mac():
        raise UnavailableError(f"{what} needs a Mac", found=platform.system(), expected=f"macOS {version}", fix=instead)
    if tuple(map(int, re.findall(r"\d+", found))) < minimum:
        raise UnavailableError(
            f"{what} needs a newer macOS", found=f"macOS {found}", expected=f"{version} or newer", fix=instead
        )


def require_prediction(functions: Collection[str]) -> None:
    """Check that Core ML can run a package with these functions here.

    Raises: UnavailableError.
    """
    require_macos("a prediction by Core ML", PLAN_MACOS, EVALUATE)
    if set(functions) != {SINGLE_FUNCTION}:
        require_macos("a package of several functions", MULTIFUNCTION_MACOS, f"Export with --ios 16. {EVALUATE}")


def chip() -> str:
    """Name the processor, as the system does."""
    try:
        words = [SYSCTL, "-n", "machdep.cpu.brand_string"]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or "unknown"
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def device_word(device: object) -> str:
    """Name a compute device by its class; coremltools has three."""
    return CLASSES.get(type(device).__name__, "unknown")


def machine_facts(library: ModuleType) -> dict[str, str]:
    """Return what a plan or a run holds for."""
    return {"chip": chip(), "macos": platform.mac_ver()[0] or "unknown", "coremltools": str(library.__version__)}


@dataclass(frozen=True)
class Planned:
    """Describe where one operation shall run, as WhisperKit's compute plan files do."""

    dispatch: str
    supported: tuple[str, ...]
    cost: float | None  # percent of what all operations are estimated to cost


@dataclass(frozen=True)
class ComputePlan(Document):
    """Describe the plan of a function. Stored weights are no operations; of the unplanned ones Core ML says nothing.

    As JSON, `operations` has the shape of WhisperKit's `*.mlcomputeplan.json`.
    """

    HEADER = {
        "kind": "compute plan", "schema_version": 1,
        "shows": "where Core ML means to run each operation on the named machine; planned before a run, "
        "not observed in one",
    }  # fmt: skip
    DERIVED = ("dispatch", "residency")

    function: str
    compute_units: str
    machine: Mapping[str, str]
    constants: int
    operations: Mapping[str, Planned]  # by place, operator and input names
    unplanned: tuple[str, ...] = ()

    @property
    def dispatch(self) -> Mapping[str, int]:
        """Count the operations by the device that shall run them."""
        counts = Counter(planned.dispatch for planned in self.operations.values())
        return {device: counts[device] for device in DEVICES}

    @property
    def total(self) -> int:
        """Count the operations, the unplanned too."""
        return len(self.operations) + len(self.unplanned)

    @property
    def residency(self) -> dict[str, float | None]:
        """Return the Neural Engine's share of the operations, and of their cost; None where no cost is estimated."""
        costs = [(planned.dispatch, planned.cost) for planned in self.operations.values() if planned.cost is not None]
        whole, on_engine = (sum(cost for device, cost in costs if device in of) for of in (DEVICES, (ENGINE,)))
        share = self.dispatch[ENGINE] / self.total if self.total else 0.0
        return {"operations": share, "cost": on_engine / whole if whole else None}

    def lines(self) -> list[str]:
        """Summarise for a terminal."""
        share = self.residency
        cost = "no estimated cost" if share["cost"] is None else f"{share['cost']:.1%} of the estimated cost"
        counts = ", ".join(f"{device} {count}" for device, count in self.dispatch.items())
        head = f"{self.function}: {share['operations']:.1%} of {self.total} operations and {cost} on the Neural Engine"
        return [f"{head} ({counts})"]


def compute_plan(path: Path, function: str, compute_units: str) -> ComputePlan:
    """Get the plan of a function of a package, or of the default function of a compiled model.

    Raises: UnavailableError on anything but a Mac that makes plans; ArtifactError for what Core ML does not take.
    """
    library = _open()
    if path.suffix == COMPILED:
        return _plan(library, path, function, compute_units)
    return package_plan(package_from_directory(path), function, compute_units)


def package_plan(files: PackageFiles, function: str, compute_units: str) -> ComputePlan:
    """Get the plan of a function of a package in memory.

    Raises: as compute_plan().
    """
    library = _open()
    with unpacked(_with_default(files, function)) as path, _compiled(library, path) as compiled:
        return _plan(library, compiled, function, compute_units)


def _with_default(files: PackageFiles, function: str) -> PackageFiles:
    """Make a function the default one: coremltools cannot name the function whose plan it asks for.

    Raises: ArtifactError when the package has no such function.
    """
    spec = parse_model(files.model, PURPOSE)
    names = [entry.name for entry in spec.description.functions]
    if function not in (names or [SINGLE_FUNCTION]):
        raise ArtifactError("the package has no such function", found=function, expected=", ".join(names))
    if not names:
        return files
    spec.description.defaultFunctionName = function
    return replace(files, files={**files.files, files.model_path: spec.SerializeToString()})


def _open() -> ModuleType:
    require_macos(PURPOSE, PLAN_MACOS, INSTEAD)
    return open_coremltools(PURPOSE)


@contextmanager
def _compiled(library: ModuleType, path: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="samx-", ignore_cleanup_errors=True) as folder:
        target = Path(folder) / f"model{COMPILED}"
        try:
            library.models.utils.compile_model(str(path), str(target))
        except RuntimeError as cause:
            raise ArtifactError("Core ML does not compile the package", found=cause, fix="Export it again.") from cause
        yield target


def _plan(library: ModuleType, compiled: Path, function: str, compute_units: str) -> ComputePlan:
    asked = _load(library, compiled, compute_units)
    named = _named(_block(asked, function))
    found = {name: _planned(asked, operation) for name, operation in named.items() if not _is_constant(operation)}
    planned = {name: entry for name, entry in found.items() if entry is not None}
    if not planned:
        raise UnavailableError(
            f"Core ML gives no plan for function {function}", found=f"{len(found)} operations, none planned"
        )
    unplanned = tuple(name for name in found if name not in planned)
    constants = len(named) - len(found)
    return ComputePlan(function, compute_units, machine_facts(library), constants, _in_percent(planned), unplanned)


def _block(asked: ct_plan.MLComputePlan, function: str) -> ct_plan.MLModelStructureProgramBlock:
    program: ct_plan.MLModelStructureProgram | None = asked.model_structure.program
    if program is None or function not in program.functions:
        found = "no program" if program is None else ", ".join(program.functions)
        raise ArtifactError("the compiled model has no such function", found=found, expected=function)
    return program.functions[function].block


def _load(library: ModuleType, compiled: Path, compute_units: str) -> ct_plan.MLComputePlan:
    try:
        units = library.ComputeUnit[compute_units]
        return library.models.compute_plan.MLComputePlan.load_from_path(str(compiled), units)
    except (RuntimeError, ValueError) as cause:
        raise UnavailableError("Core ML makes no compute plan here", found=cause, fix=INSTEAD) from cause


def _named(block: ct_plan.MLModelStructureProgramBlock) -> dict[str, ct_plan.MLModelStructureProgramOperation]:
    """Name every operation by its place, its operator and its inputs, as WhisperKit's files do."""
    return {_name(place, operation): operation for place, operation in enumerate(operations(block))}


def _name(place: int, operation: ct_plan.MLModelStructureProgramOperation) -> str:
    return "_".join([str(place), operation.operator_name, *operation.inputs])


def _is_constant(operation: ct_plan.MLModelStructureProgramOperation) -> bool:
    name = operation.operator_name.split(".")[-1]  # 'ios18.conv'
    return name == "const" or name.startswith("constexpr_")


def _planned(plan: ct_plan.MLComputePlan, operation: ct_plan.MLModelStructureProgramOperation) -> Planned | None:
    usage: ct_plan.MLComputePlanDeviceUsage | None = plan.get_compute_device_usage_for_mlprogram_operation(operation)
    cost: ct_plan.MLComputePlanCost | None = plan.get_estimated_cost_for_mlprogram_operation(operation)
    if usage is None:
        return None
    supported = tuple(device_word(device) for device in usage.supported_compute_devices)
    return Planned(device_word(usage.preferred_compute_device), supported, None if cost is None else cost.weight)


def _in_percent(entries: Mapping[str, Planned]) -> dict[str, Planned]:
    whole = sum(planned.cost or 0.0 for planned in entries.values())
    return {name: replace(planned, cost=_percent(planned.cost, whole)) for name, planned in entries.items()}


def _percent(cost: float | None, whole: float) -> float | None:
    return None if cost is None or not whole else round(100 * cost / whole, DIGITS)


def lower(directory: Path, manifest: Manifest, progress: Progress = lambda _: None) -> Lowered:
    """Compile every function of every package and write down the compute plans; the manifest lists what is there.

    Raises: UnavailableError off a Mac; ArtifactError for what Core ML does not take; WriteError.
    """
    require_prediction(functions_of(manifest.options, str(directory)).values())
    plans = list(_plans(Artifact(directory, manifest), progress))
    report = {
        "format": "samx-compute-plan", "schema_version": 1, "level": "lowered",
        "residency": {f"{folder}/{plan.function}": plan.residency["operations"] for folder, plan in plans},
        "plans": [{"package": folder, **plan.to_json()} for folder, plan in plans],
    }  # fmt: skip
    write_file(directory / PLAN_FILE, (json.dumps(report, indent=2, allow_nan=False) + "\n").encode())
    machine = plans[-1][1].machine
    device = f"{machine['chip']}, macOS {machine['macos']}"
    evidence = Evidence("lowered", PLAN_FILE, True, "Core ML compiler", device, utc_now())
    return Lowered({PLAN_FILE: PLAN_ROLE}, evidence, {"coremltools": machine["coremltools"], "macos": machine["macos"]})


def _plans(artifact: Artifact, progress: Progress) -> Iterator[tuple[str, ComputePlan]]:
    options, where = artifact.manifest.options, str(artifact.path)
    for signature in contract_of(options, where).signatures(artifact.manifest.spec):
        files = read_package(artifact, signature.folder)
        for function in functions_of(options, where).values():
            progress(f"Compiling {signature.folder}, {function}")
            yield signature.folder, package_plan(files, function, UNITS)
