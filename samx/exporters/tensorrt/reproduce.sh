#!/bin/sh
# Repeat this engine's build, and compare it with ONNX Runtime, with stock tools: no samx involved.
#   pip install polygraphy onnxruntime @{package}
#   sh reproduce.sh build ENGINE    build the engine and write it to the file ENGINE@{without_gpu}
#   sh reproduce.sh compare         build it, run it on this machine's GPU, compare with ONNX Runtime on the CPU
#   sh reproduce.sh @{command} ENGINE    build it with NVIDIA's own command-line tool
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
  sed -n '2,6p' reproduce.sh >&2
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

# Clicks in the frame with the labels that a decoder knows; random numbers would be prompts that nobody makes.
cat > "$work/prompts.py" <<'PY'
import numpy as np
SHAPES = @{shapes}
def load_data():
    random = np.random.default_rng(0)
    feed = {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    feed["point_coords"] = random.uniform(0, @{frame}, SHAPES["point_coords"]).astype(np.float32)
    feed["point_labels"] = random.choice([-1, 0, 1], SHAPES["point_labels"]).astype(np.float32)
    if "has_mask_input" in SHAPES:
        feed["has_mask_input"] = random.choice([0, 1], SHAPES["has_mask_input"]).astype(np.float32)
    yield feed
PY

build() {
  polygraphy convert @{model} --convert-to trt --strongly-typed \
    @{bounds} \
    --trt-config-postprocess-script "$work/exact.py:postprocess" \
    -o "$work/decoder.engine"
}

case "${1:-}" in
build)
  [ -n "$engine" ] || usage
  build
  mv "$work/decoder.engine" "$engine"
  ;;
compare)
  build
  polygraphy run @{model} --onnxrt \
    --data-loader-script "$work/prompts.py" \
    --save-inputs "$work/inputs.json" --save-outputs "$work/outputs.json"
  polygraphy run "$work/decoder.engine" --model-type engine --trt \
    --load-inputs "$work/inputs.json" \
    --load-outputs "$work/outputs.json" --validate --compare cosine_similarity \
    --cosine-similarity-threshold @{least_cosine}
  ;;
@{command})
  [ -n "$engine" ] || usage
  @{vendor}
  mv "$work/decoder.engine" "$engine"
  ;;
*)
  usage
  ;;
esac
