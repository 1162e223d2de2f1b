// What the page asks of the server.

import { $ } from "/inspector/dom.js";

function headers(key) {
  const value = key ? $(key).value : "";
  return value ? { Authorization: `Bearer ${value}` } : {};
}

async function asked(response) {
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new Error(body.error ? body.error.message : response.statusText);
}

export async function get(path, key) {
  return (await asked(await fetch(path, { headers: headers(key) }))).json();
}

export async function text(path, key) {
  return (await asked(await fetch(path, { headers: headers(key) }))).text();
}

function send(path, body, key, signal) {
  return fetch(path, {
    method: "POST", signal, body: JSON.stringify(body),
    headers: { "Content-Type": "application/json", ...headers(key) },
  });
}

export async function post(path, body, { key = "api-key", signal } = {}) {
  return (await asked(await send(path, body, key, signal))).json();
}

/** Yields the objects of a stream of server-sent events; an error in it is raised. */
export async function* stream(path, body, signal) {
  const response = await asked(await send(path, body, "api-key", signal));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (buffer + value).split("\n\n");
    buffer = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const found = JSON.parse(data);
      if (found.error) throw new Error(found.error.message);
      yield found;
    }
  }
}
