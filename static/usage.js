// The usage page: sums of the selected days, the latest requests, and the active streams.

import { $, BASE, get, make, stopStream } from "./common.js";
import { duration, money, whole } from "./common.js";
import { DayChart, filled, latest, measure, MEASURES, onDays, range } from "./day_chart.js";
import { outcome } from "./outcomes.js";
import { signIn } from "./session.js";
import { attempts, bar, cell, clock, cost, costCell, emptyRow, saveCsv, soFar, split } from "./tables.js";

const EVERY_MS = 2000;
const NO_REQUESTS = "No requests in this period. Choose other days, or run a prompt in the playground.";
const PATIENCE_MS = 5000;

let sums = { models: {}, providers: {} };
let chart = null;
let cursor = null;
let asking = 0;
let flowing = new Set();
let unsettled = [];
let catchingUp = false;
const stopped = new Set();

const attempt = attempts($("error"));

// Sums

async function showSums() {
  const mine = ++asking;
  const found = await attempt("usage", () => get(`/api/v1/user/usage?${range()}`));
  if (!found || mine !== asking) return; // the user has selected other days since
  $("sum-requests").textContent = whole(found.total_requests);
  $("sum-tokens").textContent = whole(found.total_tokens.total);
  $("sum-split").textContent = `${whole(found.total_tokens.input)} in, ${whole(found.total_tokens.output)} out`;
  $("sum-cost").textContent = cost(found.total_cost, found);
  const { unpriced_requests: unpriced = 0 } = found;
  $("sum-unpriced").textContent = unpriced ? `without ${whole(unpriced)} of unknown price` : "";
  $("sum-left").textContent = found.remaining_credits === null ? "no limit" : money(found.remaining_credits);
  const days = filled(found.daily_usage);
  $("days").tBodies[0].replaceChildren(...days.filter((day) => day.requests).reverse().map(dayRow));
  sums = found;
  chart.draw(days);
  nameAll();
  $("status").textContent = `${whole(found.total_requests)} requests in this period`;
}

function dayRow(day) {
  return make(
    "tr",
    {},
    make("th", { scope: "row", class: "figures" }, day.date),
    cell(whole(day.requests), "n"),
    cell(whole(day.tokens.input), "n"),
    cell(whole(day.tokens.output), "n"),
    costCell(day),
  );
}

/** Fill a table of sums by name. The chosen measure decides the order and the bars. */
function named(table, sums) {
  const { of } = MEASURES[measure()];
  const rows = Object.entries(sums).sort(
    ([, a], [, b]) => of(b) - of(a) || b.tokens.total - a.tokens.total,
  );
  const most = Math.max(...rows.map(([, sum]) => of(sum))) || 1;
  table.tBodies[0].replaceChildren(
    ...(rows.length ? [] : [emptyRow(4, NO_REQUESTS)]),
    ...rows.map(([name, sum]) => {
      return make(
        "tr",
        {},
        make("th", { scope: "row" }, name, bar(of(sum) / most)),
        cell(whole(sum.requests), "n"),
        cell(whole(sum.tokens.total), "n"),
        costCell(sum),
      );
    }),
  );
}

/** Fill the tables whose order depends on the chosen measure. */
function nameAll() {
  named($("models"), sums.models);
  named($("providers"), sums.providers);
  for (const hint of document.querySelectorAll(".order")) hint.textContent = `Bars and order: ${measure()}`;
}

// The latest requests

async function showLatest(next) {
  const query = next ? `limit=20&cursor=${encodeURIComponent(next)}` : "limit=20";
  const found = await attempt("requests", () => get(`/api/v1/user/requests?${query}`));
  if (!found) return;
  const body = $("latest").tBodies[0];
  if (!next) body.replaceChildren();
  body.append(...found.data.map(requestRow));
  if (!body.rows.length) {
    body.append(emptyRow(7, "No requests yet. Run a prompt in the playground, or call the API with this key."));
  }
  cursor = found.next_cursor;
  $("more").hidden = !cursor;
  if (!next) unsettled = found.data.filter((row) => !row.end_reason).map((row) => row.stream_id);
}

