// The service, and the key that it may ask for.

import { $ } from "./dom.js";

let key = ""; // in memory only
let retry = null; // what to do again once a key is given

export class Refused extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    Object.assign(this, { status, retryAfter });
  }
}

/** The answer's JSON. Throws `Refused` with the service's own words, or an AbortError. */
export async function call(path, body, signal) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  const method = body ? "POST" : "GET";
  let response;
  try {
    response = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal, credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The service cannot be reached. Is it running?");
  }
  const data = await response.json().catch(() => null);
  if (response.ok && data) return data;
  const message = data?.error?.message ?? `the service answered ${response.status} ${response.statusText}`.trim();
  throw new Refused(response.status, message, response.headers.get("Retry-After"));
}

/** Show what went wrong; for a missing or wrong key, ask for one and do `again` with it. */
export function complain(error, again) {
  if (error.status === 401) return askForKey(error, again);
  const later = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  $("problem").textContent = (error.status ? `${error.status}: ` : "") + error.message + later;
  $("problem").hidden = false;
}

function askForKey(error, again) {
  retry = again;
  if (key) $("key-problem").textContent = `401: ${error.message}`;
  $("unlock").hidden = false;
  $("key").focus();
}

$("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  $("unlock").hidden = true;
  retry?.();
});
