// Loads ONNX Runtime Web and the graphs, and then answers the requests of the page, one after the other.

import { Dream } from "./dream.js";

const FORMAT = 1;
const ROOT = new URL("../", import.meta.url);
let dream = null;
let queue = Promise.resolve();

self.onmessage = ({ data }) => {
  queue = queue.then(() => (data.type === "load" ? load(data.search) : answer(data)));
};

async function load(search) {
  try {
    const response = await fetched(new URL("world.json", ROOT));
    const world = JSON.parse(new TextDecoder().decode(response));
    if (world.format !== FORMAT) throw new Error(`world.json has format ${world.format}, this page reads ${FORMAT}`);
    const backend = new URLSearchParams(search).get("backend") ?? "wasm";
    const runtime = await loadRuntime(world.runtime, backend);
    const run = {};
    for (const name of ["prior", "decoder"]) run[name] = await loadGraph(runtime, world.graphs[name].file, backend);
    dream = new Dream(world, run, runtime.Tensor);
    await dream.warmUp();
    postMessage({ ...world.hello, type: "hello" });
  } catch (error) {
    postMessage({ type: "failed", reason: String(error.message ?? error) });
  }
}

// Both files of the runtime are checked against their hashes before they are used.
async function loadRuntime(runtime, backend) {
  const files = runtime[backend];
  if (!files) throw new Error(`there is no backend ${backend}; choose ${Object.keys(runtime).join(" or ")}`);
  if (backend === "webgpu" && !(await navigator.gpu?.requestAdapter())) throw new Error("WebGPU is not available");
  const script = await fetched(new URL(files.script.url, ROOT), files.script.integrity, "the runtime");
  const binary = await fetched(new URL(files.binary.url, ROOT), files.binary.integrity, "the runtime");
  const module = await import(URL.createObjectURL(new Blob([script], { type: "text/javascript" })));
  module.env.wasm.wasmBinary = binary;
  module.env.wasm.numThreads = 1;
  module.env.logLevel = "error";
  return module;
}

async function loadGraph(runtime, file, backend) {
  const bytes = await fetched(new URL(file, ROOT), undefined, "the model");
  const executionProviders = backend === "wasm" ? ["wasm"] : [backend, "wasm"];
  const session = await runtime.InferenceSession.create(bytes, { executionProviders });
  return (inputs) => session.run(inputs);
}

// The bytes of a file; progress is reported in MB.
async function fetched(url, integrity, what) {
  let response;
  try {
    response = await fetch(url, integrity ? { integrity } : {});
  } catch {
    throw new Error(`${url} cannot be loaded${integrity ? ", or it is not the file that was exported" : ""}`);
  }
  if (!response.ok) throw new Error(`${url} cannot be loaded (${response.status})`);
  const parts = [];
  let bytes = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    bytes += value.length;
    if (what) postMessage({ type: "progress", text: `loading ${what}, ${(bytes / 1e6).toFixed(1)} MB` });
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function answer(request) {
  try {
    if (!dream) throw new Error("the model is not loaded");
    postMessage(await dream.answer(request));
  } catch (error) {
    postMessage({ type: "notice", reason: String(error.message ?? error) });
  }
}
