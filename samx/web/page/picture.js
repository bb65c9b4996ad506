// Pictures: where one lies in the decoder's square, and resizing as image encoders were trained with.
// The rules are those of samx/processing/frames.py and resize.py; the same test vectors hold for both.

const ONE = 1 << 22; // where values are rounded after each side, weights are whole multiples of 1 / ONE
const STRIP = 256; // rows of a picture that are looked at together
export const CHANNELS = 3;

// Where a picture of width x height px lies in a square: its top left part, valid pixels wide and high.
export function frameOf(rules, width, height, size = rules.size_px) {
  if (Math.min(width, height) < 1) throw new Error("The picture has no pixels.");
  const scale = size / Math.max(width, height);
  const fit = (side) => (rules.keeps_aspect ? Math.trunc(side * scale + 0.5) : size);
  const frame = { width, height, size, validWidth: fit(width), validHeight: fit(height) };
  if (Math.min(frame.validWidth, frame.validHeight) < 1)
    throw new Error(`The picture, ${width} x ${height} px, is too thin: nothing is left of it at ${size} px. Crop it along its long side.`);
  return frame;
}

// Return the pixels that an encoder takes: size x size x RGB, 0 to 255, zeros beyond the valid part.
// `read(y, rows)` gives rows of the picture as RGBA.
export function toLevels(read, frame, rules) {
  const { width, height, size, validWidth, validHeight } = frame;
  const floats = rules.resizes_floats, Pixels = floats ? Float32Array : Uint8Array;
  const small = resized(read, [width, height], [validWidth, validHeight], floats, rules.antialiases);
  const square = new Pixels(size * size * CHANNELS), line = validWidth * CHANNELS;
  for (let y = 0; y < validHeight; y++) square.set(small.subarray(y * line, (y + 1) * line), y * size * CHANNELS);
  return square;
}

// Resize; rounded to 8 bits after each side, the width first, as Pillow does, or kept as numbers, as PyTorch does.
export function resized(read, [width, height], [toWidth, toHeight], floats, antialiases = true) {
  const wide = narrowed(read, width, height, weightsOf(width, toWidth, antialiases, floats), floats);
  return shortened(wide, toWidth * CHANNELS, weightsOf(height, toHeight, antialiases, floats), floats);
}

// The first pixel that each new one is made of, how many there are, and their weights, `most` places for each.
function weightsOf(length, count, antialiases, floats) {
  const scale = length / count, reach = antialiases ? Math.max(scale, 1) : 1;
  const first = new Int32Array(count), taken = new Int32Array(count), most = Math.ceil(2 * reach) + 2;
  const weights = new Float64Array(count * most);
  for (let i = 0; i < count; i++) {
    const centre = (i + 0.5) * scale;
    first[i] = Math.max(Math.trunc(centre - reach + 0.5), 0);
    taken[i] = Math.min(Math.trunc(centre + reach + 0.5), length) - first[i];
    let sum = 0;
    for (let k = 0; k < taken[i]; k++)
      sum += weights[i * most + k] = Math.max(1 - Math.abs(first[i] + k + 0.5 - centre) / reach, 0);
    for (let k = i * most; k < i * most + taken[i]; k++) {
      weights[k] /= sum;
      if (!floats) weights[k] = Math.floor(weights[k] * ONE + 0.5);
    }
  }
  return { first, taken, weights, most, count };
}

const settled = (sum, floats) => (floats ? sum : Math.floor(sum / ONE + 0.5));

function narrowed(read, width, height, { first, taken, weights, most, count }, floats) {
  const line = count * CHANNELS, out = new (floats ? Float32Array : Uint8Array)(height * line);
  for (let top = 0; top < height; top += STRIP) {
    const rows = Math.min(STRIP, height - top), pixels = read(top, rows);
    for (let y = 0; y < rows; y++)
      for (let x = 0; x < count; x++) {
        let red = 0, green = 0, blue = 0;
        for (let k = 0, at = 4 * (y * width + first[x]); k < taken[x]; k++, at += 4) {
          const weight = weights[x * most + k];
          red += weight * pixels[at];
          green += weight * pixels[at + 1];
          blue += weight * pixels[at + 2];
        }
        const to = (top + y) * line + x * CHANNELS;
        out[to] = settled(red, floats);
        out[to + 1] = settled(green, floats);
        out[to + 2] = settled(blue, floats);
      }
  }
  return out;
}

function shortened(wide, line, { first, taken, weights, most, count }, floats) {
  const out = new (floats ? Float32Array : Uint8Array)(count * line), sums = new Float64Array(line);
  for (let y = 0; y < count; y++) {
    sums.fill(0);
    for (let k = 0; k < taken[y]; k++) {
      const weight = weights[y * most + k], from = (first[y] + k) * line;
      for (let x = 0; x < line; x++) sums[x] += weight * wide[from + x];
    }
    for (let x = 0; x < line; x++) out[y * line + x] = settled(sums[x], floats);
  }
  return out;
}
