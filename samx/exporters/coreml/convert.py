"""PyTorch modules to Core ML packages: a program of fixed shapes a function, all of them over one set of weights.

Weights may be smaller, 8-bit linear or palettes. Arithmetic stays float16.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samx.errors import UsageError
from samx.extras import require, silent
from samx.formats.coreml.contract import Signature, sized
from samx.formats.coreml.package import SINGLE_FUNCTION
from samx.formats.coreml.program import LIBRARY, open_coremltools, parse_model, program_of

PURPOSE, PALETTE_EXTRA = "exporting Core ML packages", "coreml-palettes"
SMALLEST = 2048  # elements of a weight that is worth a scale or a palette
# Left in float16: a twelfth of the weights, in which 8 bits cost the masks more than in all others together. Their
# errors reach all image tokens at once (docs/devices/apple.md has the figures).
SPARED = re.compile(r"(^|\.)(image_to_token|planes)\.")
SEED = 0  # of the clustering, so that an export can be repeated


# coremltools' graph pass, its class of settings, and these.
COMPRESSIONS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "linear8": (
        "compression::linear_quantize_weights", "OpLinearQuantizerConfig",
        {"mode": "linear_symmetric", "dtype": "int8", "granularity": "per_channel"},
    ),
    # The palette is found before conversion, once for all functions: here it is only read off.
    "palette8": ("compression::palettize_weights", "OpPalettizerConfig", {"mode": "unique"}),
}  # fmt: skip
PALETTE_BITS: Mapping[str, int] = {"palette8": 8}  # of a palette's entries
DTYPES: Mapping[str, tuple[torch.dtype, type[np.generic]]] = {
    "float32": (torch.float32, np.float32),
    "float16": (torch.float16, np.float16),
    "int32": (torch.int32, np.int32),
}
GELUS: Mapping[str, str] = {"none": "EXACT", "tanh": "TANH_APPROXIMATION"}  # as Core ML calls PyTorch's
# The image tokens' positions are products of small tables; folded they would be 2 MiB a package.
LARGEST_FOLDED = "10000"
# Its batch norms mix float32 statistics with float16 tensors, which Core ML's own check refuses (coremltools 9.0).
BROKEN_PASS = "common::fuse_elementwise_to_batchnorm"
MODEL, WEIGHTS = "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"


def check_compression(name: str) -> None:
    """Check that samx knows this way to store weights, and that it can be done here.

    Raises: UsageError; MissingExtraError.
    """
    if name not in COMPRESSIONS:
        raise UsageError("unknown way to store weights", found=repr(name), expected=" or ".join(COMPRESSIONS))
    if name in PALETTE_BITS:
        require("sklearn", PALETTE_EXTRA, f"weights as {name}")


def prepare(module: nn.Module, name: str) -> None:
    """Bring each weight that is stored by a palette to its values; linear weights need no preparation."""
    bits = PALETTE_BITS.get(name)
    for path, conv in _large(module):
        if bits is not None and not SPARED.search(path):
            conv.weight.data = _clustered(conv.weight.detach(), bits)


def spared(module: nn.Module) -> list[str]:
    """Name the weights that keep their type, as the converter names them."""
    return [f"p_{path.replace('.', '_')}_weight" for path, _ in _large(module) if SPARED.search(path)]


def _large(module: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    for path, part in module.named_modules():
        if isinstance(part, nn.Conv2d) and part.weight.numel() >= SMALLEST:
            yield path, part


def _clustered(weight: Tensor, bits: int) -> Tensor:
    """Replace each value by the centre of its cluster, as many clusters as a palette has entries."""
    cluster = require("sklearn.cluster", PALETTE_EXTRA, "palettes of weights")
    values = weight.flatten().float().unsqueeze(1).numpy()
    means = cluster.KMeans(2**bits, n_init=1, random_state=SEED).fit(values)
    centres = torch.from_numpy(means.cluster_centers_[:, 0]).to(weight.dtype)
    return centres[torch.from_numpy(means.labels_).long()].reshape(weight.shape)


def add_compression(pipeline: Any, name: str, kept: Collection[str]) -> None:
    """Let a pipeline end with compressing the weights of convolutions, but for those that are kept."""
    _append(
        pipeline, name, lambda config: {"op_type_configs": {"conv": config}, "op_name_configs": dict.fromkeys(kept)}
    )


def add_chosen(pipeline: Any, name: str, weights: Collection[str]) -> None:
    """Let a pipeline end with compressing these weights, by the names of their constants, and no others."""
    _append(pipeline, name, lambda config: {"op_name_configs": dict.fromkeys(weights, config)})


def _append(pipeline: Any, name: str, choose: Callable[[Any], dict[str, Any]]) -> None:
    graph_pass, kind, settings = COMPRESSIONS[name]
    optimize = open_coremltools(PURPOSE).optimize.coreml
    config = getattr(optimize, kind)(weight_threshold=SMALLEST, **settings)
    pipeline.append_pass(graph_pass)
    pipeline.set_options(graph_pass, {"config": optimize.OptimizationConfig(**choose(config))})


def write_package(
    module: nn.Module, signature: Signature, functions: Mapping[str, Mapping[str, int]], default: str, path: Path, *,
    ios: int, weights: str | None, metadata: Mapping[str, str],
) -> None:  # fmt: skip
    """Convert a module once for each function's sizes and write one package; below iOS 18 it has one function."""
    models = ((name, convert(module, signature, sizes, ios, weights)) for name, sizes in functions.items())
    _write(models, default, path, metadata)


