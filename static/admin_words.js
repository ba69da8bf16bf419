// The health of a provider, the state of a call and the reason of a refusal, in words.
//
// Nothing here touches the page.

import { whole } from "./common.js";

const FAILING = 0.5; // a provider whose share of failed calls is at least this counts as failing
const STATES = { queued: "queued", waiting: "waits for its first text", answering: "answers" };
const REASONS = {
  "insufficient_credits:budget": "402: the budget is used up",
  "insufficient_credits:budget:group": "402: the group’s budget is used up",
  model_forbidden: "403: the key may not use the model",
  "rate_limited:concurrency": "429: too many calls at a time",
  "rate_limited:requests": "429: requests per minute",
  "rate_limited:requests:group": "429: the group’s requests per minute",
  "rate_limited:tokens": "429: tokens per hour",
  "rate_limited:tokens:group": "429: the group’s tokens per hour",
  stream_exists: "409: a stream with this id is active",
  "unavailable:capacity": "503: the server had no room",
  "unavailable:ledger": "503: the ledger was unavailable",
  "unavailable:limits": "503: Redis, which counts the limits, was unavailable",
};

export const stateText = (state) => STATES[state] ?? state;

/** Return a refusal in words. A reason that isn't in REASONS is returned unchanged. */
export const refusalText = (reason) => REASONS[reason] ?? reason;

/**
 * Return a provider's state: its text, its mark (a class of style.css), and whether it is down.
 *
 * - A host that was never reached and never called isn't down: it may be a local engine that doesn't
 *   run.
 */
export function healthOf({ reachable, models, calls, failures, error_rate: rate, breaker }) {
  const down = (text) => ({ text, mark: "bad", down: true });
  const wanted = calls > 0 || models !== null;
  if (reachable === false) return wanted ? down("can’t be reached") : { text: "doesn’t run", mark: "stopped", down: false };
  if (breaker.state === "open") return down("failing; some calls are paused");
  if (rate !== null && rate >= FAILING) return down("failing");
  if (breaker.state === "limited") return { text: "rate limited", mark: "bad", down: false };
  if (breaker.state === "half_open") return { text: "being tried again", mark: "active", down: false };
  if (failures) return { text: "works, with errors", mark: "completed", down: false };
  if (reachable === null && !calls) return { text: "not used yet", mark: "active", down: false };
  return { text: "works", mark: "completed", down: false };
}

/** Return the pauses of a provider, a line for each. */
export function pausesOf({ breaker: { paused, paused_total: total } }) {
  const lines = paused.slice(0, 3).map(({ model, key_number: number, replica, seconds }) => {
    const what = [model, number && `key ${number}`, replica].filter(Boolean).join(", ") || "all models";
    return `${what}: for ${Math.ceil(seconds)} s`;
  });
  return total > lines.length ? [...lines, `and ${whole(total - lines.length)} more`] : lines;
}

export const percent = (share) => (share === null ? "–" : `${(100 * share).toLocaleString("en", { maximumFractionDigits: 1 })}%`);
