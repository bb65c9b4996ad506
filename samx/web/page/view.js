// The picture on the screen, with the mask, points, box and cross drawn over it; and what pointers and keys do to it.

const COLOURS = { 1: "#16a34a", 0: "#dc2626", box: "#facc15", line: "#ffffff", dark: "#000000b0" };
const DRAG_PX = 4; // of the screen, from which on a movement is a box
const STEP = 1 / 100, LEAP = 10; // of the picture's longest side: how far a key moves the cross, and with Shift

export class View {
  // `point(x, y, isOff)`, `box(corners)` hear of what somebody does, in picture pixels; `tool()` tells what is meant.
  constructor(canvas, { point, box, tool }) {
    Object.assign(this, { canvas, point, box, tool, shown: null, overlay: null, prompts: { points: [], box: null } });
    this.start = this.end = this.cross = null;
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.up(event));
    canvas.addEventListener("pointercancel", () => this.leave());
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("blur", () => { this.cross = null; this.draw(); });
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  show({ bitmap, width, height }) {
    this.shown?.bitmap.close();
    this.shown = { bitmap, width, height };
    this.canvas.width = bitmap.width;
    this.canvas.height = bitmap.height;
    this.canvas.style.setProperty("--ratio", width / height);
    this.leave();
  }

  update(overlay, prompts) {
    Object.assign(this, { overlay, prompts });
    this.draw();
  }

  leave() {
    this.start = this.end = this.cross = null;
    this.draw();
  }

  at(event) {
    const { left, top, width, height } = this.canvas.getBoundingClientRect(), within = (value) => Math.min(Math.max(value, 0), 1);
    return {
      x: within((event.clientX - left) / width) * this.shown.width,
      y: within((event.clientY - top) / height) * this.shown.height,
    };
  }

  // Screen pixels between two places of the picture.
  apart(a, b) {
    return Math.hypot(a.x - b.x, a.y - b.y) * (this.canvas.getBoundingClientRect().width / this.shown.width);
  }

  down(event) {
    if (event.button === 1 || !event.isPrimary) return;
    this.cross = null;
    this.start = this.at(event);
    if (this.tool() === "box") this.canvas.setPointerCapture(event.pointerId);
  }

  move(event) {
    if (!this.start || this.cross) return;
    const place = this.at(event);
    this.end = this.tool() === "box" && this.apart(this.start, place) >= DRAG_PX ? place : null;
    if (this.tool() === "box") this.draw();
  }

  up(event) {
    if (!this.start || this.cross) return;
    const { start, end } = this;
    this.start = this.end = null;
    if (this.tool() !== "box") this.point(start.x, start.y, event.button === 2 || event.altKey);
    else if (end) this.finish(start, end);
    else this.draw();
  }

  finish(a, b) {
    const corners = [Math.min(a.x, b.x), Math.min(a.y, b.y), Math.max(a.x, b.x), Math.max(a.y, b.y)];
    if (corners[0] < corners[2] && corners[1] < corners[3]) this.box(corners);
    this.draw();
  }

  // Move the cross; return whether the key was one that does.
  steer(key, isFar) {
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }, way = ways[key];
    if (!way) return false;
    const { width, height } = this.shown, step = Math.max(width, height) * STEP * (isFar ? LEAP : 1);
    const { x, y } = this.cross ?? { x: width / 2, y: height / 2 };
    this.cross = { x: Math.min(Math.max(x + way[0] * step, 0), width), y: Math.min(Math.max(y + way[1] * step, 0), height) };
    if (this.start) this.end = this.cross;
    this.draw();
    return true;
  }

  // Do at the cross what a click does there: a point, or one corner of a box and then the other. Say what is next.
  press() {
    const { width, height } = this.shown, place = (this.cross ??= { x: width / 2, y: height / 2 });
    if (this.tool() !== "box") return void this.point(place.x, place.y, false);
    if (!this.start) {
      this.start = place;
      this.draw();
      return "One corner of the box is set. Move to the other and press Enter.";
    }
    const { start } = this;
    this.start = this.end = null;
    this.finish(start, place);
  }

  draw() {
    if (!this.shown) return;
    const { canvas, prompts } = this, context = canvas.getContext("2d"), { width, height } = this.shown;
    const scale = canvas.width / width, screen = canvas.getBoundingClientRect().width || canvas.width;
    const pen = canvas.width / screen; // canvas pixels of one of the screen
    context.drawImage(this.shown.bitmap, 0, 0);
    if (this.overlay) {
      context.fillStyle = "#00000038";
      context.fillRect(0, 0, canvas.width, canvas.height);
      context.drawImage(this.overlay, 0, 0);
    }
    const box = this.start && this.end ? [this.start.x, this.start.y, this.end.x, this.end.y] : prompts.box;
    if (box) frame(context, box.map((side) => side * scale), pen);
    for (const { x, y, label } of prompts.points) dot(context, x * scale, y * scale, 7 * pen, COLOURS[label], label);
    if (this.start && this.cross) dot(context, this.start.x * scale, this.start.y * scale, 5 * pen, COLOURS.box, 1);
    if (this.cross) cross(context, this.cross.x * scale, this.cross.y * scale, 16 * pen);
  }
}

function stroke(context, width, path) {
  for (const [colour, extra] of [[COLOURS.dark, 2], [COLOURS.line, 0]]) {
    context.strokeStyle = colour;
    context.lineWidth = width * (1 + extra);
    context.beginPath();
    path();
    context.stroke();
  }
}

function frame(context, [x0, y0, x1, y1], pen) {
  stroke(context, 1.8 * pen, () => context.rect(x0, y0, x1 - x0, y1 - y0));
}

function cross(context, x, y, reach) {
  stroke(context, reach / 9, () => {
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      context.moveTo(x + (dx * reach) / 4, y + (dy * reach) / 4);
      context.lineTo(x + dx * reach, y + dy * reach);
    }
  });
}

// A point: green with a plus, or red with a minus, so that colour is not all that tells them apart.
function dot(context, x, y, radius, colour, isOn) {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fillStyle = colour;
  context.fill();
  context.strokeStyle = COLOURS.line;
  context.lineWidth = radius / 3.5;
  context.stroke();
  context.beginPath();
  context.moveTo(x - radius / 2, y);
  context.lineTo(x + radius / 2, y);
  if (isOn) {
    context.moveTo(x, y - radius / 2);
    context.lineTo(x, y + radius / 2);
  }
  context.stroke();
}
