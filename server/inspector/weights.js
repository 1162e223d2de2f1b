// Who answers: the router's choice as the prompt is typed, or the weights that a person sets.

import { post } from "/inspector/api.js";
import { $, bar, colour, element, swatch } from "/inspector/dom.js";

const WAIT = 250; // milliseconds without a key before the router is asked

let domains = [];
let timer = null;
let asking = null;
export let own = false; // the sliders were moved

export function show(names) {
  domains = names;
  own = false;
  $("weights").replaceChildren(...domains.map((name) => {
    const slider = element("input", { type: "range", min: "-2", max: "2", step: "0.01", value: "0", id: `weight-${name}` });
    const shown = element("output", { id: `shown-${name}` }, "0.00");
    slider.addEventListener("input", () => { own = true; $("follow").disabled = false; say(name); });
    const label = element("label", { htmlFor: slider.id }, swatch(domains, name), `${name} `, shown);
    return element("div", { className: "weight" }, label, slider, element("div", { id: `probability-${name}`, className: "probability" }));
  }));
  if (!domains.length) $("weights").append(element("p", {}, "No stacks are served yet: the base answers alone."));
}

function say(name) {
  $(`shown-${name}`).textContent = Number($(`weight-${name}`).value).toFixed(2);
}

function shown(routing) {
  for (const name of domains) {
    const probability = routing.probabilities ? routing.probabilities[name] : undefined;
    $(`probability-${name}`).replaceChildren(...(probability === undefined ? [] : [bar(probability, 1, colour(domains, name))]));
    if (!own) {
      $(`weight-${name}`).value = routing.active.includes(name) ? routing.weights[name] : 0;
      say(name);
    }
  }
  const active = routing.active.map((name) => `${name} ${routing.weights[name].toFixed(2)}`).join(", ") || "the base alone";
  const signed = routing.active.filter((name) => routing.routed_by[name] === "signature");
  const by = signed.length ? ` By their signatures: ${signed.join(", ")}.` : "";
  const gap = routing.gap === null ? "" : ` That no stack helps has the probability ${routing.gap.toFixed(2)}.`;
  $("routing-note").textContent = routing.probabilities
    ? `The router would take ${active} (${routing.router_ms.toFixed(0)} ms).${by}${gap}`
    : "There is no router: the base answers alone unless you set weights.";
}

async function route() {
  const prompt = $("prompt").value;
  if (!prompt.trim() || !domains.length) return;
  if (asking) asking.abort();
  asking = new AbortController();
  try {
    shown(await post("/v1/route", { messages: [{ role: "user", content: prompt }] }, { signal: asking.signal }));
  } catch (error) {
    if (error.name !== "AbortError") $("routing-note").textContent = error.message;
  }
}

export function typed() {
  clearTimeout(timer);
  timer = setTimeout(route, WAIT);
}

export function follow() {
  own = false;
  $("follow").disabled = true;
  return route();
}

/** The field `routing` of a request: the sliders' weights, or the router's choice. */
export function field() {
  if (!own) return { mode: "routed" };
  const chosen = domains.map((name) => [name, Number($(`weight-${name}`).value)]).filter(([, weight]) => weight);
  return { mode: "fixed", weights: Object.fromEntries(chosen) };
}
