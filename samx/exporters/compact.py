"""Write a checkpoint's own weights into ONNX graphs, and the products that make a graph's constants of them.

Those constants are larger than the weights, and many share one. Runtimes compute what depends on constants alone once,
when they load a graph, and run what they ran before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from samx.extras import require

if TYPE_CHECKING:
    import onnx

PREFIX = "made."  # of what is written in a constant's place
HANDED = "image_made_{}"  # what comes with an image, though it is the same for all
LEAST_BYTES = 16 * 1024  # of a weight that is not to be in two files
MOST_HANDED_BYTES = 256 * 1024  # of a constant that comes with an image: every call takes it in again


def made_of_weights(models: Sequence[onnx.ModelProto], makers: onnx.ModelProto) -> None:
    """Take constants out of graphs and put in what makes them: the outputs of `makers`, a graph without inputs.

    Of two graphs, what the first has the weights of comes from it, and is an input of the second.
    """
    makers = _prefixed(makers)
    if len(models) == 2:
        _hand_over(models[0], models[1], makers)
    for model in models:
        _replace(model, makers)


def _prefixed(makers: onnx.ModelProto) -> onnx.ModelProto:
    compose = require("onnx.compose", "export", "ONNX export")
    renamed: onnx.ModelProto = compose.add_prefix(makers, PREFIX, rename_outputs=False)
    return renamed


def _hand_over(image: onnx.ModelProto, prompt: onnx.ModelProto, makers: onnx.ModelProto) -> None:
    """Let the image graph return the prompt graph's constants that it has the weights of."""
    helper, known = require("onnx.helper", "export", "ONNX export"), _constants(image, makers)
    weights = _weights(makers, known)
    both = [
        tensor for name, tensor in _constants(prompt, makers).items()
        if len(tensor.raw_data) <= MOST_HANDED_BYTES and set() < _weights(makers, [name]) <= weights
    ]  # fmt: skip
    for number, tensor in enumerate(both):
        handed = HANDED.format(number)
        value = helper.make_tensor_value_info(handed, tensor.data_type, tensor.dims)
        prompt.graph.initializer.remove(tensor)
        prompt.graph.input.append(value)
        prompt.graph.node.insert(0, helper.make_node("Identity", [handed], [tensor.name]))
        image.graph.initializer.extend([] if tensor.name in known else [tensor])
        image.graph.node.append(helper.make_node("Identity", [tensor.name], [handed]))
        image.graph.output.append(value)


def _replace(model: onnx.ModelProto, makers: onnx.ModelProto) -> None:
    constants, graph = _constants(model, makers), model.graph
    part = _part(makers, constants)
    for tensor in constants.values():
        graph.initializer.remove(tensor)
    graph.initializer.extend(part.initializer)
    nodes = [*part.node, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _constants(model: onnx.ModelProto, makers: onnx.ModelProto) -> dict[str, Any]:
    """Return the constants of a graph that are made, by name."""
    made = {value.name for value in makers.graph.output}
    return {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in made}


def _weights(makers: onnx.ModelProto, names: Iterable[str]) -> set[str]:
    """Name the large weights that constants are made of."""
    return {tensor.name for tensor in _part(makers, names).initializer if len(tensor.raw_data) >= LEAST_BYTES}


def _part(makers: onnx.ModelProto, names: Iterable[str]) -> onnx.GraphProto:
    """Return what makes some constants."""
    utils = require("onnx.utils", "export", "ONNX export")
    part: onnx.GraphProto = utils.Extractor(makers).extract_model([], list(names)).graph
    return part
