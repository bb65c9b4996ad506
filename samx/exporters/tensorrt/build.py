"""Build an engine from an ONNX file and a plan: strongly typed, one profile, everything read back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from samx.artifacts.trust import cache_path, read_cached, write_cached
from samx.errors import ArtifactError, UnavailableError
from samx.formats.tensorrt.engine import (
    CAPABILITIES,
    Understood,
    limits_of,
    mismatches,
    network_ports,
    shape_tensors,
)
from samx.formats.tensorrt.library import SHOWN_CHARACTERS, Message, Opened, concerns, first_error
from samx.formats.tensorrt.plan import EnginePlan
from samx.formats.tensorrt.stamp import Gpu

if TYPE_CHECKING:
    import tensorrt_rtx as trt


REMEDY = "Export again with this version of samx; if it stays, please report it."


def build_engine(
    onnx: bytes, plan: EnginePlan, opened: Opened, gpu: Gpu | None = None, *, path: Path | None = None,
    memory: int | None = None,
) -> tuple[bytes, Understood, str | None]:  # fmt: skip
    """Build an engine; return it with what the library understood before, and the state of its timing cache, if any.

    What the library said is in opened.messages. Without a GPU it builds only where it can do that. `path` is where the
    file lies, for weights beside it; `memory` caps what the builder may use beside the weights, in bytes.

    Raises: ArtifactError when the library refuses the file, understands something else than the plan says, or warns
    about precision or shapes; UnavailableError when it needs a GPU.
    """
    if gpu is None and not plan.library.builds_without_gpu:
        raise UnavailableError(f"{plan.library.title} builds only on the GPU that runs the engine", found="no GPU")
    module, messages = opened.module, opened.messages
    messages.clear()
    try:
        builder: trt.Builder = module.Builder(opened.logger)
    except TypeError as cause:  # the bindings' way to say that the library gave no builder
        raise UnavailableError(f"{plan.library.title} cannot start here", found=first_error(messages)) from cause
    flag = _strongly_typed(module)
    network: trt.INetworkDefinition = builder.create_network(0 if flag is None else 1 << int(flag))
    parser: trt.OnnxParser = module.OnnxParser(network, opened.logger)  # owns the weights until the engine is there
    _parse(parser, onnx, plan, messages, path)
    config: trt.IBuilderConfig = builder.create_builder_config()
    configure(config, plan, module, memory)
    profile: trt.IOptimizationProfile = builder.create_optimization_profile()
    _set_profile(profile, plan)
    understood = _understood(network, config, profile, module, plan)
    if wrong := mismatches(understood, plan):
        what = f"{plan.library.title} understood '{plan.model}' otherwise than the plan says"
        raise ArtifactError(what, found="; ".join(wrong), fix=REMEDY)
    if config.add_optimization_profile(profile) != 0 or config.num_optimization_profiles != 1:
        raise ArtifactError(f"{plan.library.title} refuses the profile", found=first_error(messages), fix=REMEDY)
    engine, cache = _built(builder, network, config, plan, module, gpu, messages)
    if plan.library.warnings_fail and (warned := concerns(messages)):
        what, expected = f"{plan.library.title} warns about '{plan.model}'", "no warning about precision or shapes"
        raise ArtifactError(what, found=warned[0][:SHOWN_CHARACTERS], expected=expected, fix=REMEDY)
    return engine, understood, cache


def _strongly_typed(module: ModuleType) -> trt.NetworkDefinitionCreationFlag | None:
    """Find the flag. Where a version has dropped it, every network is strongly typed."""
    flags = getattr(module, "NetworkDefinitionCreationFlag", None)
    return getattr(flags, "STRONGLY_TYPED", None)


def _parse(
    parser: trt.OnnxParser, onnx: bytes, plan: EnginePlan, messages: Sequence[Message], path: Path | None
) -> None:
    if parser.parse(onnx, None if path is None else str(path)):
        return
    found = _parser_error(parser.get_error(0)) if parser.num_errors else first_error(messages)
    raise ArtifactError(f"{plan.library.title} cannot read '{plan.model}'", found=found, fix=REMEDY)


def _parser_error(error: trt.ParserError) -> str:
    """Name the operator and the reason; the parser's own text goes on over many lines."""
    operator, node = str(error.node_operator() or ""), str(error.node_name() or "")
    where = f"{operator} {node}".strip()
    reason = " ".join(str(error.desc()).split())[:SHOWN_CHARACTERS]
    return f"{where}: {reason}" if where else reason


