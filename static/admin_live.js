// The live sections of the admin page: the active calls of all keys, and the providers' health.

import { $, call, duration, get, make, whole } from "./common.js";
import { healthOf, pausesOf, percent, stateText } from "./admin_words.js";
import { cell, clock, soFar } from "./tables.js";

const EVERY_MS = 2000;
const PROVIDERS_EACH = 5; // the providers are fetched at every 5th poll
const TOYS = "local";

let attempt;
let polling = 0;
let turn = 0;
const stopped = new Set();

// The active calls

const nameOf = (stream) => `${stream.key_id} ${stream.stream_id}`;

async function showActive() {
  const found = await attempt("streams", () => get("/api/v1/streams?limit=100"));
  $("fresh").textContent = found ? "Updates every 2 seconds." : "The server doesn’t answer; trying again every 2 seconds.";
  if (!found) return;
  const streams = found.data.filter((stream) => !stopped.has(nameOf(stream))); // a stopped one may still be listed
  const count = Math.max(streams.length, found.total - (found.data.length - streams.length));
  const focused = document.activeElement?.dataset?.stream;
  $("sum-active").textContent = whole(count);
  $("sum-active-hint").textContent = missingText(found.processes);
  if (count > streams.length) $("fresh").textContent += ` The oldest ${streams.length} of ${whole(count)} are shown.`;
  $("active-table").hidden = !streams.length;
  $("no-active").hidden = streams.length > 0;
  $("active-table").tBodies[0].replaceChildren(...streams.map(activeRow));
  if (focused) (document.querySelector(`[data-stream="${CSS.escape(focused)}"]`) ?? $("active-title")).focus();
}

function missingText({ missing }) {
  if (missing === null) return "only of this process: Redis is unavailable";
  return missing ? `without ${whole(missing)} processes that don’t answer` : "";
}

function activeRow(stream) {
  const button = make("button", { type: "button", class: "danger small", "data-stream": nameOf(stream), "aria-label": `Stop ${stream.stream_id}` }, "Stop");
  button.addEventListener("click", () => stop(stream, button));
  return make(
    "tr",
    {},
    make("td", { class: "figures start" }, clock(stream.started_at, false)),
    cell(stream.key_name ?? `deleted key ${stream.key_id}`, "name"),
    cell(`${stream.provider}/${stream.model}`, "model"),
    cell(stateText(stream.state)),
    make("td", { class: "id" }, make("code", {}, stream.stream_id)),
    cell(soFar(stream.input_tokens, stream.output_tokens), "n tokens"),
    make("td", { class: "n act-on" }, button),
  );
}

async function stop(stream, button) {
  button.disabled = true;
  const path = `/api/v1/streams/${encodeURIComponent(stream.key_id)}/${encodeURIComponent(stream.stream_id)}/stop`;
  // A 404 means that the call has already ended, so the stop has nothing to do.
  const ended = (problem) => problem.status === 404 || Promise.reject(problem);
  const done = await attempt("stop", () => call(path, { method: "POST" }).then(() => true, ended));
  if (done) {
    stopped.add(nameOf(stream));
    $("status").textContent = `Stopped ${stream.stream_id}`;
  }
  await showActive();
  $("active-title").focus();
}

// The providers

export async function showProviders() {
  const found = await attempt("providers", () => get("/api/v1/providers"));
  if (!found) return;
  const enabled = found.data.filter((provider) => provider.enabled);
  const down = enabled.filter((provider) => healthOf(provider).down).map((provider) => provider.name);
  $("sum-providers").textContent = down.length ? `${down.length} down` : "OK";
  $("sum-providers").classList.toggle("bad", down.length > 0);
  $("sum-providers-hint").textContent = down.join(", ");
  $("providers-hint").textContent = [`Calls of the last ${Math.round(found.window_s / 60)} minutes. Updates every 10 seconds.`, missingText(found.processes)].filter(Boolean).join(" Calls are ");
  $("provider-table").tBodies[0].replaceChildren(...enabled.sort((a, b) => rank(a) - rank(b)).map(providerRow));
  $("only-toy").hidden = enabled.some((provider) => provider.name !== TOYS && healthOf(provider).text !== "doesn’t run");
  const missing = found.data.filter((provider) => !provider.enabled);
  $("not-enabled").hidden = !missing.length;
  $("missing-table").tBodies[0].replaceChildren(
    ...missing.map(({ name, needs }) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, make("code", {}, needs.join(", "))))),
  );
}

/** Return the place of a provider in the table: those that are down first, unused ones last. */
function rank(provider) {
  const { down, mark } = healthOf(provider);
  return down ? 0 : provider.calls ? 1 : mark === "stopped" ? 3 : 2;
}

/** Return a cell with a label for narrow screens, which have no table head and hide "–". */
function labelled(label, text, kind) {
  const found = cell(text, text === "–" ? `${kind} unknown` : kind);
  found.dataset.label = label;
  return found;
}

function providerRow(provider) {
  const { text, mark } = healthOf(provider);
  const state = cell("", "cost");
  state.append(make("span", { class: `end ${mark}` }, text), ...pausesOf(provider).map((line) => make("span", { class: "hint" }, line)));
  const latency = Object.values(provider.latency_ms);
  const [error] = provider.errors;
  const last = labelled("Last error", error ? "" : "–", "wide");
  if (error) last.append(make("span", { class: "figures" }, `${error.code}, `), clock(error.last_at), make("span", { class: "hint" }, error.model ?? ""));
  return make(
    "tr",
    {},
    make("th", { scope: "row", class: "model name" }, provider.name),
    state,
    labelled("Models", provider.models === null ? "–" : whole(provider.models), "n"),
    labelled("Calls", whole(provider.calls), "n"),
    labelled("Failed", percent(provider.error_rate), "n"),
    labelled("Latency", latency.every((ms) => ms === null) ? "–" : latency.map(duration).join(" / "), "n"),
    labelled("First event", duration(provider.first_event_ms.p50), "n"),
    last,
  );
}

// The polls

/** Update the sections now, and then every EVERY_MS while the page is visible. */
export async function poll() {
  clearTimeout(polling);
  if (document.hidden) return;
  const both = turn++ % PROVIDERS_EACH === 0;
  await Promise.all([showActive(), both && showProviders()]);
  clearTimeout(polling);
  if (!document.hidden) polling = setTimeout(poll, EVERY_MS);
}

export function beginLive(attemptOf) {
  attempt = attemptOf;
  document.addEventListener("visibilitychange", poll);
}
