// Chats of the Vercel AI SDK: node vercel_chat.mjs URL KEY PROVIDER. Prints the results as JSON.
// PROVIDER is the package: "openai-compatible" or "openai".
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, streamText, tool } from "ai";
import { z } from "zod";

const [url, apiKey, name] = process.argv.slice(2);
const baseURL = `${url}/v1`;
const model = name === "openai" ? createOpenAI({ baseURL, apiKey }).chat("fake/m")
  : createOpenAICompatible({ name: "sluice", baseURL, apiKey, includeUsage: true, supportsStructuredOutputs: true })("fake/m");
const ask = { model, prompt: "Say it", maxRetries: 0 };
const tools = { get_weather: tool({ description: "Weather", inputSchema: z.object({ city: z.string() }) }) };
const calls = (found) => found.map(({ toolName, input }) => [toolName, input]);
const usage = ({ inputTokens, outputTokens }) => [inputTokens, outputTokens];
const failure = async (make) => {
  try {
    return JSON.stringify(await make());
  } catch (error) {
    return `${error.name}: ${error.message}`;
  }
};
const silent = { onError() {} };

const one = await generateText(ask);
const stream = streamText(ask);
const streamed = [await stream.text, ...usage(await stream.usage)];
const called = calls((await generateText({ ...ask, tools })).toolCalls);
const calledInAStream = calls(await streamText({ ...ask, tools }).toolCalls);
const schema = z.object({ city: z.string(), celsius: z.number() });
const { output } = await generateText({ ...ask, output: Output.object({ schema }) });
const error = await failure(() => generateText(ask));
const broken = await failure(async () => {
  for await (const part of streamText({ ...ask, ...silent }).fullStream) {
    if (part.type === "error") throw part.error instanceof Error ? part.error : new Error(JSON.stringify(part.error));
  }
});
console.log(JSON.stringify({ whole: [one.text, ...usage(one.usage)], streamed, called,
  "called in a stream": calledInAStream, object: output, error, broken }));
