// The API page: examples carry the address under which this broker was reached, and can be copied.

import { root } from "./api.js";
import { copyOnPress } from "./copy.js";

const origin = root.href.replace(/\/$/, "");
for (const place of document.querySelectorAll(".origin")) place.textContent = origin;

copyOnPress();
for (const button of document.querySelectorAll("[data-copy]")) button.hidden = false;
