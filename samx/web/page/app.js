// The page: its state, what changes it, and how it is shown. Everything that takes time is asked of the worker.

import { Engine } from "./engine.js";
import { View } from "./view.js";

const NOTHING = { points: [], box: null };
const ON = 1, OFF = 0;
const KEYS = { o: "on", x: "off", b: "box" };
const $ = (id) => document.getElementById(id);

export const state = {
  site: null, phase: "loading", name: "picture", prompts: NOTHING, previous: null, past: [], masks: [], chosen: 0, asked: 0, encoderMs: null, clickMs: null,
};

const engine = new Engine({ onprogress: ({ doing, done, total }) => busy(doing, done, total), onseen: seen });
const view = new View($("canvas"), { point, box: (corners) => change({ ...state.prompts, box: corners }), tool });

// What the page does.

async function start() {
  state.site = await (await fetch(new URL("site.json", import.meta.url), { cache: "no-cache" })).json();
  $("model").textContent = state.site.words;
  $("privacy").textContent = state.site.privacy;
  $("example").hidden = !state.site.example;
  const asked = new URLSearchParams(location.search).get("device");
  const { where, note } = await engine.call("open", { site: state.site, asked });
  $("where").textContent = where;
  $("note").textContent = note;
  $("note").hidden = !note;
  state.phase = "empty";
  say("Ready. Drop, paste or choose a picture.");
}

// Take a file; what cannot be a picture is refused before anything is done with it.
async function take(file) {
  if (state.phase === "loading" || state.phase === "encoding") return;
  try {
    await check(file);
  } catch (error) {
    return fail(error);
  }
  Object.assign(state, { phase: "encoding", name: file.name?.replace(/\.[^.]*$/, "") || "picture", asked: state.asked + 1 });
  reset();
  busy("Looking at the picture", 0, 0);
  try {
    state.encoderMs = (await engine.call("picture", { file })).encoderMs;
    state.phase = "ready";
    say("The picture is ready. Click on an object, or move the cross with the arrows and press Enter.");
    $("canvas").focus({ preventScroll: true });
  } catch (error) {
    state.phase = "empty";
    fail(error);
  }
}

async function check(file) {
  if (!file.size) throw new Error("That file is empty: 0 bytes. Choose another picture.");
  const { width, height } = await sizeOf(file), most = state.site.most_megapixels;
  if (width * height > most * 1e6)
    throw new Error(`That picture is too large: ${width} x ${height} px are ${Math.round((width * height) / 1e6)} megapixels, and this page takes ${most}. Make it smaller first.`);
}

// Read a picture's size without decoding its pixels.
function sizeOf(file) {
  const image = new Image(), url = URL.createObjectURL(file);
  return new Promise((resolve, reject) => {
    image.onload = () => resolve({ width: image.naturalWidth, height: image.naturalHeight });
    image.onerror = () => reject(new Error("That file is no picture that this browser reads. Take a PNG, a JPEG or a WebP."));
    image.src = url;
  }).finally(() => URL.revokeObjectURL(url));
}

function seen(picture) {
  view.show(picture);
  render();
}

function reset() {
  forgetMasks();
  Object.assign(state, { prompts: NOTHING, previous: null, past: [], encoderMs: null, clickMs: null });
}

function forgetMasks() {
  state.masks.forEach(({ bitmap }) => bitmap.close());
  Object.assign(state, { masks: [], chosen: 0 });
}

function point(x, y, isOff) {
  const label = isOff || tool() === "off" ? OFF : ON;
  change({ ...state.prompts, points: [...state.prompts.points, { x, y, label }] });
}

function change(prompts) {
  if (state.phase !== "ready") return;
  state.past.push([state.prompts, state.previous]);
  ask(prompts, adds(prompts) ? (state.masks[state.chosen]?.logits ?? null) : null);
}

// Tell whether a prompt only adds a point: then the mask that is shown goes with it, to models that take one.
function adds({ points, box }) {
  return points.length > state.prompts.points.length && box === state.prompts.box;
}

function undo() {
  if (state.past.length) ask(...state.past.pop());
}

// Ask for masks. While one question is open the last one waits, and those before it are left out.
async function ask(prompts, previous) {
  const number = ++state.asked;
  Object.assign(state, { prompts, previous });
  render();
  await state.answering;
  if (number !== state.asked) return;
  forgetMasks();
  if (!prompts.points.length && !prompts.box) return say("Nothing is marked.");
  state.answering = engine.call("ask", { prompt: prompts, previous }).then((found) => answered(found, number), fail);
  await state.answering;
}

function answered({ masks, clickMs }, number) {
  if (number !== state.asked) return masks.forEach(({ bitmap }) => bitmap.close()); // another question, or picture, came
  const best = masks.reduce((a, b, i) => (b.score > masks[a].score ? i : a), 0);
  Object.assign(state, { masks, clickMs, chosen: best });
  choose(best);
}

function choose(i) {
  if (!state.masks[i]) return;
  state.chosen = i;
  say(described(i));
}

