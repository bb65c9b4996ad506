// Answer prompts with transformers.js's own classes, with one decoder and another in turn: JSON in, JSON out.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const given = JSON.parse(readFileSync(0, "utf8"));
const require = createRequire(join(given.modules, "package.json"));
const { AutoProcessor, RawImage, Sam2Model, SamModel, env } = require("@huggingface/transformers");
const { InferenceSession } = require("onnxruntime-node");
Object.assign(env, { allowRemoteModels: false, localModelPath: given.root });

const TYPES = { sam1: SamModel, sam2: Sam2Model };
const picture = await RawImage.read(given.picture);

// Open a folder as a model: a prompt -> masks at the picture's size.
async function opened(folder) {
  const model = await TYPES[given.family].from_pretrained(folder, { dtype: "fp32", device: "cpu" });
  const processor = await AutoProcessor.from_pretrained(folder), pictures = processor.image_processor;
  const { pixel_values, original_sizes, reshaped_input_sizes } = await processor(picture);
  const embeddings = await model.get_image_embeddings({ pixel_values });
  return async ([points, labels]) => {
    const input_points = pictures.reshape_input_points([[points]], original_sizes, reshaped_input_sizes);
    const input_labels = pictures.add_input_labels([[labels]], input_points);
    const { pred_masks } = await model({ ...embeddings, input_points, input_labels });
    const [masks] = await processor.post_process_masks(pred_masks, original_sizes, reshaped_input_sizes);
    return masks;
  };
}

// Return the masks of a tensor (1, M, H, W), each as bytes.
function apart({ data, dims }) {
  const [, masks, height, width] = dims;
  return Array.from({ length: masks }, (_, i) => data.subarray(i * height * width, (i + 1) * height * width));
}

function iou(one, other) {
  let both = 0, either = 0;
  for (let i = 0; i < one.length; i++) (both += one[i] & other[i]), (either += one[i] | other[i]);
  return either ? both / either : 1;
}

const least = (one, other) => Math.min(...apart(one).map((mask, i) => iou(mask, apart(other)[i])));
const pixels = (masks) => apart(masks).map((mask) => mask.reduce((sum, value) => sum + value, 0));

function median(values) {
  const sorted = values.toSorted((a, b) => a - b), half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

// Every run of a decoder adds its time; transformers.js resizes by sessions too.
let spent = 0;
const { run } = InferenceSession.prototype;
InferenceSession.prototype.run = async function (...args) {
  const start = performance.now(), found = await run.apply(this, args);
  if (this.inputNames.includes("input_points")) spent += performance.now() - start;
  return found;
};

const names = Object.keys(given.decoders), models = {}, answers = {}, times = {}, runs = {}, own = {};
for (const name of names) {
  models[name] = await opened(given.decoders[name]);
  [answers[name], times[name], runs[name], own[name]] = [[], [], [], []];
  for (const prompt of given.prompts) answers[name].push(await models[name](prompt));
}
for (let i = 0; i < given.rounds; i++)
  for (const prompt of given.prompts)
    for (const name of i % 2 ? names.toReversed() : names) {
      spent = 0;
      const start = performance.now();
      await models[name](prompt);
      const took = performance.now() - start;
      times[name].push(took), runs[name].push(spent), own[name].push(took - spent);
    }
const medians = (all) => Object.fromEntries(names.map((name) => [name, median(all[name])]));
const [ours, theirs] = names.map((name) => answers[name]);
console.log(JSON.stringify({
  version: env.version, runtime: `Node.js ${process.versions.node}`,
  mask_iou: ours.map((masks, i) => least(masks, theirs[i])), mask_pixels: ours.map(pixels),
  median_ms: medians(times), run_ms: medians(runs), own_ms: medians(own),
}));
