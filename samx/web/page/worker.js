// The worker: all that takes time happens here, so that the page never freezes. Messages are answered in turn.

import { LocalEngine } from "./local.js";
import { extent, painted, pictureMask } from "./masks.js";
import { frameOf } from "./picture.js";
import { RemoteEngine } from "./remote.js";

const VIEW_PX = { least: 800, most: 1600 }; // longest side of what is shown
const STRIP = 512; // rows of a picture that are cut out together
const ENGINES = { local: LocalEngine, served: RemoteEngine };

let site, engine, shown = null, turns = Promise.resolve();

const JOBS = { open, picture, ask, save };

onmessage = ({ data: { id, job, ...given } }) => {
  turns = turns.then(() => JOBS[job](given)).then(
    ([answer, moved = []]) => postMessage({ id, answer }, moved),
    (error) => postMessage({ id, error: sentence(error) }),
  );
};

// Out of memory comes as a number from WebAssembly, and as a RangeError from the browser.
function sentence(error) {
  if (typeof error === "number" || error instanceof RangeError) return "There is not enough memory for this here. Close other pages, or take a smaller picture.";
  return error?.message || String(error);
}

async function open({ site: given, asked }) {
  site = given;
  engine = await ENGINES[site.mode].open(site, asked, (doing, done, total) => postMessage({ doing, done, total }));
  return [{ where: engine.where, note: engine.note }];
}

// Take a picture, and show it before the encoder runs.
async function picture({ file }) {
  forget();
  const bitmap = await decoded(file), { width, height } = bitmap, frame = frameOf(site.frame, width, height);
  const view = viewOf(width, height);
  const small = await createImageBitmap(bitmap, { resizeWidth: view.width, resizeHeight: view.height, resizeQuality: "high" });
  postMessage({ seen: { bitmap: small, width, height } }, [small]);
  const encoderMs = await engine.encode({ file, read: readerOf(bitmap), width, height });
  shown = { bitmap, frame, view };
  return [{ encoderMs }];
}

function forget() {
  shown?.bitmap.close();
  shown = null;
  engine.forget();
}

async function decoded(file) {
  try {
    return await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Error("This browser cannot read that picture. Save it as PNG or JPEG, or make it smaller.");
  }
}

function viewOf(width, height) {
  const longest = Math.max(width, height), scale = Math.min(Math.max(longest, VIEW_PX.least), VIEW_PX.most) / longest;
  return { width: Math.max(Math.round(width * scale), 1), height: Math.max(Math.round(height * scale), 1) };
}

// Read a picture's rows through a canvas of a strip's height: one of the whole picture is more than phones allow.
function readerOf(bitmap) {
  return (top, rows) => {
    const context = new OffscreenCanvas(bitmap.width, rows).getContext("2d", { alpha: false, willReadFrequently: true });
    context.drawImage(bitmap, 0, -top);
    return context.getImageData(0, 0, bitmap.width, rows).data;
  };
}

async function ask({ prompt, previous }) {
  const start = performance.now(), { frame, view } = shown, { first, side } = site.masks;
  const { scores, logits } = await engine.decode(prompt, frame, previous);
  if (!scores.every(Number.isFinite) || !logits.every(Number.isFinite)) throw new Error("The model returned values that are no numbers. Reload with ?device=wasm in the address.");
  shown.candidates = Array.from(scores, (_, i) => logits.slice(i * side * side, (i + 1) * side * side)).slice(first);
  const masks = await Promise.all(shown.candidates.map(async (candidate, i) => {
    const mask = pictureMask(candidate, side, frame, site.frame, view.width, view.height);
    const bitmap = await createImageBitmap(painted(mask, view.width, view.height));
    return { score: scores[first + i], bitmap, logits: site.prompts.mask_input ? candidate : null, ...extent(mask, view.width, view.height) };
  }));
  return [{ masks, clickMs: performance.now() - start }, masks.map((mask) => mask.bitmap)];
}

// Make a PNG at the picture's own size: the mask in black and white, or what it covers on nothing.
async function save({ choice, cutout }) {
  const { bitmap, frame, candidates } = shown, { width, height } = frame;
  const mask = pictureMask(candidates[choice], site.masks.side, frame, site.frame);
  const canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d", { willReadFrequently: true });
  if (cutout) context.drawImage(bitmap, 0, 0);
  for (let top = 0; top < height; top += STRIP) {
    const strip = context.getImageData(0, top, width, Math.min(STRIP, height - top)), pixels = strip.data;
    for (let i = 0, at = top * width; i < pixels.length; i += 4, at++)
      if (cutout) pixels[i + 3] *= mask[at];
      else pixels.set([255 * mask[at], 255 * mask[at], 255 * mask[at], 255], i);
    context.putImageData(strip, 0, top);
  }
  return [{ png: await canvas.convertToBlob({ type: "image/png" }) }];
}
