// One event stream, kept alive: the browser's own EventSource, and what it does not do by itself. An EventSource
// reconnects after network trouble with the same address, but gives up for good on any answer other than 200, such as
// 401 for a token that expired meanwhile or 503 from a broker that is starting. Then a fresh token and a new EventSource
// with the last id seen carry on. Knows nothing of the page's elements.

import { ApiError, root } from "./api.js";

export const SYSTEM_EVENTS = [
  "sys_connected",
  "sys_replay_gap",
  "sys_kick_offline",
  "sys_extrude_offline",
  "sys_instance_close",
];

const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 30000;
// How long a stream must have stood before trouble counts as new, so that one which opens and falls is not hammered.
const STEADY_MS = 5000;

// Half of the delay is random: many pages that lost one broker do not come back all at once.
export function retryDelay(attempt, random = Math.random()) {
  const full = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** Math.min(attempt, 10));
  return full * (0.5 + random / 2);
}

export class Connection {
  #source = null;
  #timer = null;
  #round = 0;
  #attempt = 0;
  #openedAt = 0;
  #who = null;
  #names = new Set(["message", ...SYSTEM_EVENTS]);
  #hooks;

  // hooks: token(who) returns a promise of a JWT, lastId(who) the id to go on from or "", event({name, data, id}) gets
  // whatever arrives, state(name, detail) each change: idle, token, connecting, open, reconnecting, waiting, refused,
  // kicked, extruded.
  constructor(hooks) {
    this.#hooks = hooks;
    window.addEventListener("online", () => this.#timer !== null && this.#open());
  }

  get active() {
    return this.#who !== null;
  }

  connect(who) {
    this.#who = who;
    this.#attempt = 0;
    this.#open();
  }

  disconnect() {
    this.#end("idle");
  }

  // EventSource hands out a named event only to listeners of that very name.
  listen(names) {
    for (const name of names) {
      if (this.#names.has(name)) continue;
      this.#names.add(name);
      this.#source?.addEventListener(name, this.#receive);
    }
  }

  async #open() {
    this.#stop();
    const round = ++this.#round;
    const who = this.#who;
    this.#hooks.state("token");
    let token;
    try {
      token = await this.#hooks.token(who);
    } catch (error) {
      if (round !== this.#round) return;
      const final = error instanceof ApiError && [400, 401, 403].includes(error.status);
      if (final) this.#end("refused", error);
      else this.#later(error.message);
      return;
    }
    if (round === this.#round) this.#attach(who, token);
  }

  #attach(who, token) {
    const address = new URL("events", root);
    address.search = new URLSearchParams({ token, device: who.device });
    const id = this.#hooks.lastId(who);
    if (id) address.searchParams.set("id", id);
    this.#hooks.state("connecting");
    const source = (this.#source = new EventSource(address));
    for (const name of this.#names) source.addEventListener(name, this.#receive);
    source.addEventListener("error", (event) => {
      // A frame may be named "error" too; it carries data and is no trouble.
      if (!(event instanceof MessageEvent)) this.#trouble(source);
    });
  }

  #receive = (event) => {
    // Listeners for "open" and "error" also get the EventSource's own events of these names.
    if (!(event instanceof MessageEvent) || event.target !== this.#source) return;
    const frame = { name: event.type, data: event.data, id: event.lastEventId };
    if (SYSTEM_EVENTS.includes(frame.name)) frame.id = "";
    this.#hooks.event(frame);
    if (frame.name === "sys_connected") {
      this.#openedAt = performance.now();
      this.#hooks.state("open", frame.data);
    } else if (frame.name === "sys_kick_offline") {
      this.#end("kicked", frame.data);
    } else if (frame.name === "sys_extrude_offline") {
      this.#end("extruded", frame.data);
    }
  };

  #trouble(source) {
    if (source !== this.#source) return;
    if (this.#openedAt && performance.now() - this.#openedAt > STEADY_MS) this.#attempt = 0;
    this.#openedAt = 0;
    if (source.readyState === EventSource.CLOSED) this.#later("The broker refused the stream.");
    else this.#hooks.state("reconnecting");
  }

  #later(reason) {
    this.#stop();
    const delay = retryDelay(this.#attempt++);
    this.#hooks.state("waiting", { reason, delay });
    this.#timer = setTimeout(() => this.#open(), delay);
  }

  #end(state, detail) {
    this.#stop();
    this.#round++;
    this.#who = null;
    this.#hooks.state(state, detail);
  }

  #stop() {
    this.#source?.close();
    this.#source = null;
    clearTimeout(this.#timer);
    this.#timer = null;
  }
}