def write_single(make: Callable[[], Any], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a model, which is made in silence, as a package of one function."""
    _write(((SINGLE_FUNCTION, make()) for _ in range(1)), SINGLE_FUNCTION, path, metadata)


def rewrite_package(
    functions: Mapping[str, Any], default: str, path: Path, *, ios: int, metadata: Mapping[str, str]
) -> None:
    """Write MIL functions, as they are, in the place of a package."""
    models = ((name, _unchanged(function, ios)) for name, function in functions.items())
    _write(models, default, path, metadata)


def _write(models: Iterable[tuple[str, Any]], default: str, path: Path, metadata: Mapping[str, str]) -> None:
    """Save a model once a function, and join them; a model is made when its turn comes."""
    with _silent(), tempfile.TemporaryDirectory(prefix="samx-coreml-") as folder:
        parts: dict[str, Path] = {}
        for name, model in models:
            parts[name] = Path(folder, f"{name}.mlpackage")
            model.save(str(parts[name]))
        whole = Path(folder, "whole.mlpackage")
        _join(parts, default, whole)
        _finish(whole, path, metadata)


def _unchanged(function: Any, ios: int) -> Any:
    ct = open_coremltools(PURPOSE)
    return ct.convert(
        program_of({SINGLE_FUNCTION: function}, PURPOSE), convert_to="mlprogram", pass_pipeline=ct.PassPipeline.EMPTY,
        minimum_deployment_target=getattr(ct.target, f"iOS{ios}"), skip_model_load=True,
    )  # fmt: skip


def _register_operations() -> None:
    """Teach the converter the norm over channels, which is one operation of Core ML's, and which GELU is meant."""
    from coremltools.converters.mil import Builder, register_torch_op
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs, _get_kwinputs

    @register_torch_op(torch_alias=["samx::channel_norm"], override=True)  # type: ignore[untyped-decorator]
    def channel_norm(context: Any, node: Any) -> None:
        x, weight, bias, eps = _get_inputs(context, node, expected=4)
        epsilon = weight.val.dtype.type(eps.val)  # of the same type as the rest, or the converter refuses it
        context.add(Builder.layer_norm(x=x, axes=[1], gamma=weight, beta=bias, epsilon=epsilon, name=node.name))

    @register_torch_op(override=True)  # type: ignore[untyped-decorator]
    def gelu(context: Any, node: Any) -> None:
        """Convert a GELU; coremltools' own overlooks `approximate`, which torch.export gives by name."""
        (x,) = _get_inputs(context, node, expected=1)
        (way,) = _get_kwinputs(context, node, "approximate", default=["none"])
        context.add(Builder.gelu(x=x, mode=GELUS[getattr(way, "val", way)], name=node.name))


def _examples(signature: Signature, sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    """Make inputs of the right shapes; their values leave no trace in the program, which the gate proves."""
    return tuple(torch.ones(sized(tensor, sizes), dtype=DTYPES[tensor.dtype][0]) for tensor in signature.inputs)


def convert(
    module: nn.Module, signature: Signature, sizes: Mapping[str, int], ios: int, weights: str | None = None, *,
    precision: Any = None, images: Mapping[str, Any] | None = None,
) -> Any:  # fmt: skip
    """Convert a module for some sizes.

    precision: coremltools', where it chooses types; None leaves them as they were written.
    images: coremltools' types of inputs that are no arrays.
    """
    ct = open_coremltools(PURPOSE)
    examples, images = _examples(signature, sizes), images or {}
    _register_operations()
    return ct.convert(
        _traced(module, examples),
        inputs=[
            images.get(tensor.name)
            or ct.TensorType(tensor.name, shape=tuple(example.shape), dtype=DTYPES[tensor.dtype][1])
            for tensor, example in zip(signature.inputs, examples, strict=True)
        ],
        outputs=[ct.TensorType(tensor.name, dtype=DTYPES[tensor.dtype][1]) for tensor in signature.outputs],
        minimum_deployment_target=getattr(ct.target, f"iOS{ios}"),
        compute_precision=precision or ct.precision.FLOAT32,  # which means: leave the types as they were written
        pass_pipeline=_pipeline(module, weights),
        skip_model_load=True,
    )


def _pipeline(module: nn.Module, weights: str | None) -> Any:
    pipeline = open_coremltools(PURPOSE).PassPipeline.DEFAULT
    pipeline.remove_passes({BROKEN_PASS})
    pipeline.set_options("common::const_elimination", {"skip_const_by_size": LARGEST_FOLDED})
    if weights is not None:
        add_compression(pipeline, weights, spared(module))
    return pipeline


def _traced(module: nn.Module, examples: Sequence[Tensor]) -> Any:
    """Trace, and drop the nodes that carry no computation: the converter knows none of them, not even as outputs."""
    program = torch.export.export(module, tuple(examples)).run_decompositions({})
    graph, outputs = program.graph_module.graph, program.graph_signature.output_specs
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.alias.default:
            for output in (one for one in outputs if one.arg.name == node.name):
                output.arg.name = node.args[0].name
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)
    program.graph_module.recompile()
    return program


def _join(parts: Mapping[str, Path], default: str, path: Path) -> None:
    if list(parts) == [SINGLE_FUNCTION]:
        (single,) = parts.values()
        shutil.move(single, path)
        return
    utils: Any = open_coremltools(PURPOSE).utils
    functions = utils.MultiFunctionDescriptor()
    for name, part in parts.items():
        functions.add_function(str(part), SINGLE_FUNCTION, name)
    functions.default_function_name = default
    utils.save_multifunction(functions, str(path))


def _finish(source: Path, path: Path, metadata: Mapping[str, str]) -> None:
    """Keep what Core ML reads, with the metadata, and with names that depend on nothing but the content."""
    spec = parse_model((source / MODEL).read_bytes(), PURPOSE)
    for name, value in metadata.items():
        spec.description.metadata.userDefined[name] = value
    (path / WEIGHTS).parent.mkdir(parents=True, exist_ok=True)
    (path / MODEL).write_bytes(spec.SerializeToString(deterministic=True))
    (path / WEIGHTS).write_bytes((source / WEIGHTS).read_bytes())
    (path / "Manifest.json").write_text(_package_manifest(path.name), encoding="utf-8")


def _package_manifest(name: str) -> str:
    """Write what a `.mlpackage` directory says about itself."""
    items = {
        "model.mlmodel": ("CoreML Model Specification", "com.apple.CoreML/model.mlmodel"),
        "weights": ("CoreML Model Weights", "com.apple.CoreML/weights"),
    }
    ids = {item: str(uuid.uuid5(uuid.NAMESPACE_URL, f"samx/{name}/{item}")) for item in items}
    entries = {
        ids[item]: {"author": "com.apple.CoreML", "description": text, "name": item, "path": where}
        for item, (text, where) in items.items()
    }
    manifest = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": ids["model.mlmodel"]}
    return json.dumps(manifest, indent=4) + "\n"


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep the converter's notices from the user, and its progress bars, which know no other way to be silent."""
    with silent(LIBRARY), contextlib.redirect_stderr(io.StringIO()), torch.no_grad():
        yield
