// Who is online: the cluster with its instances, and the devices of one user.

import { call } from "./api.js";
import { element } from "./frames.js";

const $ = (id) => document.getElementById(id);

// A change by this page takes a moment to be counted on other instances.
const SOON_MS = 300;

function card(title, facts) {
  const item = element("li", "card");
  item.append(element("strong", "card-title", title));
  const list = element("dl", "facts");
  for (const [name, value] of facts) {
    if (value === "" || value === undefined) continue;
    const pair = element("div");
    pair.append(element("dt", "", name), element("dd", "", String(value)));
    list.append(pair);
  }
  item.append(list);
  return item;
}

function showCluster(cluster) {
  $("instance-count").textContent = cluster.instance_count.toLocaleString("en");
  $("user-count").textContent = cluster.user_count.toLocaleString("en");
  $("device-count").textContent = cluster.device_count.toLocaleString("en");
  const cards = cluster.instances.map((instance) =>
    card(instance.address, [
      ["version", instance.version],
      ["since", instance.start_time],
      ["devices", instance.device_count],
    ]),
  );
  $("instances").replaceChildren(...cards);
}

function showUser(uid, answer) {
  if (!answer.online) {
    $("devices").replaceChildren(element("li", "card none", `${uid} is not online.`));
    return;
  }
  const cards = answer.devices.map((one) =>
    card(one.device_name, [
      ["since", one.login_time],
      ["last seen", one.last_touch_time],
      ["last frame id", one.last_frame_id || "none yet"],
      ["address", one.device_address],
      ["instance", one.instance_address],
      ["device id", one.device_id],
    ]),
  );
  $("devices").replaceChildren(...cards);
}

export function setUpOnline({ failed, succeeded }) {
  const user = $("lookup-user");
  let own = "";
  let timer;

  async function refresh() {
    clearTimeout(timer);
    const uid = user.value;
    try {
      const [cluster, answer] = await Promise.all([call("info"), uid ? call("info", { uid }) : null]);
      showCluster(cluster);
      if (answer && uid === user.value) showUser(uid, answer);
      $("online-result").textContent = "";
      succeeded();
    } catch (error) {
      failed(error, $("online-result"), refresh);
    }
  }

  document.addEventListener("who", ({ detail }) => {
    if (user.value === own) user.value = detail.uid;
    own = detail.uid;
  });
  $("refresh").addEventListener("click", refresh);
  $("lookup").addEventListener("submit", (event) => {
    event.preventDefault();
    refresh();
  });
  return {
    refresh,
    refreshSoon() {
      clearTimeout(timer);
      timer = setTimeout(refresh, SOON_MS);
    },
  };
}
