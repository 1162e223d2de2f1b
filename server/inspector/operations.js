// For whoever runs the server: load, requests as they come, the router's choices, stacks.

import { get, post, text } from "/inspector/api.js";
import { $, bar, colour, element, fill, size, swatch } from "/inspector/dom.js";

const SHOWN = 30; // requests on the page

export const mine = []; // routing records of this page's own requests, for who has no admin key

const GAUGES = [["brainstacks_running", "running"], ["brainstacks_waiting", "waiting"], ["brainstacks_kv_tokens_used", "KV tokens"]];
let generated = null; // [milliseconds, tokens] at the last look

export async function load() {
  const lines = (await text("/metrics", "admin-key")).split("\n").filter((line) => line && !line.startsWith("#"));
  const value = (name) => { // of all its labels together
    const found = lines.filter((each) => each.split(/[ {]/)[0] === name);
    return found.length ? found.reduce((sum, line) => sum + Number(line.split(" ").pop()), 0) : null;
  };
  const parts = GAUGES.map(([name, label]) => [label, value(name)]);
  const tokens = value("brainstacks_completion_tokens_total"), now = performance.now();
  if (generated && tokens !== null) parts.push(["tokens/s", Math.round(1000 * (tokens - generated[1]) / (now - generated[0]))]);
  generated = [now, tokens];
  $("load").replaceChildren(...parts.filter(([, number]) => number !== null)
    .map(([label, number]) => element("div", {}, element("dt", {}, label), element("dd", {}, number.toLocaleString()))));
}

function ago(created) {
  const seconds = Math.max(0, Date.now() / 1000 - created);
  return seconds < 90 ? `${seconds.toFixed(0)} s ago` : `${(seconds / 60).toFixed(0)} min ago`;
}

/** A request as a strip whose parts are as wide as its stacks' weights. */
function strip(record, domains) {
  const total = record.active.reduce((sum, name) => sum + Math.abs(record.weights[name]), 0);
  const parts = record.active.map((name) => {
    const part = element("span", { className: colour(domains, name) });
    part.style.width = `${100 * Math.abs(record.weights[name]) / total}%`;
    return part;
  });
  const made = element("span", { className: "strip" }, ...parts);
  made.setAttribute("aria-hidden", "true");
  return made;
}

export async function requests(domains) {
  const admin = $("admin-key").value !== "";
  const all = admin ? (await get("/admin/requests", "admin-key")).requests : mine;
  const records = all.filter((record) => !record.request_id.includes("#")).slice(0, SHOWN); // # marks an attribution's parts
  $("requests-note").textContent = admin ? "Everyone's, newest first." : "This page's, newest first; the admin key shows everyone's.";
  $("timeline").replaceChildren(...records.map((record) => {
    const names = record.active.map((name) => `${name} ${record.weights[name].toFixed(2)}`).join(", ") || "base alone";
    return element("li", {}, strip(record, domains), element("span", { className: "what" }, names),
      element("small", {}, `${record.mode}, ${ago(record.created)}, ${record.request_id.slice(0, 8)}`));
  }));
  if (!records.length) $("timeline").append(element("li", {}, "None yet."));
  router(records.filter((record) => record.probabilities), domains);
}

function router(records, domains) {
  fill("router", records.length ? domains.map((name) => {
    const known = records.filter((record) => name in record.probabilities);
    const mean = known.reduce((sum, record) => sum + record.probabilities[name], 0) / Math.max(1, known.length);
    const active = records.filter((record) => record.active.includes(name)).length;
    return [element("span", {}, swatch(domains, name), name), known.length ? bar(mean, 1, colour(domains, name)) : "not known to it", `${active} of ${records.length}`];
  }) : [], 3, "No routed request yet.");
  const times = records.map((record) => record.router_ms).filter(Boolean).sort((a, b) => a - b);
  const gaps = records.map((record) => record.gap).filter((gap) => gap !== null);
  const open = gaps.length ? ` No stack fits ${gaps.filter((gap) => gap > 0.5).length} of ${gaps.length} prompts.` : "";
  $("router-note").textContent = times.length ? `Median time of its pass: ${times[Math.floor(times.length / 2)].toFixed(1)} ms.${open}` : "";
}

export async function stacks(domains, changed) {
  if (!$("admin-key").value) {
    fill("stacks", domains.map((name) => [element("span", {}, swatch(domains, name), name), ...Array(7).fill("–")]), 8, "No stacks yet.");
    $("stacks-note").textContent = "Give the admin key to see versions, sizes and where they are, and to change them.";
    return;
  }
  const { stacks: all, generation } = await get("/admin/stacks", "admin-key");
  const act = async (path, body) => {
    try {
      await post(`/admin/stacks/${path}`, body, { key: "admin-key" });
      await changed();
    } catch (error) {
      $("stacks-note").textContent = error.message;
    }
  };
  fill("stacks", all.map((stack) => {
    const versions = element("select", { ariaLabel: `Version of ${stack.domain} that serves` },
      ...stack.versions.map(({ version }) => new Option(`v${version}`, version, false, version === stack.version)));
    versions.addEventListener("change", () => act(`${stack.domain}/activate`, { version: Number(versions.value) }));
    const button = (verb, label) => {
      const made = element("button", { type: "button", ariaLabel: `${label} ${stack.domain}` }, label);
      made.addEventListener("click", () => act(`${stack.domain}/${verb}`, {}));
      return made;
    };
    const there = stack.residency === "device";
    return [
      element("span", {}, swatch(domains, stack.domain), stack.domain), versions,
      `${stack.rounds} × ${stack.experts} × ${stack.rank}`, size(stack.bytes),
      stack.residency + (stack.pinned ? ", pinned" : ""), stack.in_flight, stack.routed_by ?? "no",
      element("span", { className: "buttons" }, stack.pinned ? button("unpin", "Unpin") : button("pin", "Pin"), there ? button("evict", "Evict") : button("load", "Load")),
    ];
  }), 8, "No stacks yet.");
  $("stacks-note").textContent = `Registry generation ${generation}.`;
}
