// Shared by the pages with tables: cells, times, costs, and files to save.

import { call, make, money, showProblem, whole } from "./common.js";

const SAVED_MS = 5000; // how long a browser may take to read a file that it saves

export const cell = (text, kind) => make("td", { class: kind }, text);

/** Return the row of an empty table, with a text that says what to do next. */
export const emptyRow = (columns, text) =>
  make("tr", {}, make("td", { colspan: columns, class: "faint" }, text));

/** Return a time element in UTC; its tooltip adds the year and the milliseconds. */
export function clock(moment, day = true) {
  const date = new Date(moment);
  const name = date.toLocaleDateString("en", { month: "short", day: "numeric", timeZone: "UTC" });
  const text = moment.slice(11, 19);
  return make("time", { datetime: moment, title: moment }, day ? `${name}, ${text}` : text);
}

/** Return a sum of costs; "unknown" if no call of the sum has a known price. */
export const cost = (usd, { requests, total_requests: all = requests, unpriced_requests: unpriced = 0 }) =>
  money(unpriced && unpriced === all ? null : usd);

/** Return the cell of a sum's cost. It names the calls whose price is unknown. */
export function costCell(sum) {
  const found = cell(cost(sum.cost, sum), "n");
  const { unpriced_requests: unpriced = 0 } = sum;
  if (unpriced && unpriced < sum.requests) found.append(make("span", { class: "hint" }, ` + ${whole(unpriced)} unpriced`));
  return found;
}

/** Return input and output tokens with their labels. */
export const split = (input, output) => `${whole(input)} in + ${whole(output)} out`;

/** Return the tokens of an active stream. Some providers report the input only at the end. */
export const soFar = (input, output) => (input ? split(input, output) : `${whole(output)} out`);

/** Return a bar that shows a share from 0 to 1. */
export function bar(share) {
  const found = make("span", { class: "bar", "aria-hidden": "true" });
  found.style.width = `${100 * share}%`;
  return found;
}

/** Fetch a CSV file and have the browser save it. Throws a Problem. */
export async function saveCsv(path, name) {
  const blob = await (await call(path, { headers: { Accept: "text/csv" } })).blob();
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), SAVED_MS);
}

/**
 * Return a function that runs an action and returns its result; undefined if it fails. Its problem
 * is shown in the box until the action with this name succeeds.
 */
export function attempts(box) {
  const problems = new Map();
  return async (name, action) => {
    let found;
    try {
      found = await action();
      problems.delete(name);
    } catch (problem) {
      problems.set(name, problem);
    }
    showProblem(box, problems.values().next().value ?? null);
    return found;
  };
}
