// Stream a completion, and stop it once it is long enough. Needs Node 18 or newer, and no packages.
//
//   SLUICE_KEY=sk-sluice-... node examples/stream_and_stop.mjs "The list type"
//
// SLUICE_URL is the gateway's URL, SLUICE_MODEL the model, and ENOUGH the number of characters after
// which the example stops the stream.

import { randomUUID } from "node:crypto";

const URL = process.env.SLUICE_URL ?? "http://127.0.0.1:8000";
const KEY = process.env.SLUICE_KEY;
const MODEL = process.env.SLUICE_MODEL ?? "local/slow";
const ENOUGH = Number(process.env.ENOUGH ?? 200);
const HEADERS = {
  Authorization: `Bearer ${KEY}`,
  "Content-Type": "application/json",
};

/** Yield the events of a streamed completion as they arrive. Throws an Error on a failure. */
async function* stream(prompt, stream_id) {
  const response = await fetch(`${URL}/api/v1/completions`, {
    method: "POST",
    headers: HEADERS,
    body: JSON.stringify({ model: MODEL, prompt, max_tokens: 4000, stream: true, stream_id }),
  });
  if (!response.ok) throw new Error(await reason(response));
  const decoder = new TextDecoder();
  let rest = "";
  for await (const bytes of response.body) {
    const lines = (rest + decoder.decode(bytes, { stream: true })).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      if (!line.startsWith("data: ")) continue; // the event's name, a comment or a blank line
      const event = JSON.parse(line.slice(6));
      if (event.type === "error") throw new Error(event.error);
      yield event;
    }
  }
  throw new Error("The connection closed before the end of the stream.");
}

/** The message of an error response; its status if it isn't one of Sluice's. */
async function reason(response) {
  const body = await response.json().catch(() => null);
  return body?.detail ?? `${URL} answered with status ${response.status}. Is it a Sluice server?`;
}

/** Stop a stream. Any process that has the API key can do this. False if it has already ended. */
async function stop(stream_id) {
  const response = await fetch(`${URL}/api/v1/completions/stop-stream/${stream_id}`, {
    method: "POST",
    headers: HEADERS,
  });
  if (!response.ok && response.status !== 404) throw new Error(await reason(response));
  return response.ok;
}

async function main() {
  const prompt = process.argv.slice(2).join(" ") || "The list type";
  const id = `example-${randomUUID()}`;
  let characters = 0;
  let stopped = false;
  for await (const event of stream(prompt, id)) {
    if (event.type === "content") {
      process.stdout.write(event.data);
      characters += event.data.length;
      if (characters >= ENOUGH && !stopped) {
        stopped = true;
        await stop(id);
      }
    } else if (event.type === "finish") {
      console.log(`\n\nfinish_reason: ${event.finish_reason}`);
    } else if (event.type === "usage_final") {
      console.log(`output_tokens: ${event.output_tokens}, cost: ${event.cost_usd}`);
    }
  }
}

/** Print one line on stderr, and end with exit status 1. */
function fail(message) {
  console.error(message);
  process.exitCode = 1;
}

if (!KEY) {
  fail("Set SLUICE_KEY to an API key. './sluice keys create --name NAME' makes one.");
} else {
  await main().catch((error) =>
    fail(
      error.message === "fetch failed"
        ? `No server answers at ${URL}. Start one with 'make run', or set SLUICE_URL.`
        : error.message,
    ),
  );
}
