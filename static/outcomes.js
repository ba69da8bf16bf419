// How a call ended, for people: the words and the mark of a row of the usage page.

const WORDS = { client_gone: "client hung up" };
const GOOD = ["completed", "stopped", "active", "client_gone"];

/**
 * Return the text, the mark (the end reason, or "bad") and the hint of a request's outcome.
 *
 * - A client that hung up is no failure of the call.
 * - A stream can break after it began with status 200.
 */
export function outcome({ end_reason: ended, error_code: code, status, stream, first_event_ms: first }) {
  const reason = ended ?? "active";
  if (GOOD.includes(reason)) return { text: WORDS[reason] ?? reason, mark: reason, hint: "" };
  const text = stream && first !== null ? "broken off" : reason;
  return { text, mark: "bad", hint: [status, code ?? reason].filter(Boolean).join(" ") };
}
