// Vercel's `ai` with `@ai-sdk/openai-compatible`.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, generateText, streamText, tool } from "ai";
import { z } from "zod";
import {
  CALL_TOKENS, FOLLOW_UP, KEY, MODEL, PRODUCT, QUESTION, RECORD, ROUTING, TOKENS, UNKNOWN, URL,
} from "./questions.mjs";
import { expect, report } from "./report.mjs";

const server = createOpenAICompatible({
  name: "brainstacks",
  baseURL: URL,
  apiKey: KEY,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const settings = { model: server(MODEL), temperature: 0, maxOutputTokens: TOKENS, maxRetries: 0 };
const roomy = { ...settings, maxOutputTokens: CALL_TOKENS };
const asked = { role: "user", content: QUESTION };
const Person = z.object({ name: z.string(), age: z.int() });
const multiply = tool({
  description: "Multiply two whole numbers.",
  inputSchema: z.object({ a: z.int(), b: z.int() }),
  execute: ({ a, b }) => a * b,
});

await report({
  async plain() {
    const answer = await generateText({ prompt: QUESTION, ...settings });
    expect(answer.text, "the answer is empty");
    expect(answer.usage.outputTokens <= TOKENS, `usage: ${JSON.stringify(answer.usage)}`);
  },
  async streaming() {
    const stream = streamText({ prompt: QUESTION, ...settings });
    const parts = [];
    for await (const part of stream.textStream) parts.push(part);
    const whole = await generateText({ prompt: QUESTION, ...settings });
    expect(parts.length > 1, "it came in one piece");
    expect(parts.join("") === whole.text, "streamed, it is another answer");
    const usage = await stream.usage;
    expect(usage.totalTokens === whole.usage.totalTokens, `usage: ${JSON.stringify(usage)}`);
  },
  async multi_turn() {
    const first = await generateText({ messages: [asked], ...settings });
    const messages = [asked, ...first.response.messages, { role: "user", content: FOLLOW_UP }];
    const second = await generateText({ messages, ...settings });
    expect(second.text, "the answer is empty");
  },
  async structured() {
    const answer = await generateText({ prompt: RECORD, output: Output.object({ schema: Person }), ...roomy });
    expect(Number.isInteger(answer.output.age), `no object: ${JSON.stringify(answer.output)}`);
  },
  async tools() {
    const room = { ...roomy, tools: { multiply } };
    const question = { role: "user", content: PRODUCT };
    await generateText({ messages: [question], toolChoice: "auto", ...room });
    const first = await generateText({ messages: [question], toolChoice: "required", ...room });
    expect(first.toolResults.length > 0, `no call: ${JSON.stringify(first.response.messages)}`);
    const messages = [question, ...first.response.messages]; // the call and its result
    const last = await generateText({ messages, ...room });
    expect(last.text || last.toolCalls.length, "the answer after the result is empty");
  },
  async errors() {
    try {
      await generateText({ prompt: QUESTION, ...settings, model: server(UNKNOWN) });
    } catch (error) {
      if (APICallError.isInstance(error) && error.statusCode === 404) return;
      throw error;
    }
    throw new Error("an unknown model answered");
  },
  async routing() {
    const answer = await generateText({
      prompt: QUESTION,
      providerOptions: { brainstacks: ROUTING },
      ...settings,
    });
    const { active } = answer.response.body.routing;
    expect(active.join() === "math", `routing: ${JSON.stringify(active)}`);
  },
});
