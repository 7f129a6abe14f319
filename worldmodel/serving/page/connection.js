// The connection to the server: one reply follows each request, in order (docs/play.md).

export class Connection {
  // listeners: hello(message), wait(reason), notice(reason), closed(reason)
  constructor(listeners) {
    this.listeners = listeners;
    this.pending = [];
  }

  open() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}/play${location.search}`);
    this.socket = socket;
    this.reason = "the connection to the server is closed";
    socket.binaryType = "arraybuffer";
    socket.onmessage = (event) => this.receive(event.data);
    socket.onclose = (event) => {
      const pending = this.pending.splice(0);
      for (const { resolve } of pending) resolve(null);
      if (this.waiting) this.waiting = false;
      else this.listeners.closed(`not connected: ${event.reason || this.reason}`);
    };
  }

  get ready() {
    return this.socket?.readyState === WebSocket.OPEN;
  }

  // Sends a request; resolves to the reply with its parts as arrays of bytes, or null if there is none.
  ask(request) {
    if (!this.ready) return Promise.resolve(null);
    return new Promise((resolve) => {
      this.pending.push({ resolve });
      this.socket.send(JSON.stringify(request));
    });
  }

  receive(data) {
    if (data instanceof ArrayBuffer) {
      this.pending.shift()?.resolve(unpack(data));
      return;
    }
    const message = JSON.parse(data);
    if (message.type === "hello") this.listeners.hello(message);
    if (message.type === "error") this.reason = message.reason;
    if (message.type === "wait") {
      this.waiting = true;
      this.listeners.wait(message.reason);
    }
    if (message.type === "notice") {
      this.listeners.notice(message.reason);
      this.pending.shift()?.resolve(null);
    }
  }
}

// Four bytes: the length of the header; the header; the parts that it lists.
function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const reply = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let start = 4 + length;
  for (const [name, size] of reply.parts) {
    reply[name] = new Uint8ClampedArray(buffer, start, size);
    start += size;
  }
  return reply;
}
