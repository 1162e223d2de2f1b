// `openai` for node.

import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import {
  CALL_TOKENS, FOLLOW_UP, KEY, MODEL, PRODUCT, QUESTION, RECORD, ROUTING, TOKENS, UNKNOWN, URL,
} from "./questions.mjs";
import { expect, report } from "./report.mjs";

const chat = new OpenAI({ baseURL: URL, apiKey: KEY, maxRetries: 0 }).chat.completions;
const settings = { model: MODEL, temperature: 0, max_tokens: TOKENS };
const roomy = { ...settings, max_tokens: CALL_TOKENS };
const asked = [{ role: "user", content: QUESTION }];
const Person = z.object({ name: z.string(), age: z.int() });
const multiply = {
  type: "function",
  function: {
    name: "multiply",
    description: "Multiply two whole numbers.",
    parameters: z.toJSONSchema(z.object({ a: z.int(), b: z.int() })),
  },
};

await report({
  async plain() {
    const answer = await chat.create({ messages: asked, ...settings });
    expect(answer.choices[0].message.content, "the answer is empty");
    expect(answer.usage.completion_tokens <= TOKENS, `usage: ${JSON.stringify(answer.usage)}`);
  },
  async streaming() {
    const whole = await chat.create({ messages: asked, ...settings });
    const stream = chat.stream({ messages: asked, stream_options: { include_usage: true }, ...settings });
    let deltas = 0;
    stream.on("content", () => deltas++);
    const final = await stream.finalChatCompletion();
    expect(deltas > 1, "it came in one piece");
    expect(
      final.choices[0].message.content === whole.choices[0].message.content,
      "streamed, it is another answer",
    );
    expect(final.usage.total_tokens === whole.usage.total_tokens, `usage: ${JSON.stringify(final.usage)}`);
  },
  async multi_turn() {
    const first = await chat.create({ messages: asked, ...settings });
    const messages = [...asked, first.choices[0].message, { role: "user", content: FOLLOW_UP }];
    const second = await chat.create({ messages, ...settings });
    expect(second.choices[0].message.content, "the answer is empty");
  },
  async structured() {
    const messages = [{ role: "user", content: RECORD }];
    const answer = await chat.parse({
      messages,
      response_format: zodResponseFormat(Person, "person"),
      ...roomy,
    });
    expect(answer.choices[0].message.parsed, `no object: ${JSON.stringify(answer)}`);
  },
  async tools() {
    const question = { role: "user", content: PRODUCT };
    const room = { ...roomy, tools: [multiply], parallel_tool_calls: false };
    await chat.create({ messages: [question], tool_choice: "auto", ...room });
    const first = await chat.create({ messages: [question], tool_choice: "required", ...room });
    const { message } = first.choices[0];
    const { a, b } = JSON.parse(message.tool_calls[0].function.arguments);
    expect(Number.isInteger(a) && Number.isInteger(b), `the call: ${JSON.stringify(message)}`);
    const result = { role: "tool", tool_call_id: message.tool_calls[0].id, content: "51" };
    const last = await chat.create({ messages: [question, message, result], ...room });
    const { content, tool_calls } = last.choices[0].message;
    expect(content || tool_calls, "the answer after the result is empty");
  },
  async logprobs() {
    const answer = await chat.create({ messages: asked, logprobs: true, top_logprobs: 2, ...settings });
    const found = answer.choices[0].logprobs;
    expect(found.content[0].top_logprobs.length === 2, `logprobs: ${JSON.stringify(found)}`);
  },
  async errors() {
    try {
      await chat.create({ messages: asked, ...settings, model: UNKNOWN });
    } catch (error) {
      if (error instanceof OpenAI.NotFoundError) return;
      throw error;
    }
    throw new Error("an unknown model answered");
  },
  async routing() {
    const answer = await chat.create({ messages: asked, ...ROUTING, ...settings });
    expect(answer.routing.active.join() === "math", `routing: ${JSON.stringify(answer.routing)}`);
  },
});