function described(i) {
  const { score, share, box } = state.masks[i], of = state.masks.length > 1 ? ` ${i + 1} of ${state.masks.length}` : "";
  if (!box) return `Mask${of} is empty: nothing was found there.`;
  const [left, top, right, bottom] = box.map((side) => Math.round(100 * side));
  return `Mask${of}, ${percent(score)} sure, covers ${percent(share)} of the picture: from ${left} % to ${right} % across, from ${top} % to ${bottom} % down.`;
}

async function save(cutout) {
  try {
    const { png } = await engine.call("save", { choice: state.chosen, cutout });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(png);
    link.download = `${state.name}-${cutout ? "cutout" : "mask"}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  } catch (error) {
    fail(error);
  }
}

// How it is shown.

const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
const time = (ms) => (ms === null ? "–" : ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);
function tool() {
  return document.querySelector("input[name=tool]:checked").value;
}

function say(words) {
  $("alert").textContent = "";
  $("status").textContent = words;
  $("busy").hidden = true;
  render();
}

function fail(error) {
  $("busy").hidden = true;
  $("alert").textContent = error.message;
  render();
}

function busy(doing, done, total) {
  const size = total ? `, ${(done / 2 ** 20).toFixed(0)} of ${(total / 2 ** 20).toFixed(0)} MiB` : "";
  $("busy").hidden = false;
  $("doing").textContent = `${doing}${size}`;
  if (total) Object.assign($("progress"), { max: total, value: done });
  else $("progress").removeAttribute("value");
  render();
}

function render() {
  const { phase, masks, chosen, prompts, past } = state, hasPicture = phase === "ready" || (phase === "encoding" && view.shown !== null);
  document.body.dataset.phase = phase;
  $("drop").hidden = hasPicture;
  $("canvas").hidden = !hasPicture;
  $("canvas").dataset.tool = tool();
  $("choose").disabled = $("example").disabled = phase !== "empty";
  $("another").hidden = phase !== "ready";
  $("undo").disabled = !past.length;
  $("clear").disabled = !prompts.points.length && !prompts.box;
  $("save-mask").disabled = $("save-cutout").disabled = !masks.length;
  $("encoder-time").textContent = time(state.encoderMs);
  $("click-time").textContent = time(state.clickMs);
  renderChoices(masks, chosen);
  if (hasPicture) view.update(masks[chosen]?.bitmap ?? null, prompts);
}

function renderChoices(masks, chosen) {
  $("masks").hidden = !masks.length;
  const choices = $("choices");
  if (choices.masks !== masks) {
    choices.masks = masks;
    choices.replaceChildren(...masks.map(choice));
  }
  choices.querySelectorAll("input").forEach((input, i) => (input.checked = i === chosen));
}

// A mask to choose: a small picture of it, and how sure the model is.
function choice({ score, bitmap }, i) {
  const label = document.createElement("label"), input = document.createElement("input"), small = document.createElement("canvas");
  Object.assign(input, { type: "radio", name: "mask", value: i });
  input.addEventListener("change", () => choose(i));
  const scale = 160 / Math.max(bitmap.width, bitmap.height);
  Object.assign(small, { width: Math.max(bitmap.width * scale, 1), height: Math.max(bitmap.height * scale, 1) });
  const context = small.getContext("2d");
  context.drawImage(view.shown.bitmap, 0, 0, small.width, small.height);
  context.drawImage(bitmap, 0, 0, small.width, small.height);
  const words = document.createElement("span");
  words.textContent = `${i + 1}: ${percent(score)}`;
  label.append(input, small, words);
  return label;
}

// What people do.

$("choose").addEventListener("click", () => $("file").click());
$("another").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", ({ target }) => {
  if (target.files[0]) take(target.files[0]);
  target.value = "";
});
$("example").addEventListener("click", async () => {
  const response = await fetch(new URL(state.site.example, import.meta.url));
  if (!response.ok) return fail(new Error("The example is not on the server. Copy the whole site there."));
  take(new File([await response.blob()], "example.png"));
});
$("undo").addEventListener("click", undo);
$("clear").addEventListener("click", () => change(NOTHING));
$("save-mask").addEventListener("click", () => save(false));
$("save-cutout").addEventListener("click", () => save(true));
$("tools").addEventListener("change", render);
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragged");
});
for (const end of ["dragleave", "drop"]) document.addEventListener(end, () => document.body.classList.remove("dragged"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file) take(file);
});
document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) take(file);
});
document.addEventListener("keydown", (event) => {
  if (event.altKey || ((event.ctrlKey || event.metaKey) && event.key !== "z")) return;
  if (state.phase !== "ready" || !pressed(event)) return;
  event.preventDefault();
});

// Do what a key means; return whether it means something here.
function pressed(event) {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key, onCanvas = document.activeElement === $("canvas");
  if (key === "Backspace" || (key === "z" && (event.ctrlKey || event.metaKey))) return undo(), true;
  if (onCanvas && view.steer(event.key, event.shiftKey)) return true;
  if (onCanvas && (key === "Enter" || key === " ")) {
    const next = view.press();
    if (next) say(next);
    return true;
  }
  if (key === "Escape") return view.leave(), true;
  if (KEYS[key]) {
    document.querySelector(`input[value=${KEYS[key]}]`).checked = true;
    return render(), true;
  }
  if (key >= "1" && key <= "9" && state.masks[key - 1]) return choose(key - 1), true;
  return false;
}

start().catch(fail);
