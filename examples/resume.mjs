// Stream a completion that outlives its connection: whenever it breaks, go on where it broke.
// Needs Node 18 or newer, and no packages.
//
//   SLUICE_KEY=sk-sluice-... node examples/resume.mjs "The list type"
//
// SLUICE_URL is the gateway's URL, SLUICE_MODEL the model, and TRIES the number of connections that
// may fail one after another.

import { randomUUID } from "node:crypto";
import { setTimeout } from "node:timers/promises";

const URL = process.env.SLUICE_URL ?? "http://127.0.0.1:8000";
const KEY = process.env.SLUICE_KEY;
const MODEL = process.env.SLUICE_MODEL ?? "local/slow";
const TRIES = Number(process.env.TRIES ?? 10);
const PAUSE_MS = 200;

/** An error that another connection wouldn't mend. */
class Failed extends Error {}

/** A stream that is read over as many connections as it takes. */
class Resumable {
  last = 0;
  accepted = false;
  reconnects = -1;

  constructor(prompt) {
    this.path = `${URL}/api/v1/completions`;
    this.id = `example-${randomUUID()}`;
    const asked = { stream: true, resumable: true, stream_id: this.id };
    this.body = JSON.stringify({ model: MODEL, prompt, max_tokens: 100, ...asked });
  }

  /** Yield the events. Throws an Error after TRIES connections without one. */
  async *events() {
    for (let tries = 0; ; ) {
      this.reconnects += 1;
      const before = this.last;
      try {
        yield* this.connection();
        return;
      } catch (error) {
        tries = this.last > before ? 0 : tries + 1;
        if (error instanceof Failed || tries >= TRIES) throw error;
        await setTimeout(PAUSE_MS * tries);
      }
    }
  }

  /** Yield the events of one connection. Throws an Error if it ends before the stream does. */
  async *connection() {
    const headers = { Authorization: `Bearer ${KEY}`, "Content-Type": "application/json" };
    const again = { Accept: "text/event-stream", "Last-Event-ID": String(this.last) };
    const response = this.accepted
      ? await fetch(`${this.path}/${this.id}`, { headers: { ...headers, ...again } })
      : await fetch(this.path, { method: "POST", headers, body: this.body });
    if (response.status === 409 && !this.accepted) {
      this.accepted = true; // the first request did arrive
      throw new Error("The connection closed before the response.");
    }
    if (response.status === 503 && this.accepted) {
      throw new Error("The server can't be asked at the moment."); // try again, at any process
    }
    if (!response.ok) throw new Failed(await reason(response));
    this.accepted = true;
    const decoder = new TextDecoder();
    let rest = "";
    let number = 0;
    for await (const bytes of response.body) {
      const lines = (rest + decoder.decode(bytes, { stream: true })).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("id: ")) number = Number(line.slice(4));
        if (!line.startsWith("data: ")) continue;
        this.last = number;
        if (line === "data: [DONE]") return;
        const event = JSON.parse(line.slice(6));
        if (event.type === "error") throw new Failed(event.error);
        yield event;
      }
    }
    throw new Error("The connection closed before the end of the stream.");
  }
}

/** The message of an error response; its status if it isn't one of Sluice's. */
async function reason(response) {
  const body = await response.json().catch(() => null);
  return body?.detail ?? `${URL} answered with status ${response.status}. Is it a Sluice server?`;
}

async function main() {
  const stream = new Resumable(process.argv.slice(2).join(" ") || "The list type");
  for await (const event of stream.events()) {
    if (event.type === "content") process.stdout.write(event.data);
    if (event.type === "finish") console.log(`\n\nfinish_reason: ${event.finish_reason}`);
    if (event.type === "usage_final") {
      console.log(`output_tokens: ${event.output_tokens}, cost: ${event.cost_usd}`);
    }
  }
  console.log(`reconnects: ${stream.reconnects}`);
}

/** Print one line on stderr, and end with exit status 1. */
function fail(message) {
  console.error(message);
  process.exitCode = 1;
}

if (!KEY) {
  fail("Set SLUICE_KEY to an API key. './sluice keys create --name NAME' makes one.");
} else {
  await main().catch((error) => {
    if (error instanceof Failed) fail(error.message);
    else fail(`No server answers at ${URL}. Start one with 'make run', or set SLUICE_URL.`);
  });
}
