// Chats of the openai package for Node.js: node openai_chat.mjs URL KEY. Prints JSON.
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const [url, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
const chat = client.chat.completions;
const parameters = { type: "object", properties: { city: { type: "string" } } };
const tools = [{ type: "function", function: { name: "get_weather", parameters } }];
const ask = { model: "fake/m", messages: [{ role: "user", content: "Say it" }] };
const result = ({ choices, usage }) => [choices[0].message.content, usage.prompt_tokens, usage.completion_tokens];
const calls = ({ choices }) => choices[0].message.tool_calls.map(
  ({ function: f }) => [f.name, JSON.parse(f.arguments)]);
const failure = async (make) => {
  try {
    return JSON.stringify(await make());
  } catch (error) {
    return `${error.constructor.name}: ${error.message}`;
  }
};

const whole = result(await chat.create(ask));
const streamed = result(await chat.stream({ ...ask, stream_options: { include_usage: true } })
  .finalChatCompletion());
const called = calls(await chat.create({ ...ask, tools }));
const calledInAStream = calls(await chat.stream({ ...ask, tools }).finalChatCompletion());
const format = zodResponseFormat(z.object({ city: z.string(), celsius: z.number() }), "weather");
const { choices } = await chat.parse({ ...ask, response_format: format });
const error = await failure(() => chat.create(ask));
const broken = await failure(async () => {
  const found = [];
  for await (const chunk of await chat.create({ ...ask, stream: true })) found.push(chunk);
  return found;
});
console.log(JSON.stringify({ whole, streamed, called, "called in a stream": calledInAStream,
  object: choices[0].message.parsed, error, broken }));
