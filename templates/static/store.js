// What the page remembers: for this tab by default (so that two tabs are two devices), or for the whole browser.
// A browser may refuse storage; then things are remembered until the page is left.

const PREFIX = "sse-broker.";
const fallback = new Map();

function storage(shared) {
  try {
    return shared ? window.localStorage : window.sessionStorage;
  } catch {
    return null;
  }
}

export function recall(name, { shared = false } = {}) {
  return storage(shared)?.getItem(PREFIX + name) ?? fallback.get(name) ?? null;
}

export function remember(name, value, { shared = false } = {}) {
  fallback.set(name, value);
  try {
    storage(shared)?.setItem(PREFIX + name, value);
  } catch {
    // Full or forbidden: the fallback has it.
  }
}
