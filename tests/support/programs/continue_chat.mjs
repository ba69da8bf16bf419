// Chats of Continue's adapters: node continue_chat.mjs URL KEY. Prints the results as JSON.
import { constructLlmApi } from "@continuedev/openai-adapters";

const [url, apiKey] = process.argv.slice(2);
const api = constructLlmApi({ provider: "openai", apiKey, apiBase: `${url}/v1/` });
const { signal } = new AbortController();
const parameters = { type: "object", properties: { city: { type: "string" } } };
const tools = [{ type: "function", function: { name: "get_weather", parameters } }];
const ask = { model: "fake/m", messages: [{ role: "user", content: "Say it" }] };
const failure = async (make) => {
  try {
    return JSON.stringify(await make());
  } catch (error) {
    return `${error.constructor.name}: ${error.message}`;
  }
};
const whole = (more) => api.chatCompletionNonStream({ ...ask, ...more, stream: false }, signal);
const stream = async (more) => {
  const chunks = [];
  for await (const chunk of api.chatCompletionStream({ ...ask, ...more, stream: true }, signal)) chunks.push(chunk);
  return chunks;
};
const usage = (found) => [found.prompt_tokens, found.completion_tokens];
const calls = ({ choices }) => choices[0].message.tool_calls.map(
  ({ function: f }) => [f.name, JSON.parse(f.arguments)]);
const joined = (chunks) => {
  const found = [];
  for (const call of chunks.flatMap(({ choices }) => choices[0]?.delta.tool_calls ?? [])) {
    const one = found[call.index] ??= ["", ""];
    one[0] += call.function.name ?? "";
    one[1] += call.function.arguments ?? "";
  }
  return found.map(([name, text]) => [name, JSON.parse(text)]);
};

const one = await whole();
const chunks = await stream({ stream_options: { include_usage: true } });
const text = chunks.map(({ choices }) => choices[0]?.delta.content ?? "").join("");
const called = calls(await whole({ tools }));
const calledInAStream = joined(await stream({ tools }));
const response_format = { type: "json_object" };
const object = JSON.parse((await whole({ response_format })).choices[0].message.content);
const error = await failure(() => whole());
const broken = await failure(() => stream());
console.log(JSON.stringify({ whole: [one.choices[0].message.content, ...usage(one.usage)],
  streamed: [text, ...usage(chunks.findLast(({ usage }) => usage).usage)], called,
  "called in a stream": calledInAStream, object, error, broken }));
