// The two forms that act on others: send and kick.

import { call } from "./api.js";

const $ = (id) => document.getElementById(id);

// What a person writes is a list separated by commas; a name of one's own may hold a comma itself and is kept whole.
export function listOf(text, own) {
  if (text === own) return [text];
  return text.split(",").map((item) => item.trim()).filter(Boolean);
}

const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

// A field that holds one's own name follows it until something else is written there.
function followName(field, pick) {
  let own = "";
  document.addEventListener("who", ({ detail }) => {
    if (field.value === own) field.value = pick(detail);
    own = pick(detail);
  });
}

async function submit(form, place, ask, { failed, succeeded }) {
  const button = form.querySelector("[type=submit]");
  if (button.dataset.busy) return;
  button.dataset.busy = "yes";
  try {
    const text = await ask();
    place.dataset.kind = "done";
    // Emptied first, so that the same words are announced again.
    place.textContent = "";
    place.textContent = text;
    succeeded();
  } catch (error) {
    failed(error, place, () => form.requestSubmit());
  } finally {
    delete button.dataset.busy;
  }
}

export function setUpSend({ failed, succeeded, alsoHear }) {
  const form = $("send");
  const to = $("to");
  const own = { uid: "", device: "" };
  const written = { uid: "", device: "" };
  let target = "uid";

  document.addEventListener("who", ({ detail }) => {
    if (target) written[target] = to.value;
    for (const name of ["uid", "device"]) {
      if (written[name] === own[name]) written[name] = detail[name];
      own[name] = detail[name];
    }
    if (target) to.value = written[target];
  });

  form.addEventListener("change", ({ target: changed }) => {
    if (changed.name !== "target") return;
    if (target) written[target] = to.value;
    target = changed.value;
    $("to-field").hidden = !target;
    to.required = target !== "";
    if (!target) return;
    $("to-label").textContent = target === "uid" ? "Users, separated by commas" : "Devices, separated by commas";
    to.value = written[target];
  });

  $("data").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit(form, $("send-result"), async () => {
      const parameters = { data: $("data").value };
      const name = $("event").value;
      if (name) parameters.event = name;
      if (target) parameters[target] = listOf(to.value, own[target]);
      // Before the frame can arrive.
      if (name) alsoHear(name);
      const count = await call("send", parameters);
      return count ? `Sent to ${plural(count, "online device")}.` : "No device of that target is online; those that come back with their last id get it.";
    }, { failed, succeeded });
  });
}

export function setUpKick({ failed, succeeded }) {
  const form = $("kick");
  const users = $("kick-users");
  const devices = $("kick-devices");
  let own = { uid: "", device: "" };
  followName(devices, (who) => who.device);
  document.addEventListener("who", ({ detail }) => (own = detail));

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit(form, $("kick-result"), async () => {
      const parameters = {};
      // A list that is there and names nobody is refused, to protect from kicking more than was meant.
      if (users.value.trim()) parameters.uid = listOf(users.value, own.uid);
      if (devices.value.trim()) parameters.device = listOf(devices.value, own.device);
      if ($("kick-data").value) parameters.data = $("kick-data").value;
      const count = await call("kick", parameters);
      return count ? `Kicked ${plural(count, "device")}.` : "No such device is online.";
    }, { failed, succeeded });
  });
}
