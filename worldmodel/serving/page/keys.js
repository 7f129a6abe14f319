// Which action the pressed keys and buttons choose.

export class Keys {
  // actions: [{name, keys: [[code, …], …], noop, symbol}]
  constructor(actions) {
    this.actions = actions;
    this.codes = new Set(actions.flatMap((action) => action.keys.flat()));
    this.pressed = new Map(); // code, or "button:INDEX" → number of the press
    this.presses = 0;
    this.noop = actions.findIndex((action) => action.noop);
  }

  press(code) {
    if (!this.pressed.has(code)) this.pressed.set(code, ++this.presses);
  }

  release(code) {
    this.pressed.delete(code);
  }

  clear() {
    this.pressed.clear();
  }

  // The action of most keys, all of them pressed; of several, the one whose key was pressed last; -1 for none.
  chosen() {
    const held = new Map(this.pressed);
    let best = -1;
    let rank = [0, 0];
    for (const [code, press] of this.pressed) {
      if (!code.startsWith("button:")) continue;
      const index = Number(code.slice(7));
      for (const group of this.actions[index].keys) held.set(group[0], press);
      if (!this.actions[index].keys.length && rank[0] === 0) [best, rank] = [index, [0, press]];
    }
    this.actions.forEach((action, index) => {
      const times = action.keys.map((group) => Math.max(...group.map((code) => held.get(code) ?? 0)));
      if (!times.length || Math.min(...times) === 0) return;
      const own = [times.length, Math.max(...times)];
      if (own[0] > rank[0] || (own[0] === rank[0] && own[1] > rank[1])) [best, rank] = [index, own];
    });
    return best;
  }
}

const CODES = { ArrowUp: "↑", ArrowDown: "↓", ArrowLeft: "←", ArrowRight: "→", Space: "space" };

// The legend of an action: its keys without the second names of directions.
export function legend(action) {
  const label = (code) => CODES[code] ?? code.replace(/^(Key|Digit)/, "");
  return action.keys.map((group) => label(group[0])).join("+");
}

const CELLS = { "↖": [1, 1], "↑": [1, 2], "↗": [1, 3], "←": [2, 1], "·": [2, 2], "→": [2, 3], "↙": [3, 1], "↓": [3, 2], "↘": [3, 3] };

// Buttons for the actions: directions around their centre, the others in a row.
export function buildButtons(actions, pad, others, listeners) {
  pad.replaceChildren();
  others.replaceChildren();
  const taken = new Set();
  return actions.map((action, index) => {
    const button = document.createElement("button");
    button.className = "action";
    if (action.symbol) button.append(Object.assign(document.createElement("b"), { textContent: action.symbol }));
    button.append(`${action.name.replaceAll("_", "_\u200b")} `); // a line may end behind an underscore
    const keys = legend(action);
    if (keys) button.append(Object.assign(document.createElement("kbd"), { textContent: keys }));
    const cell = taken.has(action.symbol) ? undefined : CELLS[action.symbol];
    if (cell) {
      taken.add(action.symbol);
      button.style.gridArea = `${cell[0]} / ${cell[1]}`;
    }
    (cell ? pad : others).append(button);
    const code = `button:${index}`;
    button.addEventListener("pointerdown", (event) => {
      button.setPointerCapture(event.pointerId);
      listeners.press(code, event);
    });
    for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
      button.addEventListener(name, () => listeners.release(code));
    }
    button.addEventListener("click", (event) => {
      if (event.detail === 0) listeners.tap(code, event); // by the keyboard
    });
    button.addEventListener("contextmenu", (event) => event.preventDefault());
    return button;
  });
}
