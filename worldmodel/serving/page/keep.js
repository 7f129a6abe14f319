// What a visitor keeps of a dream: files, and the command that dreams it again.

// Lets the browser save a file; returns its name.
export function download(reply, run, step) {
  const name = `${run}-${step}.${reply.suffix}`;
  const url = URL.createObjectURL(new Blob([reply.file]));
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
  return name;
}

// Shows a text in a field and copies it; returns whether the browser allowed that.
export async function copyText(text, field) {
  field.hidden = !text;
  field.value = text;
  if (!text) return false;
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    field.select();
    return false;
  }
}

// As a word of a POSIX shell.
const quoted = (word) => (/^[\w.,:=+-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);

// [0, 0, 1] → "forward*2,left*1"; counts stand everywhere, because names without any count mean several steps.
function runs(actions, names) {
  const parts = [];
  for (const action of actions) {
    if (parts.at(-1)?.[0] === action) parts.at(-1)[1] += 1;
    else parts.push([action, 1]);
  }
  return parts.map(([action, count]) => `${names[action]}*${count}`).join(",");
}

// The command for the actions since the start of a dream; "" without any.
export function script(hello, begun, actions) {
  if (!begun || !actions.length) return "";
  const words = runs(actions, hello.actions.map((action) => action.name));
  const temperature = begun.temperatures.values().next().value ?? 1;
  const options = [`run=${hello.run}`, "--actions", words, "--seed", String(begun.seed)];
  if (begun.place) options.push("--start", begun.place.join(":"));
  if (temperature !== 1) options.push("--temperature", String(temperature));
  return ["python -m worldmodel.dream", ...options.map(quoted)].join(" ");
}
