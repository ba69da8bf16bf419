// Resumable streams of the Vercel AI SDK: node vercel_resumable.mjs URL KEY. Prints JSON.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { streamText } from "ai";

const [url, apiKey] = process.argv.slice(2);
const headers = { "X-Sluice-Resumable": "1" };
const provider = createOpenAICompatible({ name: "sluice", baseURL: `${url}/v1`, apiKey, headers });
const read = (model) => streamText({ model, prompt: "x", maxRetries: 0 }).text;
console.log(JSON.stringify({
  completion: await read(provider.completionModel("fake/m")),
  chat: await read(provider.chatModel("fake/m")),
}));
