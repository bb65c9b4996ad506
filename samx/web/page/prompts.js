// Prompts: points and a box in picture pixels, turned into the decoder's inputs as samx/processing/prompts.py does.

const LABELS = { padding: -1, topLeft: 2, bottomRight: 3 };

// The order of a prompt's tokens: numbers of points, box corners next, -1 is the padding token.
function rows(rules, points, hasBox) {
  const clicks = Array.from({ length: points }, (_, i) => i), corners = hasBox ? [points, points + 1] : [];
  const ordered = rules.box_first ? [...corners, ...clicks] : [...clicks, ...corners];
  if (rules.tokens) {
    if (ordered.length > rules.tokens)
      throw new Error(`This model takes at most ${rules.tokens} points, a box counted as two. Take some back.`);
    return [...ordered, ...Array(rules.tokens - ordered.length).fill(-1)];
  }
  return (hasBox ? rules.pads_boxes : points > 0) ? [...ordered, -1] : ordered;
}

const clamped = (value, most) => Math.min(Math.max(value, 0), most);

// Return { coords, labels } for points [{ x, y, label }] and a box [x0, y0, x1, y1] or null.
export function tokens(rules, frame, { points, box }) {
  const corners = box ? [{ x: box[0], y: box[1], label: LABELS.topLeft }, { x: box[2], y: box[3], label: LABELS.bottomRight }] : [];
  const all = [...points, ...corners], order = rows(rules, points.length, box !== null);
  const coords = new Float32Array(2 * order.length), labels = new Float32Array(order.length);
  order.forEach((place, row) => {
    labels[row] = place < 0 ? LABELS.padding : all[place].label;
    if (place < 0) return;
    coords[2 * row] = clamped(all[place].x, frame.width) * (frame.validWidth / frame.width);
    coords[2 * row + 1] = clamped(all[place].y, frame.height) * (frame.validHeight / frame.height);
  });
  return { coords, labels };
}
