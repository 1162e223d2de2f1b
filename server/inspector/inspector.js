"use strict";

const $ = (id) => document.getElementById(id);
const CUSTOM = "\u0000custom";
let base = null;
let domains = [];
let running = null;
const mine = [];

function headers(key) {
  const value = $(key).value;
  return value ? { Authorization: `Bearer ${value}` } : {};
}

async function get(path, key) {
  const response = await fetch(path, { headers: key ? headers(key) : {} });
  const body = await response.json();
  if (!response.ok) throw new Error(body.error ? body.error.message : response.statusText);
  return body;
}

function element(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}

function fill(id, rows, columns, empty) {
  const cells = rows.map((row) => element("tr", ...row.map((cell, i) => {
    const made = element(i ? "td" : "th", cell instanceof Node ? cell : String(cell));
    if (!i) made.scope = "row";
    return made;
  })));
  if (!cells.length) {
    const none = element("td", empty);
    none.colSpan = columns;
    cells.push(element("tr", none));
  }
  $(id).replaceChildren(...cells);
}

/** A number and a bar of that share of `most`; the bar only repeats the number, so readers skip it. */
function bar(value, most) {
  if (value === null || value === undefined) return "–";
  const inner = document.createElement("span");
  inner.style.width = `${Math.min(100, 100 * Math.abs(value) / most)}%`;
  const outer = element("span", inner);
  outer.className = "bar";
  outer.setAttribute("aria-hidden", "true");
  return element("div", value.toFixed(3), outer);
}

function showRouting(routing) {
  const names = [...new Set([...Object.keys(routing.probabilities || {}), ...Object.keys(routing.weights), ...routing.active])];
  const most = Math.max(1, ...Object.values(routing.weights).map(Math.abs));
  fill("routing", names.map((name) => [
    name,
    bar(routing.probabilities ? routing.probabilities[name] : null, 1),
    bar(routing.weights[name] || 0, most),
    routing.stacks[name] ? `v${routing.stacks[name].version}` : "not applied",
  ]), 4, "Base model only: no stacks.");
  const time = routing.probabilities ? `, router ${routing.router_ms.toFixed(1)} ms` : ", router not asked";
  $("routing-note").textContent = `Mode ${routing.mode}${time}, registry generation ${routing.generation}.`;
}

function size(bytes) {
  return bytes >= 1e6 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e3).toFixed(1)} kB`;
}

async function showModels() {
  const models = (await get("/v1/models", "api-key")).data;
  const root = models.find((model) => model.parent === null);
  base = root.id;
  domains = root.domains;
  const chosen = $("model").value;
  const options = models.map((model) => new Option(model.id, model.id));
  options.push(new Option(`${base} with my own weights`, CUSTOM));
  $("model").replaceChildren(...options);
  if (chosen) $("model").value = chosen;
  const legend = element("legend", "Weights");
  const sliders = domains.flatMap((name) => {
    const input = Object.assign(document.createElement("input"),
      { type: "range", min: "-2", max: "2", step: "0.05", value: "0", id: `weight-${name}` });
    const shown = element("output", "0");
    input.addEventListener("input", () => { shown.textContent = input.value; });
    const label = element("label", `${name}: `, shown);
    label.htmlFor = input.id;
    return [label, input];
  });
  $("weights").replaceChildren(legend, ...sliders);
}

async function showStacks() {
  if (!$("admin-key").value) {
    fill("stacks", domains.map((name) => [name, "–", "–", "–", "–", "–"]), 6, "No stacks yet.");
    $("stacks-note").textContent = "Give the admin key to see versions, sizes and where they are.";
    return;
  }
  const { stacks, generation } = await get("/admin/stacks", "admin-key");
  fill("stacks", stacks.map((stack) => [
    stack.domain, `v${stack.version} of ${stack.versions.length}`,
    `${stack.rounds} × ${stack.experts} × ${stack.rank}`, size(stack.bytes),
    stack.residency + (stack.pinned ? ", pinned" : ""), stack.routable ? "yes" : "no",
  ]), 6, "No stacks yet.");
  $("stacks-note").textContent = `Registry generation ${generation}.`;
}

async function showRequests() {
  const all = $("admin-key").value ? (await get("/admin/requests", "admin-key")).requests : mine;
  fill("requests", all.slice(0, 50).map((record) => [
    record.request_id.slice(0, 12), record.mode,
    record.active.map((name) => `${name} ${record.weights[name].toFixed(2)}`).join(", ") || "none",
    record.probabilities ? `${record.router_ms.toFixed(1)} ms` : "–",
  ]), 4, "None yet.");
}

async function refresh() {
  try {
    const [version, ready] = await Promise.all([get("/version"), fetch("/ready").then((r) => r.json())]);
    const model = version.model;
    $("server").textContent = `${model.name} (${model.quantization}, ${model.dtype}, ${model.device}): ` +
      (ready.ready ? "ready" : "not ready") + (ready.problems.length ? `; ${ready.problems.join("; ")}` : "");
    await showModels();
    await showStacks();
    await showRequests();
  } catch (error) {
    fail(error);
  }
}

function fail(error) {
  $("status").textContent = error.message;
  $("status").className = "failed";
}

/** Yields the objects of a stream of server-sent events. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value;
    const parts = buffer.split("\n\n");
    buffer = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

function request() {
  const custom = $("model").value === CUSTOM;
  const body = {
    model: custom ? base : $("model").value,
    messages: [{ role: "user", content: $("prompt").value }],
    max_tokens: Number($("max-tokens").value),
    temperature: Number($("temperature").value),
    stream: true,
    stream_options: { include_usage: true },
  };
  if (custom) {
    const chosen = domains.map((name) => [name, Number($(`weight-${name}`).value)]).filter(([, weight]) => weight);
    body.routing = { mode: "fixed", weights: Object.fromEntries(chosen) };
  }
  return body;
}

async function ask(submitted) {
  submitted.preventDefault();
  running = new AbortController();
  $("send").disabled = true;
  $("stop").disabled = false;
  $("answer").textContent = "";
  $("status").className = "";
  $("status").textContent = "Answering…";
  const begin = performance.now();
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST", signal: running.signal, body: JSON.stringify(request()),
      headers: { "Content-Type": "application/json", ...headers("api-key") },
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    let usage = null;
    let seen = false;
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      if (chunk.routing && !seen) {
        seen = true;
        showRouting(chunk.routing);
        mine.unshift(chunk.routing);
      }
      for (const choice of chunk.choices) $("answer").append(choice.delta.content || "");
      usage = chunk.usage || usage;
    }
    const seconds = (performance.now() - begin) / 1000;
    $("status").textContent = usage
      ? `Done: ${usage.prompt_tokens} tokens in, ${usage.completion_tokens} out, ${seconds.toFixed(1)} s.`
      : "Done.";
  } catch (error) {
    if (error.name === "AbortError") $("status").textContent = "Stopped.";
    else fail(error);
  } finally {
    running = null;
    $("send").disabled = false;
    $("stop").disabled = true;
    showRequests().catch(fail);
  }
}

$("ask").addEventListener("submit", ask);
$("stop").addEventListener("click", () => running && running.abort());
$("refresh").addEventListener("click", refresh);
$("use-keys").addEventListener("click", refresh);
$("model").addEventListener("change", () => { $("weights").hidden = $("model").value !== CUSTOM; });
$("example").addEventListener("change", () => { if ($("example").value) $("prompt").value = $("example").value; });
refresh();
