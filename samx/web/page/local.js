// The model in this browser: its graphs run by onnxruntime-web, on WebGPU or else on the processor.

import { download } from "./download.js";
import { frameOf, toLevels } from "./picture.js";
import { tokens } from "./prompts.js";

const MOST_THREADS = 8; // more cost more in waiting than they save in sums of this size
const MIB = 2 ** 20;

export class LocalEngine {
  // `asked`: webgpu or wasm, where the address says so.
  static async open(site, asked, progress) {
    const where = await placeFor(site, asked), engine = new LocalEngine(site, where);
    await engine.load(progress);
    return engine;
  }

  constructor(site, where) {
    Object.assign(this, { site, where: where.words, note: where.note, device: where.device, threads: where.threads, state: {} });
  }

  async load(progress) {
    const { graphs, runtime } = this.site, files = [runtime[this.device].wasm, ...graphs];
    const total = files.reduce((sum, file) => sum + file.bytes, 0);
    let loaded = 0;
    const arrived = (count) => progress("Loading the model", (loaded += count), total);
    const [wasm, ...models] = await Promise.all(files.map((file) => download(file, arrived)));
    progress("Preparing the model", 0, 0);
    this.ort = await this.started(runtime[this.device], wasm);
    this.sessions = [];
    for (const [i, model] of models.entries()) this.sessions.push(await this.session(model, i < models.length - 1));
  }

  async started(files, wasm) {
    const address = (file) => new URL(file, import.meta.url).href;
    const ort = await import(address(files.main));
    ort.env.wasm.wasmPaths = { mjs: address(files.glue), wasm: address(files.wasm.file) };
    ort.env.wasm.wasmBinary = wasm.buffer;
    ort.env.wasm.numThreads = this.threads;
    ort.env.logLevel = "error";
    return ort;
  }

  // What the graphs of a picture hand on stays where it was computed.
  async session(model, isKept) {
    const options = { executionProviders: [this.device], logSeverityLevel: 3 };
    if (this.device === "webgpu" && isKept) options.preferredOutputLocation = "gpu-buffer";
    return this.ort.InferenceSession.create(model, options);
  }

  async encode({ read, width, height }) {
    const { frame: rules, picture } = this.site, { Tensor } = this.ort, side = picture.size_px;
    const frame = frameOf(rules, width, height, side);
    const feed = { picture: new Tensor(picture.type, toLevels(read, frame, rules), [1, side, side, 3]) };
    if (picture.valid) feed.valid = new Tensor("int32", Int32Array.of(frame.validHeight, frame.validWidth), [1, 2]);
    const start = performance.now();
    const found = await this.inTurn(feed, this.sessions.slice(0, -1));
    this.forget();
    this.state = found;
    return performance.now() - start;
  }

  // Run graphs one after the other, each on what there is by then; return what the last graph of all takes of it.
  async inTurn(feed, sessions) {
    const pool = { ...feed }, needed = new Set(this.sessions.at(-1).inputNames);
    for (const session of sessions) Object.assign(pool, await session.run(pick(pool, session.inputNames)));
    for (const [name, tensor] of Object.entries(pool)) if (!needed.has(name)) tensor.dispose?.();
    return pick(pool, [...needed].filter((name) => name in pool));
  }

  // `previous`: the logits of the mask that a prompt refines, or null.
  async decode(prompt, frame, previous) {
    const { Tensor } = this.ort, { prompts, masks } = this.site, { coords, labels } = tokens(prompts, frame, prompt);
    const feed = {
      ...this.state, point_coords: new Tensor("float32", coords, [1, labels.length, 2]),
      point_labels: new Tensor("float32", labels, [1, labels.length]),
    };
    if (prompts.mask_input) {
      const limit = prompts.mask_limit ?? Infinity, logits = previous ?? new Float32Array(masks.side ** 2);
      const sent = logits.map((value) => Math.min(Math.max(value, -limit), limit));
      feed.mask_input = new Tensor("float32", sent, [1, 1, masks.side, masks.side]);
      feed.has_mask_input = new Tensor("float32", Float32Array.of(previous ? 1 : 0), [1]);
    }
    const found = await this.sessions.at(-1).run(feed);
    return { scores: await found.iou_predictions.getData(), logits: await found.low_res_masks.getData() };
  }

  forget() {
    for (const tensor of Object.values(this.state)) tensor.dispose?.();
    this.state = {};
  }
}

function pick(pool, names) {
  return Object.fromEntries(names.filter((name) => name in pool).map((name) => [name, pool[name]]));
}

// Choose where to run: WebGPU where there is a real one whose buffers hold the largest tensor, else the processor.
async function placeFor(site, asked) {
  const threads = globalThis.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, MOST_THREADS) : 1;
  const wasm = { device: "wasm", threads, words: `this processor, ${threads === 1 ? "one thread" : `${threads} threads`}`, note: "" };
  if (asked === "wasm") return wasm;
  const reason = await againstWebGpu(site, asked === "webgpu");
  if (reason === null) return { device: "webgpu", threads: 1, words: "WebGPU", note: "" };
  return { ...wasm, note: reason && `WebGPU is not used: ${reason}` };
}

// Say why WebGPU is not taken: null where it is, "" where there is none.
async function againstWebGpu(site, isAsked) {
  const adapter = await globalThis.navigator.gpu?.requestAdapter().catch(() => null);
  if (!adapter) return isAsked ? "this browser has none." : "";
  if (site.webgpu && !isAsked) return site.webgpu;
  if ((adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter) && !isAsked) return "this browser computes it on the processor.";
  if (site.half && !adapter.features.has("shader-f16")) return "it has no 16-bit numbers here (shader-f16).";
  const most = Math.min(adapter.limits.maxBufferSize, adapter.limits.maxStorageBufferBindingSize);
  const largest = site.graphs.reduce((a, b) => (a.largest_tensor_bytes > b.largest_tensor_bytes ? a : b));
  if (largest.largest_tensor_bytes <= most) return null;
  return `${largest.file} needs a buffer of ${Math.ceil(largest.largest_tensor_bytes / MIB)} MiB, and it has at most ${Math.floor(most / MIB)} MiB here.`;
}
