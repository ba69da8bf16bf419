// What both pages share: the key, calls of the API, errors, how figures are written.
//
// Rules that hold here: the key is kept in sessionStorage alone and goes nowhere but into the
// Authorization header of our own server; what people or models wrote becomes text nodes, never HTML.

const KEY = "sluice.key";

export const $ = (id) => document.getElementById(id);

/** An element; children are elements or strings, which become text. */
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

/** Whether there was room. */
export function remember(name, value) {
  try {
    sessionStorage.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/** What the API, or the network, says has gone wrong. */
export class Problem extends Error {
  constructor(message, { status = 0, code = "", requestId = "", details = null } = {}) {
    super(message);
    Object.assign(this, { status, code, requestId, details });
  }

  /** Of an error's body, or of the last frame of a stream. */
  static of(body, status, requestId) {
    return new Problem(body?.message || `The server answered ${status}.`, {
      status: body?.status_code ?? status,
      code: body?.code ?? "",
      requestId: body?.request_id ?? requestId,
      details: body?.details ?? null,
    });
  }
}

/** fetch with the key; a Problem where the answer is none of 2xx. */
export async function call(path, options = {}) {
  const headers = { Accept: "application/json", ...options.headers };
  headers.Authorization = `Bearer ${remembered(KEY, "")}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server can’t be reached.", { code: "network" });
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw Problem.of(body, response.status, response.headers.get("X-Request-ID") ?? "");
}

export const get = async (path) => (await call(path)).json();

export const stopStream = (id) =>
  call(`/api/v1/completions/stop-stream/${encodeURIComponent(id)}`, { method: "POST" });

/** Show a problem in a box of class "problem"; null empties it. */
export function tell(box, problem) {
  box.replaceChildren();
  box.hidden = !problem;
  if (!problem) return;
  const name = [problem.status || "", problem.code || ""].filter(Boolean).join(" ");
  box.append(make("strong", {}, name || "Something went wrong"), make("p", {}, problem.message));
  if (problem.requestId) {
    box.append(make("p", { class: "id" }, "Request ", make("code", {}, problem.requestId)));
  }
  if (problem.details) {
    const text = JSON.stringify(problem.details, null, 2);
    box.append(make("details", {}, make("summary", {}, "Details"), make("pre", {}, text)));
  }
}

// Signing in

/** Ask for the key where there is none, try it, then call begin(models). */
export function signIn(begin) {
  const open = async () => {
    let models;
    try {
      models = await get("/api/v1/models");
    } catch (problem) {
      if (problem.status === 401) sessionStorage.removeItem(KEY);
      $("sign-in").hidden = false;
      tell($("sign-in-error"), problem);
      $("key").focus();
      return;
    }
    const key = remembered(KEY, "");
    $("who-key").textContent = `…${key.slice(-4)}`;
    $("who").hidden = false;
    $("sign-in").hidden = true;
    $("app").hidden = false;
    begin(models);
  };
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const key = $("key").value.trim();
    if (!key) return $("key").focus();
    // What no header can carry would fail as a network error.
    if (!/^[\x21-\x7e]+$/.test(key)) {
      return tell($("sign-in-error"), new Problem("A key is of ASCII characters, without spaces."));
    }
    remember(KEY, key);
    tell($("sign-in-error"), null);
    open();
  });
  $("sign-out").addEventListener("click", () => {
    sessionStorage.clear();
    location.reload();
  });
  if (!remembered(KEY, "")) return;
  $("sign-in").hidden = true; // until the key proves to be bad
  open();
}

// How figures are written

export const whole = (number) => Number(number).toLocaleString("en");

/** USD; small sums with the digits that matter. */
export function money(usd) {
  if (usd === null || usd === undefined) return "unknown";
  if (usd === 0) return "$0";
  if (usd < 0.00000001) return "< $0.00000001";
  const digits = usd >= 1 ? 2 : Math.min(8, 2 - Math.floor(Math.log10(usd)));
  return `$${usd.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: digits })}`;
}

export function duration(milliseconds) {
  if (milliseconds === null || milliseconds === undefined) return "–";
  if (milliseconds < 1000) return `${Math.round(milliseconds)} ms`;
  return `${(milliseconds / 1000).toLocaleString("en", { maximumFractionDigits: 2 })} s`;
}

/** A size of a context: 128k, 1M. */
export function size(tokens) {
  if (tokens >= 1e6) return `${+(tokens / 1e6).toFixed(1)}M`;
  return tokens >= 1000 ? `${+(tokens / 1000).toFixed(tokens < 10000 ? 1 : 0)}k` : String(tokens);
}
