// A dream that goes on frame by frame in this browser; it answers the requests of the page as the server does.

import { Noise } from "./noise.js";
import { contactSheet } from "./sheet.js";

const KEPT_MOMENTS = 1000; // frames that a dream may go back
const KEPT_BYTES = 64 * 2 ** 20; // the same in bytes

export class Dream {
  // world: what world.json holds; run: {prior, decoder}, functions of named tensors; Tensor: the runtime's class.
  constructor(world, run, Tensor) {
    this.world = world;
    this.run = run;
    this.Tensor = Tensor;
    this.inputs = new Map(world.graphs.prior.inputs.map((input) => [input.name, input]));
    this.moments = []; // the last is the present one
  }

  // The first step takes several times as long as others; none of it is kept.
  async warmUp() {
    const [episode, frame] = this.world.starts[0].place;
    this.begin({ episode, frame, seed: 0 });
    await this.step({ action: 0, temperature: 1 });
    this.moments = [];
  }

  async answer(request) {
    switch (request.type) {
      case "starts": return this.starts();
      case "begin": return this.begin(request);
      case "step": return this.step(request);
      case "undo": return this.undo(request.steps);
      case "save": return this.save(request.first);
    }
    throw new Error(`unknown request ${request.type}`);
  }

  starts() {
    const [height, width] = this.world.frame.slice(1);
    const pixels = new Uint8ClampedArray(this.world.starts.length * height * width * 4);
    this.world.starts.forEach((start, index) => pixels.set(bytesOf(start.pixels), index * height * width * 4));
    return { type: "starts", height, width, places: this.world.starts.map((start) => start.place), pixels };
  }

  begin({ episode, frame, seed }) {
    const start = this.world.starts.find(({ place }) => place[0] === episode && place[1] === frame);
    if (!start) throw new Error(`episode ${episode}, frame ${frame} is no start of this page`);
    const state = {};
    for (const { input } of this.world.state) state[input] = this.restored(input, start.state[input]);
    const pixels = new Uint8ClampedArray(bytesOf(start.pixels));
    const codes = Array.from(state.previous.data, Number);
    this.moments = [
      { state, noise: Noise.seeded(seed), step: 0, action: -1, reward: 0, total: 0, end: 0, pixels, codes },
    ];
    this.start = start;
    return this.reply(0);
  }

  // A tensor of one row from the bytes in world.json.
  restored(name, text) {
    const { type, shape } = this.inputs.get(name);
    const bytes = bytesOf(text);
    const sizes = [1, ...shape.slice(1)];
    if (type !== "int64") return new this.Tensor(type, type === "bool" ? bytes : new Float32Array(bytes.buffer), sizes);
    return new this.Tensor(type, BigInt64Array.from(new Int32Array(bytes.buffer), BigInt), sizes);
  }

  async step({ action, temperature }) {
    const before = this.moments.at(-1);
    if (!before) throw new Error("step before begin");
    const started = performance.now();
    const noise = before.noise.copy();
    const shape = [1, ...this.inputs.get("noise").shape.slice(1)];
    const count = shape[1] * shape[2];
    const drawn = await this.run.prior({
      ...before.state,
      action: new this.Tensor("int64", BigInt64Array.of(BigInt(action)), [1]),
      noise: new this.Tensor("float32", temperature > 0 ? noise.gumbel(count) : new Float32Array(count), shape),
      temperature: new this.Tensor("float32", Float32Array.of(temperature), []),
    });
    const { frames } = await this.run.decoder({ codes: drawn.codes });
    const state = Object.fromEntries(this.world.state.map(({ input, output }) => [input, drawn[output]]));
    const [reward, end] = [drawn.reward.data[0], drawn.end.data[0]];
    const pixels = coloured(frames.data, this.world.frame);
    const codes = Array.from(drawn.codes.data, Number);
    this.keep({ state, noise, step: before.step + 1, action, reward, total: before.total + reward, end, pixels, codes });
    return this.reply(performance.now() - started);
  }

  keep(moment) {
    this.moments.push(moment);
    let bytes = moment.pixels.byteLength + moment.noise.words.byteLength;
    for (const tensor of Object.values(moment.state)) bytes += tensor.data.byteLength;
    const most = Math.max(2, Math.min(KEPT_MOMENTS, Math.floor(KEPT_BYTES / bytes)));
    if (this.moments.length > most) this.moments.shift();
  }

  undo(steps) {
    const count = Math.min(steps, this.moments.length - 1);
    if (count) this.moments.splice(-count);
    return this.reply(0);
  }

  async save(first) {
    const seen = { pixels: this.start && new Uint8ClampedArray(bytesOf(this.start.pixels)), label: "start" };
    const dreamt = this.moments.filter((moment) => moment.step >= Math.max(first, 1));
    const names = this.world.action_names;
    const frames = dreamt.map(({ pixels, step, action }) => ({ pixels, label: `${step} ${names[action]}` }));
    if (dreamt[0]?.step === 1) frames.unshift(seen);
    return { type: "file", suffix: "png", file: await contactSheet(frames, this.world.frame) };
  }

  reply(milliseconds) {
    const { step, action, reward, total, end, pixels, codes } = this.moments.at(-1);
    const [height, width] = this.world.frame.slice(1);
    return {
      type: "frame", step, action, reward, total, end, height, width, undo: this.moments.length - 1,
      milliseconds, grid: this.world.grid, codes, dream: pixels.slice(),
    };
  }
}

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

// A frame (C, H, W) as red, green, blue and opacity of each pixel: of a stack of frames, the last one.
function coloured(data, [channels, height, width]) {
  const size = height * width;
  const first = channels === 4 ? 0 : channels % 3 === 0 ? channels - 3 : channels - 1;
  const apart = channels === 4 || channels % 3 === 0 ? size : 0;
  const pixels = new Uint8ClampedArray(4 * size).fill(255);
  for (let colour = 0; colour < 3; colour++) {
    const begin = first * size + colour * apart;
    for (let i = 0; i < size; i++) pixels[4 * i + colour] = data[begin + i];
  }
  return pixels;
}
