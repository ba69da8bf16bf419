// Resumable streams of the openai package for Node.js: node openai_resumable.mjs URL KEY. Prints JSON.
import OpenAI from "openai";

const [url, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0, defaultHeaders: { "X-Sluice-Resumable": "1" } });
const texts = async (stream, textOf) => {
  let found = "";
  for await (const { choices } of stream) for (const choice of choices) found += textOf(choice) ?? "";
  return found;
};

const ask = { model: "fake/m", stream: true };
const messages = [{ role: "user", content: "x" }];
const completion = await texts(await client.completions.create({ ...ask, prompt: "x" }), ({ text }) => text);
const chat = await texts(await client.chat.completions.create({ ...ask, messages }), ({ delta }) => delta.content);
console.log(JSON.stringify({ completion, chat }));
