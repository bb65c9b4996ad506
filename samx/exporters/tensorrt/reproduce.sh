#!/bin/sh
# Repeat this engine's build, and compare it with ONNX Runtime, with stock tools: no samx involved.
#   pip install polygraphy onnxruntime @{package}
#   sh @{script} build ENGINE    build the engine and write it to the file ENGINE@{without_gpu}
#   sh @{script} compare         build it, run it on this machine's GPU, compare with ONNX Runtime on the CPU
#   sh @{script} @{command} ENGINE    build it with NVIDIA's own command-line tool
set -eu
engine=${2:-}
case "$engine" in
''|/*) ;;
*) engine=$PWD/$engine ;;
esac
if [ -e "$engine" ]; then
  echo "$engine exists already; choose another name" >&2
  exit 7
fi
cd "$(dirname "$0")"
@{environment}work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

usage() {
  sed -n '2,6p' @{script} >&2
  exit 2
}

python3 - <<'PY'
import hashlib
found = hashlib.sha256(open('@{model}', "rb").read()).hexdigest()
assert found == '@{sha256}', f"@{model} is not the file that the engine was built from: {found}"
PY

# The types are those in the file. TF32 would shorten the float32 parts.
cat > "$work/exact.py" <<'PY'
import @{module} as trt
def postprocess(builder, network, config):
    config.clear_flag(trt.BuilderFlag.TF32)
PY

# Clicks in the frame with the labels that a decoder knows, or the levels of a picture; random numbers would be prompts
# and pictures that nobody makes.
cat > "$work/prompts.py" <<'PY'
import numpy as np
SHAPES = @{shapes}
TYPES = @{types}
def load_data():
    random = np.random.default_rng(0)
    feed = {name: random.standard_normal(shape) for name, shape in SHAPES.items()}
    if "point_coords" in SHAPES:
        feed["point_coords"] = random.uniform(0, @{frame}, SHAPES["point_coords"])
        feed["point_labels"] = random.choice([-1, 0, 1], SHAPES["point_labels"])
    if "has_mask_input" in SHAPES:
        feed["has_mask_input"] = random.choice([0, 1], SHAPES["has_mask_input"])
    if "picture" in SHAPES:
        feed["picture"] = random.integers(0, 256, SHAPES["picture"])
    if "valid" in SHAPES:
        feed["valid"] = np.full(SHAPES["valid"], SHAPES["picture"][1])
    yield {name: value.astype(TYPES[name]) for name, value in feed.items()}
PY

build() {
  polygraphy convert @{model} --convert-to trt --strongly-typed@{bounds} \
    --trt-config-postprocess-script "$work/exact.py:postprocess" \
    -o "$work/@{engine}"
}

case "${1:-}" in
build)
  [ -n "$engine" ] || usage
  build
  mv "$work/@{engine}" "$engine"
  ;;
compare)
  build
  polygraphy run @{model} --onnxrt \
    --data-loader-script "$work/prompts.py" \
    --save-inputs "$work/inputs.json" --save-outputs "$work/outputs.json"
  polygraphy run "$work/@{engine}" --model-type engine --trt \
    --load-inputs "$work/inputs.json" \
    --load-outputs "$work/outputs.json" --validate --compare cosine_similarity \
    --cosine-similarity-threshold @{least_cosine}
  ;;
@{command})
  [ -n "$engine" ] || usage
  @{vendor}
  mv "$work/@{engine}" "$engine"
  ;;
*)
  usage
  ;;
esac
