// The usage page: sums of the selected days, the latest requests, and the active streams.

import { $, BASE, call, get, make, showProblem, stopStream } from "./common.js";
import { duration, money, size, whole } from "./common.js";
import { outcome } from "./outcomes.js";
import { signIn } from "./session.js";

const DAY_MS = 24 * 3600 * 1000;
const EVERY_MS = 2000;
const PATIENCE_MS = 5000;
const MOST_DAYS = 3660;
const dark = matchMedia("(prefers-color-scheme: dark)");

let days = [];
let sums = { models: {}, providers: {} };
let chart = null;
let cursor = null;
let asking = 0;
let flowing = new Set();
let unsettled = [];
let catchingUp = false;
const stopped = new Set();
const problems = new Map();

const iso = (date) => date.toISOString().slice(0, 10);

function latest(count) {
  $("to").value = iso(new Date());
  $("from").value = iso(new Date(Date.now() - (count - 1) * DAY_MS));
}

function range() {
  const found = new URLSearchParams();
  if ($("from").value) found.set("start_date", $("from").value);
  if ($("to").value) found.set("end_date", $("to").value);
  return found;
}

/** Return the action's result; undefined if it fails. Its problem is shown until it succeeds. */
async function attempt(what, action) {
  let found;
  try {
    found = await action();
    problems.delete(what);
  } catch (problem) {
    problems.set(what, problem);
  }
  showProblem($("error"), problems.values().next().value ?? null);
  return found;
}

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
  days = filled(found.daily_usage);
  $("days").tBodies[0].replaceChildren(...days.filter((day) => day.requests).reverse().map(dayRow));
  sums = found;
  drawAll();
  $("status").textContent = `${whole(found.total_requests)} requests in this period`;
}

/** Return every day of the range; days without requests are zero. */
function filled(found) {
  const known = new Map(found.map((day) => [day.date, day]));
  const dates = [...known.keys()].sort();
  const first = Date.parse($("from").value || dates[0] || iso(new Date()));
  const last = Date.parse($("to").value || dates.at(-1) || iso(new Date()));
  const all = [];
  for (let time = first; time <= last && all.length < MOST_DAYS; time += DAY_MS) {
    const date = iso(new Date(time));
    const none = { date, requests: 0, cost: 0, tokens: { input: 0, output: 0, total: 0 } };
    all.push(known.get(date) ?? none);
  }
  return all;
}

const cell = (text, kind) => make("td", { class: kind }, text);

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

/** Return a sum of costs; "unknown" if no call of the sum has a known price. */
const cost = (usd, { requests, total_requests: all = requests, unpriced_requests: unpriced = 0 }) =>
  money(unpriced && unpriced === all ? null : usd);

/** Return the cell of a sum's cost. It names the calls whose price is unknown. */
function costCell(sum) {
  const found = cell(cost(sum.cost, sum), "n");
  const { unpriced_requests: unpriced = 0 } = sum;
  if (unpriced && unpriced < sum.requests) found.append(make("span", { class: "hint" }, ` + ${whole(unpriced)} unpriced`));
  return found;
}

/** Fill a table of sums by name. The chosen measure decides the order and the bars. */
function named(table, sums) {
  const { of } = MEASURES[measure()];
  const rows = Object.entries(sums).sort(
    ([, a], [, b]) => of(b) - of(a) || b.tokens.total - a.tokens.total,
  );
  const most = Math.max(...rows.map(([, sum]) => of(sum))) || 1;
  table.tBodies[0].replaceChildren(
    ...(rows.length ? [] : [nothing(4)]),
    ...rows.map(([name, sum]) => {
      const bar = make("span", { class: "bar", "aria-hidden": "true" });
      bar.style.width = `${(100 * of(sum)) / most}%`;
      return make(
        "tr",
        {},
        make("th", { scope: "row" }, name, bar),
        cell(whole(sum.requests), "n"),
        cell(whole(sum.tokens.total), "n"),
        costCell(sum),
      );
    }),
  );
}

const nothing = (columns) =>
  make("tr", {}, make("td", { colspan: columns, class: "faint" }, "No requests in this period. Choose other days, or run a prompt in the playground."));

/** Draw what depends on the chosen measure. */
function drawAll() {
  named($("models"), sums.models);
  named($("providers"), sums.providers);
  for (const hint of document.querySelectorAll(".order")) hint.textContent = `Bars and order: ${measure()}`;
  draw();
}

// The chart

const MEASURES = {
  cost: { of: (day) => day.cost, write: (value) => money(value) },
  tokens: { of: (day) => day.tokens.total, write: size },
  requests: { of: (day) => day.requests, write: whole },
};

