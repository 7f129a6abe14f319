// The page: a dream that goes on frame by frame, under the keys and buttons that are pressed.

import { Connection } from "./connection.js";
import { Keys, buildButtons } from "./keys.js";
import { copyText, download, script } from "./keep.js";
import { Meter, at, drawCodes, drawFrame, drawStarts, figure, hintText, number } from "./view.js";

const DRIVE = -2; // in place of an action: the agent chooses
const RETRY = 3000; // milliseconds until a visitor that has to wait tries again
const SHORTCUTS = {
  KeyP: () => pause(!state.paused),
  Period: () => single(),
  KeyU: (event) => undo(event.shiftKey ? 10 : 1),
  KeyR: () => restart(),
  KeyN: () => reseed(),
  KeyK: () => at("keep").click(),
  KeyL: () => at("agent").hidden || at("drive").click(),
  KeyG: () => at("show-codes").click(),
  KeyM: () => record(),
};

const state = {
  hello: null,
  connected: false,
  keys: null,
  buttons: [],
  place: null, // [episode, frame]; null: the start of the environment
  begun: null, // {place, seed, temperatures} of the dream
  actions: [], // of the dream since its start
  last: null, // the last reply with a frame
  paused: true, // whether no frame is dreamt without a request
  ready: true, // paused until the first action key
  busy: false, // whether a step is on its way
  tapped: -1, // an action that was chosen and released between two frames
  moving: -1, // the last action that a key chose
  pressed: null, // when the key was pressed whose action is not drawn yet, and the action
  due: 0, // when the next frame is due
  timer: 0,
  recorded: null, // the first frame of the recording
};
const meter = new Meter();
const connection = new Connection({
  hello: start,
  wait: (reason) => { status(reason, true); setTimeout(() => connection.open(), RETRY); },
  notice: (reason) => status(reason, true),
  progress: (text) => status(text),
  closed: (reason) => { state.connected = false; status(reason, true); at("connect").hidden = false; pause(true); },
});

function status(text, bad = false) {
  at("status").textContent = text;
  at("status").classList.toggle("bad", bad);
}

const environment = () => state.hello.environment.split(":").at(-1); // without the module that registers it

async function start(hello) {
  at("connect").hidden = true;
  const again = state.hello !== null;
  state.hello = hello;
  state.connected = true;
  state.keys = new Keys(hello.actions);
  state.buttons = buildButtons(hello.actions, at("pad"), at("others"), {
    press: (code) => press(code),
    release: (code) => release(code),
    tap: (code) => { press(code); release(code); },
  });
  document.title = `${hello.run} – play in a dream`;
  at("run").textContent = hello.run;
  status(environment());
  if (!again) at("rate").value = Math.min(60, Math.max(1, Math.round(hello.rate * 10) / 10));
  for (const [id, shown] of [["real", hello.beside], ["agent", hello.agent], ["more", hello.other_starts]]) at(id).hidden = !shown;
  for (const button of document.querySelectorAll(".save")) button.hidden = !hello.suffixes.includes(button.dataset.suffix);
  if (again && state.begun) return restart();
  await moreStarts(0);
  await restart();
  at("dream").focus();
}

async function moreStarts(seed) {
  const reply = await connection.ask({ type: "starts", seed });
  if (!reply) return;
  drawStarts(at("starts"), reply, (place) => { state.place = place; restart(); });
  if (!state.hello.beside) state.place ??= reply.places[0];
  if (seed > 0) mark();
}

function mark() {
  for (const button of at("starts").children) {
    button.setAttribute("aria-pressed", button.dataset.place === state.place?.join(":"));
  }
  at("real").setAttribute("aria-pressed", state.place === null);
}

async function restart() {
  const seed = number("seed");
  state.begun = null;
  pause(true);
  mark();
  status(environment());
  const place = state.place && { episode: state.place[0], frame: state.place[1] };
  const reply = await connection.ask(place ? { type: "begin", ...place, seed } : { type: "environment", seed });
  if (!reply) return;
  state.begun = { place: state.place, seed, temperatures: new Set() };
  state.recorded = null;
  at("record").setAttribute("aria-pressed", false);
  at("kept").textContent = "";
  state.keys.clear();
  show(reply);
  hold();
}

