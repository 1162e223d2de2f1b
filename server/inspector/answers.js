// One prompt answered three ways, side by side.

import { stream } from "/inspector/api.js";
import { $, element } from "/inspector/dom.js";

const WAYS = [
  { name: "Base", about: "no stacks", routing: () => ({ mode: "base" }) },
  { name: "Composed", about: "the router's choice, or your weights", routing: (chosen) => chosen },
  { name: "Ungated", about: "every stack at 1.0", routing: () => ({ mode: "ungated" }) },
];

export function show() {
  $("columns").replaceChildren(...WAYS.map(({ name, about }) => element("article", { className: "way" },
    element("h3", {}, name, " ", element("small", {}, about)),
    element("div", { id: `answer-${name}`, className: "answer", tabIndex: 0 }),
    element("p", { id: `told-${name}`, className: "hint" }, " "),
  )));
}

async function one({ name, routing }, asked, chosen, signal, onRouting) {
  const begin = performance.now();
  const target = $(`answer-${name}`);
  let tokens = 0, said = "", first = null, record = null;
  target.textContent = "";
  $(`told-${name}`).textContent = "…";
  const body = { ...asked, routing: routing(chosen), stream: true, stream_options: { include_usage: true } };
  for await (const chunk of stream("/v1/chat/completions", body, signal)) {
    if (chunk.routing && !record) onRouting(record = chunk.routing);
    for (const choice of chunk.choices) {
      const piece = choice.delta.content || "";
      if (piece && first === null) first = performance.now() - begin;
      said += piece;
      target.append(piece);
      target.scrollTop = target.scrollHeight;
    }
    if (chunk.usage) tokens = chunk.usage.completion_tokens;
  }
  const seconds = (performance.now() - begin) / 1000;
  const by = record && record.active.length ? record.active.map((d) => `${d} ${record.weights[d].toFixed(2)}`).join(", ") : "base";
  $(`told-${name}`).textContent = `${by} · ${tokens} tokens · first after ${((first || 0) / 1000).toFixed(2)} s · ${(tokens / seconds).toFixed(0)} tok/s`;
  return { said, record };
}

/** Asks all three at once; gives what the composed one said and how. Raises what ends one of them. */
export async function ask(asked, chosen, signal, onRouting) {
  const [, composed] = await Promise.all(WAYS.map((way) => one(way, asked, chosen, signal, onRouting)));
  return composed;
}
