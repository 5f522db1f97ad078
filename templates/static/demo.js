// The demo page: who you are, the token, the connection and the list of what arrives.

import { apiKey, ApiError, call, claims, setApiKey } from "./api.js";
import { Connection } from "./connection.js";
import { copyOnPress } from "./copy.js";
import { FrameList } from "./frames.js";
import { setUpKick, setUpSend } from "./forms.js";
import { setUpOnline } from "./online.js";
import { recall, remember } from "./store.js";

const $ = (id) => document.getElementById(id);
const user = $("user");
const device = $("device");
const lastId = $("last-id");

// --- Who: kept for this tab; the first user name is shared by the tabs of a browser, so they begin as one user. ---

function randomName(prefix) {
  const bytes = crypto.getRandomValues(new Uint8Array(2));
  return `${prefix}-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

function firstUser() {
  const name = recall("user", { shared: true }) ?? randomName("user");
  remember("user", name, { shared: true });
  return name;
}

user.value = recall("user") ?? firstUser();
device.value = recall("device") ?? randomName("tab");
$("event-names").value = recall("event-names") ?? "";

const who = () => ({ uid: user.value, device: device.value });

// Ids belong to one device of one user: another user must not go on from them.
const idSlot = ({ uid, device }) => `last-id:${JSON.stringify([uid, device])}`;

function saveWho() {
  remember("user", user.value);
  remember("device", device.value);
  lastId.value = recall(idSlot(who())) ?? "";
  document.dispatchEvent(new CustomEvent("who", { detail: who() }));
}

// --- The token ---

let shown = null;

function showToken(token) {
  const { exp = 0, iat = 0, uid, device_name: bound } = claims(token);
  // The lifetime counts from its arrival here: this machine's clock may differ from the broker's.
  shown = { token, until: performance.now() + (exp - iat) * 1000, who: JSON.stringify(who()) };
  $("token").value = token;
  $("token-claims").textContent = bound ? `For user ${uid}, device ${bound}.` : `For user ${uid}, any device.`;
  $("token-box").hidden = false;
  showExpiry();
}

function showExpiry() {
  if (!shown) return;
  const left = Math.ceil((shown.until - performance.now()) / 1000);
  $("token-expiry").textContent = left > 0 ? `expires in ${left} s` : "expired; the next connection gets a new one";
  $("token-expiry").dataset.expired = left <= 0;
}

async function fetchToken({ uid, device }) {
  const parameters = { uid };
  if ($("bind").checked) parameters.device = device;
  if ($("ttl").value) parameters.ttl = Number($("ttl").value);
  const token = await call("token", parameters);
  showToken(token);
  return token;
}

// A token just asked for is used; every later attempt gets its own.
let spare = null;

async function takeToken(now) {
  const token = spare;
  spare = null;
  const good = token && shown?.token === token && shown.who === JSON.stringify(now);
  return good && shown.until - performance.now() > 2000 ? token : fetchToken(now);
}

// --- The connection ---

const STATES = {
  idle: "Not connected",
  token: "Getting a token",
  connecting: "Connecting",
  open: "Connected",
  reconnecting: "Lost, reconnecting",
  waiting: "Lost, trying again soon",
  refused: "Not connected",
  kicked: "Kicked",
  extruded: "Replaced",
};

const frames = new FrameList($("frames"), (total, rows) => {
  $("empty").hidden = rows > 0;
  $("count").textContent = total ? `${total.toLocaleString("en")} ${total === 1 ? "frame" : "frames"}` : "";
});

const connection = new Connection({
  token: takeToken,
  lastId: (now) => recall(idSlot(now)) ?? "",
  event: arrived,
  state: changed,
});

function arrived(frame) {
  frames.add(frame);
  if (frame.id) {
    remember(idSlot(who()), frame.id);
    lastId.value = frame.id;
  }
  if (frame.name === "sys_replay_gap") warnOfGap(frame.data);
}

function warnOfGap(data) {
  let oldest = "";
  try {
    oldest = ` The oldest one left is ${JSON.parse(data).oldest}.`;
  } catch {
    // Said without it.
  }
  notify("warning", `Some frames are lost: they came after your last id, but are no longer kept.${oldest}`);
}

const DETAILS = {
  open: () => hideNotice("end"),
  reconnecting: () => frames.note("Connection lost. The browser reconnects by itself."),
  waiting: ({ reason, delay }) =>
    frames.note(`${reason} Trying again in ${(delay / 1000).toFixed(1)} s, with a fresh token and the last id.`),
  refused: (error) => failed(error, $("you-result"), connect),
  kicked: (data) => {
    const reason = data ? ` The reason given: ${data}` : "";
    notify("end", `This device was kicked. It stays away until you connect again.${reason}`);
  },
  extruded: (address) =>
    notify("end", `A newer stream of this device, from ${address}, took over. This page stays away, so that the two do
      not fight. To have both, choose another device name.`),
};

function changed(name, detail) {
  $("state").dataset.state = name;
  if ($("state").textContent !== STATES[name]) $("state").textContent = STATES[name];
  for (const field of [user, device, lastId]) field.readOnly = connection.active;
  swapButtons(connection.active);
  DETAILS[name]?.(detail);
  if (["open", "kicked", "extruded", "idle"].includes(name)) online.refreshSoon();
}

// One of the two is there at a time; the keyboard's place moves to the other.
function swapButtons(active) {
  const [show, hide] = active ? [$("disconnect"), $("connect")] : [$("connect"), $("disconnect")];
  const focused = document.activeElement === hide;
  show.hidden = false;
  hide.hidden = true;
  if (focused) show.focus();
}

function connect() {
  hideNotice("end", "warning");
  $("you-result").textContent = "";
  saveNames();
  remember(idSlot(who()), lastId.value.trim());
  spare = shown?.who === JSON.stringify(who()) && !shown.used ? shown.token : null;
  if (shown) shown.used = true;
  connection.connect(who());
}

// --- Notices ---

function notify(kind, text) {
  $("notice").dataset.kind = kind;
  $("notice").hidden = false;
  $("notice-text").textContent = text;
  $("again").hidden = kind !== "end";
  $("dismiss").hidden = kind === "end";
}

function hideNotice(...kinds) {
  if (kinds.includes($("notice").dataset.kind)) $("notice").hidden = true;
}

// Say what went wrong beside the form; when a key is missing or opens too little, ask for one and then repeat what was tried.
let repeat = null;

function failed(error, place, again) {
  if (!(error instanceof ApiError)) throw error;
  place.dataset.kind = "error";
  place.textContent = error.message;
  if (![401, 403].includes(error.status)) return;
  $("key-panel").hidden = false;
  $("key-result").dataset.kind = "error";
  const why = error.status === 403 ? "This key is not good for that. Give another one." : "The broker does not know this key.";
  $("key-result").textContent = apiKey() ? why : "";
  // Who pressed a button may be far below; who types elsewhere while the page tries by itself is not disturbed.
  if (place.closest("section").contains(document.activeElement)) {
    $("key").focus();
    $("key").select();
  }
  repeat = () => {
    place.textContent = "";
    again();
  };
}

function succeeded() {
  if ($("key-panel").hidden) return;
  if ($("key-panel").contains(document.activeElement)) (connection.active ? $("disconnect") : $("connect")).focus();
  $("key-panel").hidden = true;
  repeat = null;
}

// --- Wiring ---

function saveNames() {
  const names = $("event-names").value.split(",").map((name) => name.trim()).filter(Boolean);
  remember("event-names", names.join(", "));
  connection.listen(names);
}

// Sending with a name that this page does not hear would look like a loss.
function alsoHear(name) {
  const names = $("event-names").value.split(",").map((word) => word.trim()).filter(Boolean);
  if (!names.includes(name)) $("event-names").value = [...names, name].join(", ");
  saveNames();
  connection.listen([name]);
}

$("you").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!connection.active) connect();
});
$("disconnect").addEventListener("click", () => connection.disconnect());
$("again").addEventListener("click", () => {
  connect();
  $("disconnect").focus();
});
$("dismiss").addEventListener("click", () => ($("notice").hidden = true));
$("clear").addEventListener("click", () => frames.clear());
$("event-names").addEventListener("change", saveNames);
for (const field of [user, device]) field.addEventListener("input", saveWho);

async function getToken() {
  if (!$("you").reportValidity()) return;
  try {
    await fetchToken(who());
    $("you-result").textContent = "";
    succeeded();
  } catch (error) {
    failed(error, $("you-result"), getToken);
  }
}
$("get-token").addEventListener("click", getToken);

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setApiKey($("key").value);
  repeat?.();
});

const shared = { failed, succeeded };
const online = setUpOnline(shared);
setUpSend({ ...shared, alsoHear });
setUpKick(shared);
copyOnPress();
saveWho();
saveNames();
setInterval(showExpiry, 500);
online.refresh();
