// What is drawn: frames, codes, and the strip of starts; and the elements of the page.

export const at = (id) => document.getElementById(id);

// The number in a field; its default where it holds none that is allowed.
export function number(id) {
  const input = at(id);
  const valid = Number.isFinite(input.valueAsNumber) && input.validity.valid;
  return valid ? input.valueAsNumber : Number(input.defaultValue) || Number(input.min);
}

export function drawFrame(canvas, pixels, width, height) {
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
    canvas.parentElement.parentElement.style.setProperty("--shape", width / height);
  }
  canvas.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
}

// A number with two decimals, and that of the environment, if any; a zero has no sign.
export function figure(value, truth) {
  const text = (x) => (Math.abs(x) < 0.005 ? 0 : x).toFixed(2);
  return text(value) + (truth === undefined ? "" : ` / ${text(truth)}`);
}

// What a visitor may do next, if the dream waits.
export function hintText({ connected, begun, ready, paused, last }) {
  if (!connected) return "";
  if (!begun) return "the dream is about to begin";
  if (ready) return "press an action key to go on";
  if (paused) return "paused: an action key dreams one frame";
  if (last.truth_ended) return "the episode of the environment has ended; R starts again";
  return last.end > 0.5 ? "the model expects that the episode ends here" : "";
}

// One coloured cell for each code, with its number; the last axis of a grid runs to the right.
export function drawCodes(canvas, codes, grid) {
  const columns = grid.slice(1).reduce((product, extent) => product * extent, 1);
  const rows = grid[0];
  const size = Math.max(8, Math.floor(Math.min(48, 768 / columns)));
  canvas.width = columns * size;
  canvas.height = rows * size;
  const context = canvas.getContext("2d");
  context.font = `${Math.floor(size / 3)}px system-ui, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  codes.forEach((code, index) => {
    const x = (index % columns) * size;
    const y = Math.floor(index / columns) * size;
    context.fillStyle = `hsl(${(code * 137.5) % 360} 45% ${30 + ((code * 29) % 30)}%)`;
    context.fillRect(x, y, size, size);
    if (size < 24) return;
    context.fillStyle = "#fff";
    context.fillText(code, x + size / 2, y + size / 2);
  });
}

// Buttons with the last seen frame of each place; choose(place) is called for the one that is pressed.
export function drawStarts(box, reply, choose) {
  const { width, height, places, pixels } = reply;
  const bytes = width * height * 4;
  const buttons = places.map((place, index) => {
    const button = document.createElement("button");
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const part = pixels.slice(index * bytes, (index + 1) * bytes);
    canvas.getContext("2d").putImageData(new ImageData(part, width, height), 0, 0);
    button.append(canvas);
    button.title = `episode ${place[0]}, frame ${place[1]}`;
    button.setAttribute("aria-label", `Start from ${button.title}`);
    button.dataset.place = place.join(":");
    button.addEventListener("click", () => choose(place));
    return button;
  });
  box.replaceChildren(...buttons);
}

// Means over the last seconds: frames drawn, and milliseconds from a key to its picture.
export class Meter {
  constructor() {
    this.frames = [];
    this.latencies = [];
  }

  frame(now) {
    this.frames.push(now);
    while (this.frames[0] < now - 2000) this.frames.shift();
  }

  latency(milliseconds) {
    this.latencies.push(milliseconds);
    if (this.latencies.length > 1000) this.latencies.shift();
  }

  get speed() {
    const [first, last] = [this.frames[0], this.frames.at(-1)];
    return this.frames.length > 2 ? (1000 * (this.frames.length - 1)) / (last - first) : null;
  }
}
