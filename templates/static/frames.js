// The list of what arrived, newest first, bounded in rows. Everything is set as text, so nothing a sender writes becomes
// markup. Knows nothing of the connection.

const MOST_ROWS = 500;
// A row shows this much; the rest is one press away, so that a megabyte of text does not stall the page.
const MOST_TEXT = 2000;
// Arrivals are drawn together: a burst costs one layout, not hundreds.
const DRAW_MS = 40;

const MEANING = {
  sys_connected: "The stream is open. The broker sees this client as",
  sys_replay_gap: "Frames are lost: some after the last id are no longer kept.",
  sys_kick_offline: "This device was kicked.",
  sys_extrude_offline: "A newer stream of this device took over, from",
  sys_instance_close: "This instance closes; the browser reconnects by itself. Instance",
};

export function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

export function clock(date) {
  const two = (number) => String(number).padStart(2, "0");
  const milliseconds = String(date.getMilliseconds()).padStart(3, "0");
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}.${milliseconds}`;
}

function kind(name) {
  if (name === "sys_replay_gap") return "warning";
  if (name === "sys_kick_offline" || name === "sys_extrude_offline") return "end";
  return name.startsWith("sys_") ? "system" : "frame";
}

export class FrameList {
  #list;
  #changed;
  #waiting = [];
  #timer = null;
  #frames = 0;

  // changed(frames, rows) is told after each drawing how many frames came and how many rows are shown.
  constructor(list, changed) {
    this.#list = list;
    this.#changed = changed;
  }

  add({ name, data, id }) {
    const type = kind(name);
    if (type === "frame") this.#frames++;
    this.#push({ type, name, data, id, at: new Date(), meaning: MEANING[name] });
  }

  // A line from the page itself, to tell when the connection went and came.
  note(text) {
    this.#push({ type: "note", name: "page", meaning: text, at: new Date() });
  }

  clear() {
    this.#waiting = [];
    this.#frames = 0;
    this.#list.replaceChildren();
    this.#changed(0, 0);
  }

  #push(entry) {
    this.#waiting.push(entry);
    // A tab in the background draws seldom; keep no more than could be shown.
    if (this.#waiting.length > 2 * MOST_ROWS) this.#waiting = this.#waiting.slice(-MOST_ROWS);
    this.#timer ??= setTimeout(() => this.#draw(), DRAW_MS);
  }

  #draw() {
    this.#timer = null;
    const fresh = this.#waiting.slice(-MOST_ROWS);
    this.#waiting = [];
    const rows = document.createDocumentFragment();
    for (const entry of fresh.reverse()) rows.append(this.#row(entry));
    this.#list.prepend(rows);
    while (this.#list.childElementCount > MOST_ROWS) this.#list.lastElementChild.remove();
    this.#changed(this.#frames, this.#list.childElementCount);
  }

  #row({ type, name, data, id, at, meaning }) {
    const row = element("li", "row");
    row.dataset.kind = type;
    row.dataset.event = name;
    if (id) row.dataset.id = id;
    const head = element("div", "row-head");
    const time = element("time", "row-time", clock(at));
    time.dateTime = at.toISOString();
    head.append(time, element("span", "badge", name));
    if (id) {
      const place = element("span", "row-id");
      place.append(element("span", "row-id-word", "id "), id);
      head.append(place);
    }
    row.append(head);
    if (meaning) row.append(element("p", "row-meaning", meaning));
    if (data) row.append(this.#text(data));
    else if (type === "frame") row.append(element("p", "row-meaning", "(empty)"));
    return row;
  }

  #text(data) {
    const text = element("pre", "row-data", data.length > MOST_TEXT ? `${data.slice(0, MOST_TEXT)}…` : data);
    if (data.length <= MOST_TEXT) return text;
    const more = element("button", "small", `Show all ${data.length.toLocaleString("en")} characters`);
    more.type = "button";
    more.addEventListener("click", () => {
      text.textContent = data;
      text.tabIndex = -1;
      text.focus();
      more.remove();
    });
    const box = element("div");
    box.append(text, more);
    return box;
  }
}
