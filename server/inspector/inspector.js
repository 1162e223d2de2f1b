// The page: who would answer, three answers side by side, which stack moved which token, and what the server does.

import * as answers from "/inspector/answers.js";
import { get } from "/inspector/api.js";
import * as attribution from "/inspector/attribution.js";
import { $ } from "/inspector/dom.js";
import * as operations from "/inspector/operations.js";
import * as weights from "/inspector/weights.js";

const LOOK = 2000; // milliseconds between two looks at the server

let domains = [];
let running = null;

function fail(error) {
  $("status").textContent = error.name === "AbortError" ? "Stopped." : error.message;
  $("status").className = error.name === "AbortError" ? "" : "failed";
}

function say(text) {
  $("status").className = "";
  $("status").textContent = text;
}

async function look() {
  const noLoad = () => $("load").replaceChildren(); // the metrics may be closed
  await Promise.all([operations.load().catch(noLoad), operations.requests(domains)]);
}

async function refresh() {
  const [version, ready] = await Promise.all([get("/version"), fetch("/ready").then((response) => response.json())]);
  const model = version.model;
  $("server").textContent = `${model.name} (${model.quantization}, ${model.dtype}, ${model.device}): ` +
    (ready.ready ? "ready" : "not ready") + (ready.problems.length ? `; ${ready.problems.join("; ")}` : "");
  const root = (await get("/v1/models", "api-key")).data.find((each) => each.parent === null);
  if (root.domains.join() !== domains.join()) weights.show(domains = root.domains);
  await operations.stacks(domains, refresh);
  await look();
}

async function ask() {
  running = new AbortController();
  $("send").disabled = true;
  $("stop").disabled = false;
  attribution.hide();
  say("Answering…");
  const prompt = $("prompt").value;
  const asked = {
    model: (await get("/version")).model.name, messages: [{ role: "user", content: prompt }],
    max_tokens: Number($("max-tokens").value), temperature: Number($("temperature").value),
  };
  try {
    const { said, record } = await answers.ask(asked, weights.field(), running.signal, (routing) => operations.mine.unshift(routing));
    say("Done. Asking which stack moved which token…");
    if (said) {
      const active = Object.fromEntries(record.active.map((name) => [name, record.weights[name]]));
      await attribution.show(prompt, said, active, domains);
    }
    say("Done.");
  } finally {
    running.abort(); // what still runs when one of them has failed
    $("send").disabled = false;
    $("stop").disabled = true;
  }
}

answers.show();
$("ask").addEventListener("submit", (event) => { event.preventDefault(); ask().catch(fail); });
$("stop").addEventListener("click", () => running && running.abort());
$("follow").addEventListener("click", () => weights.follow());
$("prompt").addEventListener("input", weights.typed);
$("example").addEventListener("change", () => { if ($("example").value) { $("prompt").value = $("example").value; weights.typed(); } });
$("use-keys").addEventListener("click", () => refresh().catch(fail));
$("heat").addEventListener("keydown", attribution.keyed);
refresh().catch(fail);
setInterval(() => { if (!document.hidden) look().catch(() => {}); }, LOOK); // the next one may find the server again
