"""The Swift example beside a package: pick the function, fill up with empty slots, read the best mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import Template

from samx.formats.coreml.functions import SINGLE_FUNCTION
from samx.models.spec import PADDED_POINT, DecoderSpec, TensorSpec

SWIFT_FILE = "SamxDecoder.swift"
SCALARS: Mapping[str, str] = {"fp32": "Float", "fp16": "Float16", "int8": "Float16"}  # at the border

HEAD = Template("""\
// Made by samx beside its package. Add the package to the Xcode project, and this file.
// $about
import CoreML

enum SamxError: Error { case tooManyPoints(most: Int) }

/// A row of the prompt: pixels of the $size px frame, and a label: 1 object, 0 background, 2 and 3 box corners,
/// -1 SAM's padding, which $padding.
typealias SamxPoint = (x: Float, y: Float, label: $label)

final class SamxDecoder {
  static let functions: [(rows: Int, name: String)] = [$functions]
  private var loaded: [String: MLModel] = [:]  // the first call of each function loads it, which is slow
""")
LOAD = """
  private func model(_ url: URL, _ function: String) throws -> MLModel {
    let key = url.path + function
    if let model = loaded[key] { return model }
    let configuration = MLModelConfiguration()
    configuration.computeUnits = .cpuAndNeuralEngine
"""
NAMED = """\
    configuration.functionName = function
"""
LOADED = Template("""\
    loaded[key] = try MLModel(contentsOf: url, configuration: configuration)
    return loaded[key]!
  }

  /// Logits of the best of $masks masks, $side x $side row by row (over 0: object), and its predicted IoU.
""")
FILL = Template("""\
    guard let function = Self.functions.first(where: { $$0.rows >= points.count }) else {
      throw SamxError.tooManyPoints(most: Self.functions.last!.rows)
    }
    let empty = SamxPoint(x: 0, y: 0, label: $empty)  // no attention goes to such a row
    let rows = points + Array(repeating: empty, count: function.rows - points.count)
    let coords = MLShapedArray<Float>(scalars: rows.flatMap { [$$0.x, $$0.y] }, shape: [1, rows.count, 2])
    let labels = MLShapedArray<$label>(scalars: rows.map(\\.label), shape: [1, rows.count])
""")
READ = Template("""\
    let scores = MLShapedArray<$scalar>(output.featureValue(for: "$scores")!.multiArrayValue!).scalars
    let best = scores.indices.max { scores[$$0] < scores[$$1] }!
    let masks = MLShapedArray<$scalar>(output.featureValue(for: "low_res_masks")!.multiArrayValue!)
    return (masks[0][best].scalars, scores[best])
  }
}
""")
DECODE = {
    "samx": """\
  /// `features`: $features.
  func decode(_ package: URL, features: [String: MLMultiArray], points: [SamxPoint]) throws -> ([$scalar], $scalar) {
$fill    var inputs = features
    inputs["point_coords"] = MLMultiArray(coords)
    inputs["point_labels"] = MLMultiArray(labels)
    let output = try model(package, function.name)
      .prediction(from: MLDictionaryFeatureProvider(dictionary: inputs))
""",
    "apple": """\
  /// `features`: $features.
  func decode(
    _ promptEncoder: URL, _ maskDecoder: URL, features: [String: MLMultiArray], points: [SamxPoint]
  ) throws -> ([$scalar], $scalar) {
$fill    let prompt = ["points": MLMultiArray(coords), "labels": MLMultiArray(labels)]
    let encoded = try model(promptEncoder, function.name)
      .prediction(from: MLDictionaryFeatureProvider(dictionary: prompt))
    var inputs = features
    inputs["sparse_embedding"] = encoded.featureValue(for: "sparse_embeddings")!.multiArrayValue!
    inputs["dense_embedding"] = encoded.featureValue(for: "dense_embeddings")!.multiArrayValue!
    let output = try model(maskDecoder, function.name)
      .prediction(from: MLDictionaryFeatureProvider(dictionary: inputs))
""",
}
PADDING = {
    ("samx", "sam1"): "a prompt without a box ends with",
    ("samx", "sam2"): "every prompt ends with",
    ("apple", "sam2"): "the prompt encoder adds itself",
}


def swift_source(
    spec: DecoderSpec, contract: str, precision: str, functions: Mapping[str, int], features: Sequence[TensorSpec]
) -> str:
    """Write the example for one export; `functions` gives each function's rows as the app counts them."""
    scalar, label = SCALARS[precision], "Int32" if contract == "apple" else "Float"
    words = {
        "about": f"{spec.family}, {precision}, contract {contract}; up to {max(functions.values())} rows a prompt.",
        "size": spec.image_size, "padding": PADDING[contract, spec.family], "label": label, "scalar": scalar,
        "functions": ", ".join(f'({rows}, "{name}")' for name, rows in sorted(functions.items(), key=lambda f: f[1])),
        "masks": spec.masks_out, "side": spec.mask_size, "empty": PADDED_POINT,
        "scores": "scores" if contract == "apple" else "iou_predictions", "features": _words(features),
    }  # fmt: skip
    words["fill"] = FILL.substitute(words)
    named = "" if SINGLE_FUNCTION in functions else NAMED
    parts = [HEAD, Template(LOAD.replace("$", "$$")), Template(named), LOADED, Template(DECODE[contract]), READ]
    return "".join(part.substitute(words) for part in parts)


def _words(features: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{t.name} {t.dtype} {'x'.join(map(str, t.shape))}" for t in features)
