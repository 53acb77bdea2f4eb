// Runs clients of the AI APIs in JavaScript against a gateway, and prints their results as JSON.
// usage: node node_clients.mjs URL; packages are resolved from the working directory.

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const resolve = createRequire(`${process.cwd()}/`).resolve;
const load = (name) => import(pathToFileURL(resolve(name)));
globalThis.AI_SDK_LOG_WARNINGS = false;
const [, , url] = process.argv;
const base = `${url}/v1`;
const OpenAI = (await load("openai")).default;
const Anthropic = (await load("@anthropic-ai/sdk")).default;
const { streamText, stepCountIs, tool, jsonSchema } = await load("ai");
const { createOpenAI } = await load("@ai-sdk/openai");
const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
const { createAnthropic } = await load("@ai-sdk/anthropic");
const { ChatOpenAI } = await load("@langchain/openai");

const options = { apiKey: "k", maxRetries: 0 };
const openai = new OpenAI({ ...options, baseURL: base });
const anthropic = new Anthropic({ ...options, baseURL: url });
const aiOpenai = createOpenAI({ apiKey: "k", baseURL: base });
const compatible = createOpenAICompatible({ name: "cortex", apiKey: "k", baseURL: base });
const aiAnthropic = createAnthropic({ apiKey: "k", baseURL: base });

async function collect(stream, text) {
  let all = "";
  for await (const item of stream) all += text(item) ?? "";
  return all;
}

async function withAiSdk(model, prompt, more = {}) {
  let text = "", error = null;
  const result = streamText({ model, prompt, maxRetries: 0, onError() {}, ...more });
  try {
    for await (const part of result.fullStream) {
      if (part.type === "text-delta") text += part.text;
      if (part.type === "error") error = part.error;
    }
  } catch (cut) {
    error ??= cut; // the cut of a failed chat stream comes after the part that says why
  }
  if (error) throw error instanceof Error ? error : new Error(JSON.stringify(error));
  return text;
}

const weather = tool({
  description: "Return the weather.",
  inputSchema: jsonSchema({ type: "object", properties: { city: { type: "string" } } }),
  execute: async ({ city }) => `sunny in ${city}`,
});

async function chat(content) {
  const messages = [{ role: "user", content }];
  const stream = await openai.chat.completions.create({ model: "m", messages, stream: true });
  return collect(stream, (chunk) => chunk.choices[0]?.delta?.content);
}

async function responses(input) {
  const stream = await openai.responses.create({ model: "m", input, stream: true });
  return collect(stream, (e) => (e.type === "response.output_text.delta" ? e.delta : ""));
}

async function twoResponses() {
  const first = await openai.responses.create({ model: "m", input: "hello" });
  const next = { model: "m", input: "hello", previous_response_id: first.id };
  return (await openai.responses.create(next)).output_text;
}

async function messages(content) {
  const body = { model: "m", max_tokens: 99, messages: [{ role: "user", content }] };
  return (await anthropic.messages.stream(body).finalMessage()).content[0].text;
}

const langchain = (more) =>
  new ChatOpenAI({ model: "m", apiKey: "k", maxRetries: 0, configuration: { baseURL: base }, ...more });

async function withLangchain(model, prompt) {
  return collect(await model.stream(prompt), (chunk) =>
    typeof chunk.content === "string"
      ? chunk.content
      : chunk.content.map((part) => part.text ?? "").join(""));
}

const steps = { tools: { weather }, stopWhen: stepCountIs(2) };
const cases = {
  "openai: chat": () => chat("hello"),
  "openai: failed chat": () => chat("break"),
  "openai: responses": () => responses("hello"),
  "openai: failed responses": () => responses("break"),
  "openai: stored responses": () => twoResponses(),
  "anthropic: messages": () => messages("hello"),
  "anthropic: failed messages": () => messages("break"),
  "ai: chat": () => withAiSdk(aiOpenai.chat("m"), "hello"),
  "ai: failed chat": () => withAiSdk(aiOpenai.chat("m"), "break"),
  "ai: chat tools": () => withAiSdk(aiOpenai.chat("m"), "weather", steps),
  "ai: compatible chat": () => withAiSdk(compatible("m"), "hello"),
  "ai: failed compatible chat": () => withAiSdk(compatible("m"), "break"),
  "ai: responses": () => withAiSdk(aiOpenai("m"), "hello"),
  "ai: failed responses": () => withAiSdk(aiOpenai("m"), "break"),
  "ai: responses tools": () => withAiSdk(aiOpenai("m"), "weather", steps),
  "ai: messages": () => withAiSdk(aiAnthropic("m"), "hello"),
  "ai: failed messages": () => withAiSdk(aiAnthropic("m"), "break"),
  "langchain: chat": () => withLangchain(langchain({}), "hello"),
  "langchain: failed chat": () => withLangchain(langchain({}), "break"),
  "langchain: responses": () => withLangchain(langchain({ useResponsesApi: true }), "hello"),
  "langchain: failed responses": () =>
    withLangchain(langchain({ useResponsesApi: true }), "break"),
};

const results = {};
for (const [name, run] of Object.entries(cases)) {
  try {
    results[name] = { text: await run() };
  } catch (error) {
    results[name] = { error: String(error.message ?? error) };
  }
}
console.log(JSON.stringify(results));
process.exit(0);