def _set_profile(profile: trt.IOptimizationProfile, plan: EnginePlan) -> None:
    for name, limits in plan.profile.items():
        profile.set_shape(name, *limits)


def configure(config: trt.IBuilderConfig, plan: EnginePlan, module: ModuleType, memory: int | None = None) -> None:
    """Set what the types in the file, the plan and the caller's memory say; memory in bytes."""
    if memory is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, memory)
    config.clear_flag(module.BuilderFlag.TF32)  # the types are those in the file
    capabilities = CAPABILITIES[plan.compute]
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
    for i, name in enumerate(capabilities):
        config.set_compute_capability(getattr(module.ComputeCapability, name), i)


def _understood(
    network: trt.INetworkDefinition, config: trt.IBuilderConfig, profile: trt.IOptimizationProfile, module: ModuleType,
    plan: EnginePlan,
) -> Understood:  # fmt: skip
    """Read back what the library holds now. Nothing is taken from the plan but the names to ask for."""
    flag = _strongly_typed(module)
    inputs, outputs = network_ports(network)
    limits = {name: limits_of(profile.get_shape(name)) for name in plan.profile}
    count = config.num_compute_capabilities if CAPABILITIES[plan.compute] else 0  # TensorRT proper has no such setting
    return Understood(
        inputs=inputs, outputs=outputs, shape_tensors=shape_tensors(network),
        profiles=(limits,),
        strongly_typed=flag is None or bool(network.get_flag(flag)),
        tf32=bool(config.get_flag(module.BuilderFlag.TF32)),
        compute_capabilities=tuple(config.get_compute_capability(i).name for i in range(count)),
    )  # fmt: skip


def _built(
    builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig, plan: EnginePlan,
    module: ModuleType, gpu: Gpu | None, messages: Sequence[Message],
) -> tuple[bytes, str | None]:  # fmt: skip
    """Run the builder, with a timing cache where the library has one."""
    cache = None
    if plan.library.has_timing_cache and gpu is not None:
        path = cache_path("timing", plan.target, str(module.__version__), f"{gpu.name} {gpu.compute_capability}")
        cache = _attach(config, path)
    engine: trt.IHostMemory | None = builder.build_serialized_network(network, config)
    if engine is None:
        raise ArtifactError(
            f"{plan.library.title} cannot build '{plan.model}'", found=first_error(messages), fix=REMEDY
        )
    if cache is not None:
        problem = _keep(config, path)
        cache = cache if problem is None else f"{cache}, not kept: {problem}"
    return bytes(memoryview(engine)), cache


def _attach(config: trt.IBuilderConfig, path: Path | None) -> str:
    """Let the builder start from the kept timing cache, or from an empty one; returns which."""
    for data, words in ((read_cached(path), "kept"), (b"", "new")):
        if data is not None:
            cache: trt.ITimingCache | None = config.create_timing_cache(data)
            if cache is not None and config.set_timing_cache(cache, False):
                return words
    return "refused"


def _keep(config: trt.IBuilderConfig, path: Path | None) -> str | None:
    """Write what the builder learnt about this GPU's kernels; returns why it could not."""
    cache: trt.ITimingCache | None = config.get_timing_cache()
    return "the library gave none" if cache is None else write_cached(path, bytes(memoryview(cache.serialize())))
