// Which stack moved which token of an answer: a map of heat over its tokens.

import { post } from "/inspector/api.js";
import { $, element, swatch } from "/inspector/dom.js";

const ALL = "all stacks";
const STRONG = 2; // nats at which a colour is full

let found = null;
let at = 0;

function moved(token, by) {
  return token.composed - (by === ALL ? token.base : token.without[by]);
}

function draw(by) {
  $("heat").replaceChildren(...found.tokens.map((token, i) => {
    const nats = moved(token, by);
    const made = element("span", { className: nats < 0 ? "token less" : "token more" }, token.text);
    made.style.setProperty("--strength", Math.min(1, Math.abs(nats) / STRONG).toFixed(3));
    made.addEventListener("pointerenter", () => point(i));
    return made;
  }));
  point(Math.min(at, found.tokens.length - 1));
}

function point(i) {
  at = i;
  [...$("heat").children].forEach((child, j) => child.classList.toggle("here", j === i));
  const token = found.tokens[i];
  const parts = Object.keys(token.without).map((d) => `${d} ${signed(moved(token, d))}`);
  $("token").textContent = `“${token.text}”: ${(100 * Math.exp(token.base)).toFixed(1)} % under the base, ` +
    `${(100 * Math.exp(token.composed)).toFixed(1)} % composed` + (parts.length ? ` (nats: ${parts.join(", ")})` : "");
}

function signed(value) {
  return `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
}

export function hide() {
  $("attribution").hidden = true;
}

/** Asks for the attribution of `completion`, composed by `weights`, and shows it. */
export async function show(prompt, completion, weights, domains) {
  found = await post("/v1/attribution", {
    messages: [{ role: "user", content: prompt }], completion,
    routing: Object.keys(weights).length ? { mode: "fixed", weights } : { mode: "base" },
  });
  at = 0;
  const names = [ALL, ...Object.keys(weights)];
  $("moved-by").replaceChildren(...names.map((name, i) => {
    const radio = element("input", { type: "radio", name: "moved-by", id: `moved-by-${i}`, checked: i === 0 });
    radio.addEventListener("change", () => draw(name));
    const sum = found.tokens.reduce((total, token) => total + moved(token, name), 0);
    return element("label", { htmlFor: radio.id }, radio, i ? swatch(domains, name) : "", ` ${name} ${signed(sum)}`);
  }));
  $("attribution").hidden = false;
  draw(ALL);
}

export function keyed(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step || !found) return;
  event.preventDefault();
  point(Math.max(0, Math.min(found.tokens.length - 1, at + step)));
}