/** Reload until the calls that have ended are settled, which happens a moment after their end. */
async function catchUp() {
  if (catchingUp) return;
  catchingUp = true;
  try {
    for (let wait = 100; wait < PATIENCE_MS; wait *= 2) {
      await showLatest(null);
      if (!endedUnsettled()) break;
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
    await showSums();
  } finally {
    catchingUp = false;
  }
}

const endedUnsettled = () => unsettled.some((id) => !flowing.has(id));

function requestRow(row) {
  const { text, mark, hint } = outcome(row);
  const end = cell("", "outcome");
  end.append(make("span", { class: `end ${mark}` }, text));
  if (hint) end.append(make("span", { class: "hint" }, ` ${hint}`));
  return make(
    "tr",
    {},
    make("td", { class: "figures start" }, clock(row.started_at)),
    cell(`${row.provider}/${row.model}`, "model"),
    end,
    cell(split(row.tokens.input, row.tokens.output), "n tokens"),
    row.cost === null ? cell("unpriced", "n cost faint") : cell(money(row.cost), "n cost"),
    cell(duration(row.duration_ms), "n took"),
    make("td", { class: "id" }, make("code", {}, row.request_id)),
  );
}

// The active streams

let polling = 0;

/** Ask for the active streams now, and again every EVERY_MS while the page is visible. */
async function poll() {
  clearTimeout(polling);
  if (document.hidden) return;
  await showActive();
  clearTimeout(polling);
  if (!document.hidden) polling = setTimeout(poll, EVERY_MS);
}

async function stopAll() {
  const ids = [...flowing];
  if (ids.length > 1 && !confirm(`Stop all ${ids.length} active calls of this key?`)) return;
  $("stop-all").disabled = true;
  // A call that has ended meanwhile is not found, which is what was wanted.
  const stop = (id) => stopStream(id).catch((problem) => problem.status === 404 || Promise.reject(problem));
  const done = await attempt("stop", () => Promise.all(ids.map(stop)));
  if (done) {
    ids.forEach((id) => stopped.add(id));
    $("status").textContent = `Stopped ${ids.length} calls`;
  }
  await showActive();
  $("refresh").focus();
}

async function showActive() {
  const listed = await attempt("streams", () => get("/api/v1/completions/streams"));
  $("fresh").textContent = listed ? "Updates every 2 seconds." : "The server doesn’t answer; trying again every 2 seconds.";
  if (!listed) return;
  const found = listed.filter((stream) => !stopped.has(stream.stream_id)); // a stopped one may still be listed
  const before = flowing;
  flowing = new Set(found.map((stream) => stream.stream_id));
  const focused = document.activeElement?.dataset?.stream;
  $("active").hidden = !found.length;
  $("no-active").hidden = found.length > 0;
  $("stop-all").hidden = !found.length;
  $("stop-all").disabled = false;
  $("active").tBodies[0].replaceChildren(...found.map(activeRow));
  if (focused) (document.querySelector(`[data-stream="${CSS.escape(focused)}"]`) ?? $("refresh")).focus();
  if (endedUnsettled() || [...before].some((id) => !flowing.has(id))) catchUp();
}

/** Return a link to the playground, which follows a resumable stream in a tab of its own. */
const watchLink = (id) =>
  make("a", { href: `${BASE}/#stream=${encodeURIComponent(id)}`, class: "quiet", target: "_blank", rel: "noopener", "aria-label": `Watch ${id} in a new tab` }, "Watch");

function activeRow(stream) {
  const button = make(
    "button",
    { type: "button", class: "danger small", "data-stream": stream.stream_id, "aria-label": `Stop ${stream.stream_id}` },
    "Stop",
  );
  button.addEventListener("click", async () => {
    button.disabled = true;
    const done = await attempt("stop", () => stopStream(stream.stream_id).then(() => true));
    if (done) {
      stopped.add(stream.stream_id);
      $("status").textContent = `Stopped ${stream.stream_id}`;
    }
    await showActive();
    $("refresh").focus();
  });
  return make(
    "tr",
    {},
    make("td", { class: "figures start" }, clock(stream.started_at, false)),
    cell(`${stream.provider}/${stream.model}`, "model"),
    make("td", { class: "id" }, make("code", {}, stream.stream_id)),
    cell(soFar(stream.input_tokens, stream.output_tokens), "n tokens"),
    make("td", { class: "n act-on" }, ...(stream.resumable ? [watchLink(stream.stream_id), " "] : []), button),
  );
}

// The CSV file

async function download(event) {
  event.preventDefault();
  const by = $("csv-by").value;
  const query = range();
  query.set("group_by", by);
  query.set("format", "csv");
  const save = () => saveCsv(`/api/v1/user/usage?${query}`, `usage-by-${by}.csv`).then(() => true);
  if (!(await attempt("file", save))) return;
  $("status").textContent = "Downloaded";
}

function begin() {
  chart = new DayChart($("chart"));
  latest(30);
  const all = () => Promise.all([showSums(), showLatest(null), poll()]);
  onDays(showSums);
  $("measure").addEventListener("change", () => {
    chart.draw();
    nameAll();
  });
  $("refresh").addEventListener("click", all);
  $("more").addEventListener("click", () => showLatest(cursor));
  $("csv").addEventListener("submit", download);
  $("stop-all").addEventListener("click", stopAll);
  document.addEventListener("visibilitychange", poll);
  all();
}

signIn(begin);