// Stop until the next action key.
function hold() {
  at("drive").checked = false;
  pause(true);
  state.ready = true;
  hint();
}

function pause(paused) {
  state.paused = paused;
  state.ready = false;
  at("pause").setAttribute("aria-pressed", paused);
  hint();
  clearTimeout(state.timer);
  if (!paused) { state.due = performance.now(); tick(); }
}

const hint = () => { at("hint").textContent = hintText(state); };

// The action of the next frame; -1 to wait for a key.
function next() {
  const chosen = state.keys.chosen();
  if (chosen >= 0) state.moving = chosen;
  if (state.tapped >= 0) return state.tapped;
  if (chosen >= 0) return chosen;
  return at("keep").checked && state.moving >= 0 ? state.moving : state.keys.noop;
}

async function tick() {
  if (state.paused || state.busy || !state.begun) return;
  const action = at("drive").checked ? DRIVE : next();
  if (action === -1) return; // press() calls again
  const interval = 1000 / number("rate");
  state.due = Math.max(state.due + interval, performance.now());
  if (!(await step(action))) return;
  clearTimeout(state.timer);
  const urgent = state.tapped >= 0;
  state.timer = setTimeout(tick, urgent ? 0 : state.due - performance.now());
}

async function step(action) {
  state.busy = true;
  state.tapped = -1;
  const temperature = number("temperature");
  const reply = await connection.ask(action === DRIVE ? { type: "drive", temperature } : { type: "step", action, temperature });
  state.busy = false;
  if (!reply) return void pause(true);
  state.begun?.temperatures.add(temperature);
  show(reply);
  const now = performance.now();
  meter.frame(now);
  if (state.pressed?.action === reply.action) {
    meter.latency(now - state.pressed.time);
    at("latency").textContent = `${(now - state.pressed.time).toFixed(0)} ms`;
    state.pressed = null;
  }
  return true;
}

function show(reply) {
  drawFrame(at("dream"), reply.dream, reply.width, reply.height);
  state.last = reply;
  state.actions.length = Math.min(state.actions.length, reply.step);
  if (reply.step > state.actions.length) state.actions.push(reply.action);
  at("step").textContent = reply.step;
  at("reward").textContent = figure(reply.reward, reply.truth_reward);
  at("total").textContent = figure(reply.total, reply.truth_total);
  at("end").textContent = reply.end.toFixed(3);
  at("speed").textContent = meter.speed?.toFixed(1) ?? "–";
  at("undo").disabled = at("undo10").disabled = reply.undo === 0;
  state.buttons.forEach((button, index) => button.classList.toggle("down", index === reply.action && !state.paused));
  if (!at("grid").hidden) drawCodes(at("codes"), reply.codes, reply.grid);
  at("beside").hidden = !reply.truth;
  at("figures").classList.toggle("pairs", Boolean(reply.truth));
  if (reply.report) status(reply.report, true);
  if (reply.truth) {
    drawFrame(at("truth"), reply.truth, reply.width, reply.height);
    const decibels = (value) => `${value.toFixed(1)} dB`;
    at("psnr").textContent = reply.psnr === null ? "start" : `PSNR ${decibels(reply.psnr)}, mean ${decibels(reply.psnr_mean)}`;
  }
  hint();
}

function press(code, time = performance.now()) {
  if (!state.begun) return;
  const before = state.keys.chosen();
  state.keys.press(code);
  const chosen = state.keys.chosen();
  if (chosen < 0 || (chosen === before && !code.startsWith("button:"))) return;
  at("drive").checked = false;
  state.tapped = chosen;
  state.pressed = { action: chosen, time };
  if (state.ready) return pause(false);
  if (state.paused) return single(chosen);
  if (state.busy) return;
  clearTimeout(state.timer); // a new action does not wait for the next frame
  state.due = performance.now();
  tick();
}

