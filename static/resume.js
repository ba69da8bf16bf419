// Streams that go on when their connection breaks: how one is read over several connections, and
// what a tab keeps of its active streams.
//
// - A stream is {path, id, last, resumable}. `last` is the id of the last frame that has arrived.
//   `resumable` is undefined until the server has said whether the stream can be resumed.
// - The tab keeps the streams in sessionStorage, so a reload finds them. Signing out forgets them.

import { call, KEY, Problem, remember, remembered } from "./common.js";
import { frames } from "./sse.js";

const STORED = "sluice.active";
const SILENCE_MS = 60_000; // a connection without even a comment for so long is lost
const FIRST_WAIT_MS = 250;
const LONGEST_WAIT_MS = 10_000;
const MOST_TRIES = { network: 15, busy: 7, unknown: 3 }; // in a row: about 108 s, 26 s and 2 s

/** The paths at which a stream can be followed, those of its own page first. */
export const PATHS = ["/api/v1/completions", "/api/v1/chat/completions", "/v1/completions", "/v1/chat/completions"];

/** Return how often a connection may fail in a row with such a problem before it is given up. */
export function patience({ code, status }, known) {
  if (code !== "network" && status < 500 && status !== 429) return !known && status === 404 ? MOST_TRIES.unknown : 0;
  if (!known) return MOST_TRIES.unknown;
  return code === "network" ? MOST_TRIES.network : MOST_TRIES.busy;
}

/** Return the milliseconds to wait after so many failures in a row. */
export const backOff = (tries) => Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** (tries - 1));

/** Wait, but not longer than until the network is back. */
const pause = (milliseconds) =>
  new Promise((resume) => {
    const go = () => {
      clearTimeout(timer);
      removeEventListener("online", go);
      resume();
    };
    const timer = setTimeout(go, milliseconds);
    addEventListener("online", go);
  });

/** Try no further connection to a stream whose connection is lost. */
export function giveUp(stream) {
  stream.givenUp = true;
  dispatchEvent(new Event("online"));
}

/** Ask for the frames that a stream has after those that have arrived. */
const follow = ({ path, id, last }) =>
  call(`${path}/${encodeURIComponent(id)}?starting_after=${last}`, { headers: { Accept: "text/event-stream" } });

/**
 * Yield the frames of a stream over as many connections as it takes.
 *
 * @param begin sends the request that starts the stream, and returns the response; null follows it
 * @param opened is called with the response of each connection
 * @param lost is called when a connection is lost and another one will be tried
 * @throws Problem if the call is refused, or if the stream can't be read to its end
 */
export async function* framesOf(stream, { begin, opened, lost }) {
  let refused = null; // the problem of the first request, which may have arrived all the same
  for (let tries = 0, began = !begin; ; ) {
    const before = stream.last;
    try {
      const response = await (began ? follow(stream) : begin());
      opened(response);
      began = true;
      refused = null;
      if (response.status === 204) return;
      for await (const frame of read(stream, response)) {
        yield frame;
        if (frame.data === "[DONE]") return;
      }
      throw new Problem("The connection broke before the completion was finished.", { code: "network" });
    } catch (problem) {
      if (!began && problem.code !== "network") throw problem;
      if (!began) refused = problem;
      began = true;
      tries = stream.last > before ? 1 : tries + 1;
      const gives = stream.resumable === false || stream.givenUp || tries > patience(problem, stream.resumable);
      if (gives) throw refused ?? Object.assign(problem, { lost: true });
      lost();
      await pause(backOff(tries));
    }
  }
}

/** Yield the frames of one connection, and note their ids. Throws a Problem when it breaks. */
async function* read(stream, response) {
  try {
    for await (const frame of frames(response.body, { silence: stream.resumable ? SILENCE_MS : 0 })) {
      const covered = frame.id ? frame.id - stream.last : 1;
      if (frame.id) stream.last = frame.id;
      yield { ...frame, covered };
    }
  } catch {
    throw new Problem("The connection broke before the completion was finished.", { code: "network" });
  }
}

/** Return the state of a stream, at the path of the API on which it was started. Throws a Problem. */
export async function stateOf(id) {
  let unknown = null;
  for (const path of PATHS) {
    try {
      const response = await call(`${path}/${encodeURIComponent(id)}`);
      return { path, ...(await response.json()) };
    } catch (problem) {
      if (problem.status !== 404) throw problem;
      unknown ??= problem;
    }
  }
  throw unknown;
}

// What the tab keeps

/** Return the streams that this tab keeps: {id, panel, body, at, path, first, watched} each. */
export const kept = () => remembered(STORED, []);

/** Keep a stream in the place of the one before in its panel, unless the page is signed out. */
export function keep(record) {
  if (remembered(KEY, "")) remember(STORED, [...kept().filter(({ panel }) => panel !== record.panel), record]);
}

export function forget(id) {
  remember(STORED, kept().filter((record) => record.id !== id));
}

// Frames of the OpenAI API

/**
 * Return the frames of the native API that say what a frame says. The native ones, which have a
 * type, stay as they are.
 */
export function nativeFrames(frame) {
  if (frame.type) return [frame];
  if (frame.error) return [{ type: "error", status_code: 0, ...frame.error }];
  const [provider, ...model] = (frame.model ?? "").split("/");
  const about = model.length ? { provider, model: model.join("/") } : {};
  const [choice] = frame.choices ?? [];
  const found = [];
  if (choice) {
    const data = choice.text ?? choice.delta?.content ?? "";
    found.push({ ...about, type: "content", data, choices: [choice] });
    const reason = choice.native_finish_reason ?? choice.finish_reason;
    if (reason) found.push({ ...about, type: "finish", data: "", finish_reason: reason, choices: [] });
  }
  if (frame.usage) {
    const { prompt_tokens: input, completion_tokens: output, cost = null } = frame.usage;
    found.push({ ...about, type: "usage_final", input_tokens: input, output_tokens: output, cost_usd: cost });
  }
  return found;
}
