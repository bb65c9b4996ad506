// Masks: low-resolution logits to masks of any size, as samx/processing/postprocess.py makes them, rounded as float32 too.

const f = Math.fround;
const SHARPNESS = f(-0.75); // of PyTorch's cubic
const TINT = 0.45, LINE = 2; // share of colour inside a mask; px of its outline
export const COLOUR = [38, 124, 255];

function bilinearTaps(from, to) {
  const ratio = f(f(from) / f(to)), index = [new Int32Array(to), new Int32Array(to)];
  const weight = [new Float32Array(to), new Float32Array(to)];
  for (let i = 0; i < to; i++) {
    const position = f(Math.max(ratio * (i + 0.5) - 0.5, 0)), left = Math.min(Math.trunc(position), from - 1);
    const share = f(position - left);
    index[0][i] = left;
    index[1][i] = Math.min(left + 1, from - 1);
    weight[0][i] = 1 - share;
    weight[1][i] = share;
  }
  return { index, weight };
}

function cubic(distance, isFar) {
  const d = f(distance);
  if (isFar) return f(f(f(f(f(d - 5) * d) + 8) * f(SHARPNESS * d)) - f(4 * SHARPNESS));
  return f(f(f(f(f(f(SHARPNESS + 2) * d) - f(SHARPNESS + 3)) * d) * d) + 1);
}

function bicubicTaps(from, to) {
  const ratio = f(f(from) / f(to)), index = [], weight = [];
  for (let k = 0; k < 4; k++) (index.push(new Int32Array(to)), weight.push(new Float32Array(to)));
  for (let i = 0; i < to; i++) {
    const position = f(ratio * (i + 0.5) - 0.5), left = Math.floor(position), share = f(position - left);
    const rest = f(1 - share);
    [cubic(share + 1, true), cubic(share, false), cubic(rest, false), cubic(rest + 1, true)].forEach((value, k) => {
      index[k][i] = Math.min(Math.max(left + k - 1, 0), from - 1);
      weight[k][i] = value;
    });
  }
  return { index, weight };
}

// Two resizings as one, without the pixels in between.
function chained(first, next) {
  const index = [], weight = [];
  for (let a = 0; a < first.index.length; a++)
    for (let b = 0; b < next.index.length; b++) {
      index.push(next.index[b].map((place) => first.index[a][place]));
      weight.push(next.weight[b].map((share, i) => first.weight[a][next.index[b][i]] * share));
    }
  return { index, weight };
}

function tapsOf(from, frameSide, validSide, to, rules) {
  if (rules.cubic_masks) return bicubicTaps(from, to);
  if (!rules.keeps_aspect) return bilinearTaps(from, to);
  return chained(bilinearTaps(from, frameSide), bilinearTaps(validSide, to)); // the valid part only: the padding is cut
}

// Return the logits of a mask (side x side) at the size of a picture, width x height px.
export function pictureLogits(logits, side, frame, rules, width, height) {
  const x = tapsOf(side, frame.size, frame.validWidth, width, rules), y = tapsOf(side, frame.size, frame.validHeight, height, rules);
  const wide = new Float32Array(side * width), out = new Float32Array(width * height);
  for (let row = 0; row < side; row++)
    for (let i = 0; i < width; i++) {
      let sum = f(logits[row * side + x.index[0][i]] * x.weight[0][i]);
      for (let k = 1; k < x.index.length; k++) sum = f(sum + f(logits[row * side + x.index[k][i]] * x.weight[k][i]));
      wide[row * width + i] = sum;
    }
  for (let j = 0; j < height; j++)
    for (let k = 0; k < y.index.length; k++) {
      const from = y.index[k][j] * width, to = j * width, weight = y.weight[k][j];
      for (let i = 0; i < width; i++) out[to + i] = f(out[to + i] + f(wide[from + i] * weight));
    }
  return out;
}

// Return a mask as bytes, 1 on the object.
export function pictureMask(logits, side, frame, rules, width = frame.width, height = frame.height) {
  const found = pictureLogits(logits, side, frame, rules, width, height), mask = new Uint8Array(found.length);
  for (let i = 0; i < found.length; i++) mask[i] = found[i] > rules.mask_threshold ? 1 : 0;
  return mask;
}

// Say how much of the picture a mask covers, and the box around it as shares of the picture; null where it is empty.
export function extent(mask, width, height) {
  let area = 0, left = width, right = -1, top = height, bottom = -1;
  for (let y = 0, i = 0; y < height; y++)
    for (let x = 0; x < width; x++, i++)
      if (mask[i]) {
        area++;
        left = Math.min(left, x);
        right = Math.max(right, x);
        top = Math.min(top, y);
        bottom = y;
      }
  return { share: area / mask.length, box: area ? [left / width, top / height, (right + 1) / width, (bottom + 1) / height] : null };
}

// Paint a mask: tinted inside, with an outline.
export function painted(mask, width, height) {
  const image = new ImageData(width, height), pixels = image.data;
  const isOff = (x, y) => x < 0 || y < 0 || x >= width || y >= height || !mask[y * width + x];
  for (let y = 0, i = 0; y < height; y++)
    for (let x = 0; x < width; x++, i++) {
      if (!mask[i]) continue;
      const isEdge = isOff(x - LINE, y) || isOff(x + LINE, y) || isOff(x, y - LINE) || isOff(x, y + LINE);
      pixels.set(COLOUR, 4 * i);
      pixels[4 * i + 3] = isEdge ? 255 : 255 * TINT;
    }
  return image;
}