const release = (code) => state.keys?.release(code);

// Dream one frame and pause.
async function single(action = next()) {
  if (!state.paused || state.ready) pause(true);
  if (state.busy || !state.begun) return;
  await step(action >= 0 ? action : Math.max(state.moving, 0));
}

async function undo(steps) {
  if (state.busy || !state.last?.undo) return;
  hold();
  const reply = await connection.ask({ type: "undo", steps });
  if (!reply) return;
  show(reply);
  if (state.recorded > reply.step + 1) state.recorded = reply.step + 1;
}

function reseed() {
  at("seed").value = Math.floor(Math.random() * 1e6);
  restart();
}

function record() {
  const on = state.recorded === null && state.last !== null;
  state.recorded = on ? state.last.step + 1 : null;
  at("record").setAttribute("aria-pressed", on);
  at("kept").textContent = on ? `files begin with frame ${state.recorded}` : "";
}

async function save(suffix) {
  if (!state.last?.step) return void (at("kept").textContent = "there is no dreamt frame to save yet");
  if (state.recorded > state.last.step) return void (at("kept").textContent = "nothing was dreamt since the recording began");
  pause(true);
  at("kept").textContent = "writing the file";
  const reply = await connection.ask({ type: "save", suffix, first: state.recorded ?? 0 });
  at("kept").textContent = reply ? `saved as ${download(reply, state.hello.run, state.last.step)}` : "";
}

async function copy() {
  const text = script(state.hello, state.begun, state.actions);
  const warning = state.begun?.temperatures.size > 1 ? "; it cannot repeat that the temperature changed"
    : state.begun?.place ? "" : "; it dreams from a recorded start, not from that of the environment";
  const copied = await copyText(text, at("script"));
  at("kept").textContent = !text ? "there is no action to copy yet" : `${copied ? "copied the command" : "copy the command below"}${warning}`;
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !state.keys) return;
  if (event.code === "Escape") return at("dream").focus();
  const tag = event.target.tagName;
  if (tag === "SELECT" || tag === "TEXTAREA" || (tag === "INPUT" && event.target.type !== "checkbox")) return;
  const activates = event.code === "Space" && (tag === "BUTTON" || tag === "INPUT"); // the control that has the focus
  if (state.keys.codes.has(event.code) && !activates) {
    event.preventDefault();
    if (!event.repeat) press(event.code, event.timeStamp);
  } else if (SHORTCUTS[event.code] && !event.repeat) {
    event.preventDefault();
    SHORTCUTS[event.code](event);
  }
});
addEventListener("keyup", (event) => release(event.code));
addEventListener("blur", () => state.keys?.clear());

at("connect").addEventListener("click", () => { at("connect").hidden = true; connection.open(); });
at("pause").addEventListener("click", () => pause(!state.paused));
at("single").addEventListener("click", () => single());
at("undo").addEventListener("click", () => undo(1));
at("undo10").addEventListener("click", () => undo(10));
at("restart").addEventListener("click", restart);
at("reseed").addEventListener("click", reseed);
at("more").addEventListener("click", () => moreStarts(1 + Math.floor(Math.random() * 1e6)));
at("real").addEventListener("click", () => { state.place = null; restart(); });
at("record").addEventListener("click", record);
at("copy").addEventListener("click", copy);
for (const button of document.querySelectorAll(".save")) button.addEventListener("click", () => save(button.dataset.suffix));
at("scaling").addEventListener("change", () => {
  for (const id of ["dream", "truth"]) at(id).classList.toggle("smooth", at("scaling").value === "smooth");
});
at("drive").addEventListener("change", () => { if (state.begun) pause(!at("drive").checked); });
at("show-codes").addEventListener("change", () => {
  at("grid").hidden = !at("show-codes").checked;
  if (state.last) drawCodes(at("codes"), state.last.codes, state.last.grid);
});

window.play = { state, meter }; // for tests and the console
connection.open();
