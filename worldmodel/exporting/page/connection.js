// In place of the connection to a server: the requests of the page go to a worker, which computes the dream in the
// browser. The requests and the replies are those of the server (docs/play.md).

export class Connection {
  // listeners: hello(message), progress(text), notice(reason), closed(reason)
  constructor(listeners) {
    this.listeners = listeners;
    this.pending = [];
  }

  open() {
    this.worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = (event) => this.receive(event.data);
    this.worker.onerror = (event) => this.fail(event.message || "its program cannot be loaded");
    this.worker.postMessage({ type: "load", search: location.search });
  }

  // Sends a request; resolves to the reply, or null if there is none.
  ask(request) {
    if (!this.worker) return Promise.resolve(null);
    return new Promise((resolve) => {
      this.pending.push(resolve);
      this.worker.postMessage(request);
    });
  }

  receive(message) {
    if (message.type === "hello") return this.listeners.hello(message);
    if (message.type === "progress") return this.listeners.progress(message.text);
    if (message.type === "failed") return this.fail(message.reason);
    if (message.type === "notice") this.listeners.notice(message.reason);
    this.pending.shift()?.(message.type === "notice" ? null : message);
  }

  fail(reason) {
    this.worker.terminate();
    this.worker = null;
    for (const resolve of this.pending.splice(0)) resolve(null);
    this.listeners.closed(`the model does not run in this browser: ${reason}`);
  }
}
