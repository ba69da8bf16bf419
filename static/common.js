// Shared by the pages: API requests, error notices, number formats.
//
// - The key is stored in sessionStorage only, and sent only to our own server, as Authorization.
// - Text from users and models becomes text nodes, never HTML.

export const KEY = "sluice.key";

/** The path prefix under which a proxy serves Sluice, or "". This file is in /static/VERSION/. */
export const BASE = new URL("../..", import.meta.url).pathname.replace(/\/$/, "");

export const $ = (id) => document.getElementById(id);

/** Return an element. Children that are strings become text. */
export function make(tag, attributes = {}, ...children) {
  const found = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false) found.setAttribute(name, value);
  }
  found.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return found;
}

export function remembered(name, otherwise) {
  try {
    return JSON.parse(sessionStorage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** Return false if sessionStorage is full. */
export function remember(name, value) {
  try {
    sessionStorage.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/** An error from the API or the network. */
export class Problem extends Error {
  constructor(message, { status = 0, code = "", requestId = "", details = null } = {}) {
    super(message);
    Object.assign(this, { status, code, requestId, details });
  }

  /** Return a Problem from an error's body, or from the last frame of a failed stream. */
  static of(body, status, requestId) {
    return new Problem(body?.message || `The server responded with status ${status}.`, {
      status: body?.status_code ?? status,
      code: body?.code ?? "",
      requestId: body?.request_id ?? requestId,
      details: body?.details ?? null,
    });
  }
}

/** Call fetch with the key, for a path below BASE. Throws a Problem unless the status is 2xx. */
export async function call(path, options = {}) {
  const headers = { Accept: "application/json", ...options.headers };
  headers.Authorization = `Bearer ${remembered(KEY, "")}`;
  let response;
  try {
    response = await fetch(BASE + path, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server can’t be reached.", { code: "network" });
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const inside = typeof body?.error === "object" ? body.error : body; // the OpenAI API has the error in a field
  throw Problem.of(inside, response.status, response.headers.get("X-Request-ID") ?? "");
}

export const get = async (path) => (await call(path)).json();

export const stopStream = (id) =>
  call(`/api/v1/completions/stop-stream/${encodeURIComponent(id)}`, { method: "POST", keepalive: true });

/** Show a problem in a box of class "problem", below its advice if it has any; null hides the box. */
export function showProblem(box, problem) {
  box.replaceChildren();
  box.hidden = !problem;
  if (!problem) return;
  const name = [problem.status || "", problem.code || ""].filter(Boolean).join(" ");
  if (problem.advice) box.append(make("p", { class: "advice" }, problem.advice));
  if (name || !problem.advice) box.append(make("strong", {}, name || "Something went wrong"));
  box.append(make("p", {}, problem.message));
  if (problem.requestId) {
    box.append(make("p", { class: "id" }, "Request ", make("code", {}, problem.requestId)));
  }
  if (problem.details) {
    const text = JSON.stringify(problem.details, null, 2);
    box.append(make("details", {}, make("summary", {}, "Details"), make("pre", {}, text)));
  }
}

// Number formats

export const whole = (number) => Number(number).toLocaleString("en");

/** Format USD; small amounts get more decimals. null is an unknown amount. */
export function money(usd) {
  if (usd === null || usd === undefined) return "unknown";
  if (usd === 0) return "$0.00";
  if (usd < 0.00000001) return "< $0.00000001";
  const digits = usd >= 1 ? 2 : Math.min(8, 2 - Math.floor(Math.log10(usd)));
  return `$${usd.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: digits })}`;
}

export function duration(milliseconds) {
  if (milliseconds === null || milliseconds === undefined) return "–";
  if (milliseconds < 1000) return `${Math.round(milliseconds)} ms`;
  return `${(milliseconds / 1000).toLocaleString("en", { maximumFractionDigits: 2 })} s`;
}

/** Return true if a model's prices are known to be 0. */
export const isFree = (pricing) => pricing?.input === 0 && pricing.output === 0;

/** Format a model's prices, in USD per million tokens. */
export function prices({ input = null, output = null } = {}) {
  if (input === null) return "Price unknown";
  if (isFree({ input, output })) return "Free";
  return `${money(input)} in, ${money(output)} out per million tokens`;
}

/** Copy a text to the clipboard. Return false if the browser doesn't allow it. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // The clipboard API needs a secure context, and this page may be on http in a local network.
    const focused = document.activeElement;
    const area = make("textarea", { class: "unseen" });
    area.value = text;
    // Outside of an open dialog, nothing can be selected.
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return copied;
  }
}

/** Format a number of tokens briefly: 128k, 1M. */
export function size(tokens) {
  if (tokens >= 1e6) return `${+(tokens / 1e6).toFixed(1)}M`;
  return tokens >= 1000 ? `${+(tokens / 1000).toFixed(tokens < 10000 ? 1 : 0)}k` : String(tokens);
}