function draw() {
  const { of, write } = MEASURES[measure()];
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const box = $("chart");
  const data = [days.map((day) => Date.parse(day.date) / 1000), days.map(of)];
  const axis = { stroke: color("--faint"), font: `12px ${color("--sans")}` };
  chart?.destroy();
  chart = new uPlot(
    {
      width: Math.max(240, box.clientWidth),
      height: 220,
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
      cursor: { y: false, points: { show: false }, drag: { x: false, y: false } },
      legend: { show: true, live: true },
      hooks: { setLegend: [showLastDay] },
      scales: {
        x: { range: (_, least, most) => [least - 43200, most + 43200] },
        y: { range: (_, __, most) => [0, most > 0 ? most * 1.08 : 1] },
      },
      axes: [
        { ...axis, grid: { show: false }, ticks: { show: false }, space: 64, values: dayLabels },
        {
          ...axis,
          size: 66,
          grid: { stroke: color("--line"), width: 1 },
          ticks: { show: false },
          incrs: measure() === "cost" ? undefined : INCREMENTS,
          values: (_, found) => found.map(write),
        },
      ],
      series: [
        { label: "Day", value: (_, seconds) => (seconds === null ? "–" : iso(new Date(seconds * 1000))) },
        {
          label: measure(),
          stroke: color("--accent"),
          fill: color("--accent"),
          width: 0,
          points: { show: false },
          paths: uPlot.paths.bars({ size: [0.72, 40], radius: 0.12 }),
          value: (_, value) => (value === null ? "–" : write(value)),
        },
      ],
    },
    data,
    box,
  );
  const most = days.reduce((best, day) => (of(day) > of(best) ? day : best), days[0]);
  const peak = most && of(most) ? `; most on ${most.date}: ${write(of(most))}` : "";
  box.setAttribute("aria-label", `Chart of ${measure()} by day${peak}. The table below has the figures.`);
}

/** Name the last day below the chart while the pointer is elsewhere. */
function showLastDay(drawn) {
  if (drawn.legend.idx === null && days.length) drawn.setLegend({ idx: days.length - 1 });
}

const INCREMENTS = [1, 2, 5].flatMap((step) => [...Array(13).keys()].map((power) => step * 10 ** power)).sort((a, b) => a - b);

const measure = () => document.querySelector("input[name=measure]:checked").value;

const dayLabels = (_, found) =>
  found.map((seconds) => {
    const date = new Date(seconds * 1000);
    if (date.getUTCHours()) return "";
    return date.toLocaleDateString("en", { day: "numeric", month: "short", timeZone: "UTC" });
  });

// The latest requests

async function showLatest(next) {
  const query = next ? `limit=20&cursor=${encodeURIComponent(next)}` : "limit=20";
  const found = await attempt("requests", () => get(`/api/v1/user/requests?${query}`));
  if (!found) return;
  const body = $("latest").tBodies[0];
  if (!next) body.replaceChildren();
  body.append(...found.data.map(requestRow));
  if (!body.rows.length) {
    body.append(make("tr", {}, make("td", { colspan: 7, class: "faint" }, "No requests yet. Run a prompt in the playground, or call the API with this key.")));
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

/** Return a time element in UTC; its tooltip adds the year and the milliseconds. */
function clock(moment, day = true) {
  const date = new Date(moment);
  const name = date.toLocaleDateString("en", { month: "short", day: "numeric", timeZone: "UTC" });
  const text = moment.slice(11, 19);
  return make("time", { datetime: moment, title: moment }, day ? `${name}, ${text}` : text);
}

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

/** Return input and output tokens with their labels. */
const split = (input, output) => `${whole(input)} in + ${whole(output)} out`;

/** Return the tokens of an active stream. Some providers report the input only at the end. */
const soFar = (input, output) => (input ? split(input, output) : `${whole(output)} out`);

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
  make("a", { href: `${BASE}/#stream=${encodeURIComponent(id)}`, target: "_blank", rel: "noopener", "aria-label": `Watch ${id} in a new tab` }, "Watch");

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
  const blob = await attempt("file", async () => (await call(`/api/v1/user/usage?${query}`, { headers: { Accept: "text/csv" } })).blob());
  if (!blob) return;
  const link = make("a", { href: URL.createObjectURL(blob), download: `usage-by-${by}.csv` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), PATIENCE_MS);
  $("status").textContent = "Downloaded";
}

function begin() {
  latest(30);
  const all = () => Promise.all([showSums(), showLatest(null), poll()]);
  $("dates").addEventListener("change", showSums);
  $("dates").addEventListener("submit", (event) => event.preventDefault());
  $("dates").addEventListener("click", (event) => {
    const { days: count } = event.target.dataset;
    if (!count) return;
    latest(Number(count));
    showSums();
  });
  $("measure").addEventListener("change", drawAll);
  $("refresh").addEventListener("click", all);
  $("more").addEventListener("click", () => showLatest(cursor));
  $("csv").addEventListener("submit", download);
  dark.addEventListener("change", draw);
  new ResizeObserver(() => chart?.setSize({ width: Math.max(240, $("chart").clientWidth), height: 220 })).observe($("chart"));
  $("stop-all").addEventListener("click", stopAll);
  document.addEventListener("visibilitychange", poll);
  all();
}

signIn(begin);
