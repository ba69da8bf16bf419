// The usage of all keys on the admin page: a chart by day, a table by key, group, model and so on, and
// the refused calls.

import { $, get, make, Problem, whole } from "./common.js";
import { refusalText } from "./admin_words.js";
import { DayChart, filled, latest, measure, MEASURES, onDays, range } from "./day_chart.js";
import { showWrong } from "./dialogs.js";
import { atField, fieldOf, isSecret } from "./key_terms.js";
import { bar, cell, cost, costCell, emptyRow, saveCsv } from "./tables.js";

const TYPING_MS = 400;
const MOST_SHOWN = 100;
const NAMES = { key: "Key", group: "Group", model: "Model", provider: "Provider", endpoint: "API path", day: "Day (UTC)", end_reason: "End reason" };
const FIELDS = { key: "only", start_date: "from", end_date: "to" };
const SECRET = "This is a key itself. Type its name or its id.";
const EMPTY = "No requests in this period. Choose other days, or give somebody a key.";

let attempt;
let chart;
let report = null;
let asking = 0;

function query(by) {
  const found = range();
  const key = $("only").value.trim();
  if (key) found.set("key", key);
  found.set("group_by", by);
  return found;
}

/** Return false, and show why, if a secret was typed: it must not get into a URL. */
function allowed() {
  const secret = isSecret($("only").value);
  const wrong = secret ? { only: SECRET } : {};
  showWrong($("usage-filter"), wrong);
  showWrong($("dates"), {});
  return !secret;
}

/** Fetch a report. An error about a field is shown there, and null is returned. */
async function fetched(by) {
  try {
    return await get(`/api/v1/usage?${query(by)}`);
  } catch (problem) {
    const name = problem instanceof Problem && problem.status === 400 ? FIELDS[fieldOf(problem)] : undefined;
    const form = name === "only" ? $("usage-filter") : $("dates");
    const about = /^start_date is after/.test(problem.message) ? "from" : name;
    if (about === undefined) throw problem;
    const text = about === "from" && !name ? "This day is after the last one." : atField(problem.message);
    showWrong(form, { [about]: text });
    return null;
  }
}

/** Show the usage of the chosen days. */
export async function showUsage() {
  const mine = ++asking;
  if (!allowed()) return;
  const by = $("by").value;
  const found = await attempt("usage", async () => {
    const first = await fetched(by);
    return first && [first, by === "day" ? first : await fetched("day")];
  });
  if (!found || !found[1] || mine !== asking) return; // the user has chosen something else since
  [report] = found;
  const days = found[1].data.map((sum) => ({ ...sum, date: sum.name }));
  chart.draw(filled(days));
  drawTable();
  drawRefused(report.refused);
  const { total } = report;
  $("sum-cost").textContent = cost(total.cost, total);
  $("sum-cost-hint").textContent = [$("from").value, $("to").value].filter(Boolean).join(" to ") || "all days";
  $("status").textContent = `${whole(total.requests)} requests in this period`;
}

function nameCell(row, by, share) {
  const name = by === "key" ? (row.key_name ?? "deleted key") : (row.name ?? "active");
  const found = make("th", { scope: "row" }, String(name).replace(/_/g, by === "end_reason" ? " " : "_"));
  if (by === "key" && row.key_name === null) found.append(" ", make("code", {}, row.name));
  if (share !== null) found.append(bar(share));
  return found;
}

const figures = (sum) => [cell(whole(sum.requests), "n"), cell(whole(sum.tokens.total), "n"), costCell(sum)];

/** Fill the table. The chosen measure decides the order and the bars; days are in order. */
function drawTable() {
  if (!report) return;
  const { group_by: by, total } = report;
  const { of } = MEASURES[measure()];
  const rows = by === "day" ? [...report.data].reverse() : [...report.data].sort((a, b) => of(b) - of(a) || b.tokens.total - a.tokens.total);
  const most = Math.max(...rows.map(of)) || 1;
  const shown = rows.slice(0, MOST_SHOWN).map((row) => make("tr", {}, nameCell(row, by, of(row) / most), ...figures(row)));
  $("by-name").textContent = NAMES[by];
  $("usage-table").tBodies[0].replaceChildren(...(shown.length ? shown : [emptyRow(4, EMPTY)]));
  const all = shown.length > 1 ? [make("tr", {}, make("th", { scope: "row" }, "All"), ...figures(total))] : [];
  $("usage-table").tFoot.replaceChildren(...all);
  const more = report.groups > shown.length ? `${whole(shown.length)} of ${whole(report.groups)} are shown; the CSV file has more. ` : "";
  const since = by === "end_reason" && !$("from").value ? `From ${report.start_date} on. ` : "";
  $("usage-hint").textContent = more + since;
}

function drawRefused({ calls, data }) {
  const rows = data.map((row) =>
    make("tr", {}, make("th", { scope: "row" }, row.key_name ?? `deleted key ${row.key_id}`), cell(refusalText(row.reason)), cell(whole(row.calls), "n")),
  );
  const none = "No call was refused in this period. A call that a budget, a limit or a full server refuses is counted here.";
  $("refused-table").tBodies[0].replaceChildren(...(rows.length ? rows : [emptyRow(3, none)]));
  const listed = data.reduce((sum, row) => sum + row.calls, 0);
  $("refused-sum").textContent = calls ? `${whole(calls)} in this period${listed < calls ? `; the rows show ${whole(listed)} of them` : ""}` : "";
}

async function save(by, name) {
  if (!allowed()) return;
  const asked = query(by);
  asked.set("format", "csv");
  const saved = await attempt("file", () => saveCsv(`/api/v1/usage?${asked}`, name).then(() => true));
  if (saved) $("status").textContent = "Downloaded";
}

export function beginUsage(attemptOf) {
  attempt = attemptOf;
  chart = new DayChart($("chart"), "Choose “day” in the list above to get the figures as a table.");
  latest(7);
  let typing = 0;
  onDays(showUsage);
  $("usage-filter").addEventListener("submit", (event) => event.preventDefault());
  $("usage-filter").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(showUsage, TYPING_MS);
  });
  $("measure").addEventListener("change", () => {
    chart.draw();
    drawTable();
  });
  $("usage-csv").addEventListener("click", () => save($("by").value, `usage-of-all-by-${$("by").value}.csv`));
  $("refused-csv").addEventListener("click", () => save("refusal", "refused-calls.csv"));
}
