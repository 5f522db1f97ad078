// Calls to the broker's HTTP API, and the API key that goes with them. Knows nothing of the page's elements.

import { recall, remember } from "./store.js";

// The folder above this file is the broker's root, also where a proxy serves it below a path.
export const root = new URL("..", import.meta.url);

const TIMEOUT_MS = 15000;

export class ApiError extends Error {
  constructor(status, message) {
    super(message.charAt(0).toUpperCase() + message.slice(1));
    // The HTTP status; 0 when no answer came.
    this.status = status;
  }
}

export const apiKey = () => recall("api-key") ?? "";
export const setApiKey = (key) => remember("api-key", key);

// Ask an endpoint and return its `result`; throws ApiError for everything else.
export async function call(endpoint, parameters = {}) {
  const headers = { "Content-Type": "application/json" };
  if (apiKey()) headers["X-SSE-API-Key"] = apiKey();
  let response;
  let answer;
  try {
    response = await fetch(new URL(endpoint, root), {
      method: "POST",
      headers,
      body: JSON.stringify(parameters),
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
  } catch {
    throw new ApiError(0, "The broker does not answer.");
  }
  try {
    answer = await response.json();
  } catch {
    throw new ApiError(response.status, `The broker answered with status ${response.status} and no JSON.`);
  }
  if (answer.code !== 1) throw new ApiError(response.status, answer.msg ?? `Status ${response.status}`);
  return answer.result;
}

// The claims of a token, for display only: whether they are true is the broker's business.
export function claims(token) {
  try {
    const text = atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/"));
    const bytes = Uint8Array.from(text, (char) => char.charCodeAt(0));
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    return {};
  }
}
