// The keys on the admin page: the list, and the dialogs that create, change, rotate and delete.
//
// - A secret is shown once, in a dialog, and removed from the page when the dialog is closed.
// - A change is sent with the ETag of the key as the page shows it. If somebody else has changed the
//   key since, the page shows the differences, and the user decides.

import { $, call, copyText, get, make, money, showProblem, whole } from "./common.js";
import { busy, handOver, openDialog, showWrong } from "./dialogs.js";
import { atField, budgetText, changedTerms, changeLines, changeTitle, differences, fieldOf, isSecret, limitsText, modelsText, termsOf, textsOf } from "./key_terms.js";
import { bar, cell, clock, emptyRow } from "./tables.js";

const TYPING_MS = 250;
const PAGE = 100;
const LOGGED = 10;
const MARKS = { active: "completed", disabled: "stopped", expired: "bad" };
const PLACES = { Disable: "Switch", Enable: "Switch" }; // buttons that replace each other
const NEW = {
  ...{ name: "", budget_usd: "", budget_period: "month", group: "", tier: "unlimited", expires: "" },
  ...{ requests_per_minute: "", tokens_per_hour: "", max_streams: "", models: "", admin: false },
};
const SECRET = "This is a key itself. Type its name or its id.";

let attempt;
let onChange;
let keys = new Map();
let cursor = null;
let asking = 0;
let groups = null; // the names of the groups; null: unknown
let own = ""; // the id of the key that the user is signed in with
let base = null; // the key in the dialog, as the page knows it

// The list

function query() {
  const found = new URLSearchParams({ limit: PAGE });
  const filters = { search: $("search").value.trim(), status: $("of-status").value, group: $("of-group").value };
  for (const [name, value] of Object.entries(filters)) if (value) found.set(name, value);
  return found;
}

/** Show the keys that match the filter; with a cursor, their next page. */
export async function showKeys(next = null) {
  const mine = ++asking;
  const asked = query();
  const filtered = [...asked].length > 1; // more than the limit
  showWrong($("filter"), isSecret($("search").value) ? { search: SECRET } : {});
  if (isSecret($("search").value)) return; // a key must not get into a URL
  if (next) asked.set("cursor", next);
  const found = await attempt("keys", () => get(`/api/v1/keys?${asked}`));
  if (!found || mine !== asking) return;
  if (!next) keys = new Map();
  for (const key of found.data) keys.set(key.id, key);
  cursor = found.next_cursor;
  $("more").hidden = !cursor;
  $("key-file").hidden = !found.problems.length;
  $("key-file").replaceChildren(make("strong", {}, "The key file"), ...found.problems.map((text) => make("p", {}, text)));
  if (!filtered) $("sum-keys").textContent = whole(found.total);
  draw(filtered);
}

function draw(filtered) {
  const rows = [...keys.values()].map(keyRow);
  const none = filtered ? "No key fits. Change the filter." : "There are no keys.";
  $("key-table").tBodies[0].replaceChildren(...(rows.length ? rows : [emptyRow(6, none)]));
  $("key-names").replaceChildren(...[...keys.values()].map((key) => make("option", { value: key.name })));
  const counts = ["disabled", "expired"].map((status) => [status, [...keys.values()].filter((key) => key.status === status).length]);
  if (!filtered) $("sum-keys-hint").textContent = cursor ? "" : counts.filter(([, count]) => count).map(([status, count]) => `${count} ${status}`).join(", ");
}

/** Return the cell of a budget, with a bar of what is used. */
export function budgetCell(holder) {
  const { text, hint, share } = budgetText(holder);
  const found = cell(text, "budget figures");
  if (share) {
    const line = bar(share);
    line.classList.toggle("over", share >= 0.9);
    found.append(line);
  }
  found.append(make("span", { class: "hint" }, hint));
  return found;
}

function keyRow(key) {
  const name = make("th", { scope: "row", class: "model" }, make("span", { class: "name" }, key.name));
  if (key.admin) name.append(make("span", { class: "tag" }, "admin"));
  if (key.id === own) name.append(make("span", { class: "tag" }, "you"));
  name.append(make("span", { class: "hint" }, make("code", {}, key.id), ...(key.group ? [` in ${key.group}`] : [])));
  const status = cell("", "cost");
  status.append(make("span", { class: `end ${MARKS[key.status]}` }, key.status));
  const until = [key.expires && key.status === "active" && `until ${key.expires.slice(0, 10)}`, key.previous_until && `old secret until ${key.previous_until.slice(0, 16).replace("T", " ")}`];
  status.append(...until.filter(Boolean).map((text) => make("span", { class: "hint" }, text)));
  const limits = cell(limitsText(key), "limits");
  limits.append(...[modelsText(key)].filter(Boolean).map((text) => make("span", { class: "hint" }, `only ${text}`)));
  const used = cell("", "figures wide");
  used.dataset.label = "Last used";
  used.append(key.last_used_at ? clock(key.last_used_at) : "never");
  return make("tr", {}, name, status, limits, budgetCell(key), used, doings(key));
}

/** Return the cell with the buttons of a key. */
function doings(key) {
  const found = cell("", "does");
  if (key.source === "environment") {
    found.append(make("span", { class: "hint" }, "in SLUICE_KEYS"));
    return found;
  }
  const off = key.disabled;
  const actions = { Change: change, Rotate: rotate, [off ? "Enable" : "Disable"]: off ? enable : disable, Delete: remove };
  for (const [text, action] of Object.entries(actions)) {
    const button = make("button", { type: "button", class: "quiet", "data-key": key.id, "data-does": PLACES[text] ?? text, "aria-label": `${text} ${key.name}` }, text);
    button.addEventListener("click", () => action(key));
    found.append(button);
  }
  return found;
}

/** Return a function that returns the button to focus after a key's dialog. */
const buttonOf = (id, text) => () =>
  document.querySelector(`[data-key="${CSS.escape(id)}"][data-does="${text}"]`) ??
  document.querySelector(`[data-key="${CSS.escape(id)}"]`) ??
  $("new-key");

// Requests

const path = (key, rest = "") => `/api/v1/keys/${encodeURIComponent(key.id)}${rest}`;

async function send(method, where, { key = null, body = null } = {}) {
  const headers = { ...(body && { "Content-Type": "application/json" }), ...(key && { "If-Match": key.etag }) };
  return (await call(where, { method, headers, ...(body && { body: JSON.stringify(body) }) })).json();
}

/** Update the page after a change, and announce the change. */
async function done(text) {
  const shown = keys.size;
  await Promise.all([showKeys(), onChange()]);
  while (cursor && keys.size < shown) await showKeys(cursor);
  $("status").textContent = text;
}

/**
 * Run a change of the key `base`. If somebody else has changed the key, show the differences and two
 * buttons: `again` repeats the change on the new state, `drop` discards the user's changes.
 */
async function guarded(action, box, { mine = {}, again, drop = null }) {
  box.hidden = true;
  try {
    return await action();
  } catch (problem) {
    if (problem.status !== 412) throw problem;
    const before = base;
    base = await get(path(base));
    const lines = differences(before, base, mine);
    const what = lines.length ? lines : ["Something that isn’t shown here, such as its secret"];
    const buttons = make("div", { class: "act" }, press(again, box));
    if (drop) buttons.append(press(drop, box));
    box.replaceChildren(make("strong", {}, "Somebody else has changed this key meanwhile"), make("ul", {}, ...what.map((line) => make("li", {}, line))), buttons);
    box.hidden = false;
    buttons.firstChild.focus();
    return undefined;
  }
}

function press({ text, action }, box) {
  const button = make("button", { type: "button", class: "small" }, text);
  button.addEventListener("click", () => {
    box.hidden = true;
    action();
  });
  return button;
}

// Creating and changing

const fields = () => [...$("terms").elements].filter((field) => field.name && !(field.name === "group" && groups === null));

function fill(texts) {
  const known = [...$("f-group").options].some((option) => option.value === texts.group);
  if (!known) $("f-group").append(make("option", {}, texts.group));
  for (const field of fields()) {
    if (field.type === "checkbox") field.checked = texts[field.name];
    else field.value = texts[field.name];
  }
  showWrong($("terms"), {});
}

const typed = () =>
  Object.fromEntries(fields().filter((field) => base === null || field.name !== "name").map((field) => [field.name, field.type === "checkbox" ? field.checked : field.value]));

function openTerms(key) {
  base = key;
  $("f-group-field").hidden = groups === null || !(groups.length || key?.group);
  $("key-dialog-title").textContent = key ? `Change ${key.name}` : "New key";
  $("key-save").textContent = key ? "Save" : "Create key";
  $("f-name").closest(".field").hidden = Boolean(key);
  $("more-terms").open = Boolean(key);
  $("key-changed").hidden = $("key-problem").hidden = true;
  $("key-log").hidden = !key;
  $("key-log").open = false;
  fill(key ? textsOf(key) : NEW);
  const origin = key ? buttonOf(key.id, "Change") : () => $("new-key");
  openDialog($("key-dialog"), origin, key ? $("f-budget_usd") : $("f-name"));
}

const change = (key) => openTerms(key);

/** Show the last changes of the key in the dialog, as soon as they are unfolded. */
async function showLog() {
  if (!$("key-log").open) return;
  const list = $("key-log").querySelector("ul");
  list.replaceChildren();
  $("key-log-hint").textContent = "";
  showProblem($("key-log-problem"), null);
  const { id } = base;
  let found;
  try {
    found = await get(`/api/v1/keys/log?key=${encodeURIComponent(id)}&limit=${LOGGED}`);
  } catch (problem) {
    return showProblem($("key-log-problem"), problem);
  }
  if (base.id !== id) return undefined; // the dialog shows another key by now
  list.append(...found.data.map(logged));
  const none = "No change is recorded. Edits of the key file by hand aren’t.";
  const more = `Older changes: ./sluice keys log --key ${id}`;
  $("key-log-hint").textContent = found.next_cursor ? more : found.data.length ? "" : none;
  return undefined;
}

function logged(entry) {
  const at = make("time", { datetime: entry.at, title: entry.at }, entry.at.slice(0, 16).replace("T", " "));
  const who = make("span", {}, changeTitle(entry));
  if (entry.by.key_id === own) who.append(make("span", { class: "tag" }, "you"));
  return make("li", {}, at, who, ...changeLines(entry).map((line) => make("span", { class: "hint" }, line)));
}

async function submitTerms(event) {
  event?.preventDefault();
  const { terms, wrong } = termsOf(typed());
  showWrong($("terms"), wrong);
  if (Object.keys(wrong).length) return;
  await busy($("terms"), $("key-problem"), async () => {
    try {
      await (base ? save(terms) : create(terms));
    } catch (problem) {
      const name = fieldOf(problem);
      if (!name || !showWrong($("terms"), { [name]: atField(problem.message) })) throw problem;
    }
  });
}

async function create(terms) {
  const made = await send("POST", "/api/v1/keys", { body: terms });
  handOver($("key-dialog"));
  showSecret(made, `The key of ${made.name}`, () => $("new-key"));
  await done(`Created ${made.name}`);
}

async function save(terms) {
  const mine = changedTerms(base, terms);
  if (!Object.keys(mine).length) return $("key-dialog").close();
  const again = { text: "Save my changes too", action: () => keep(mine) };
  const drop = { text: "Drop my changes", action: () => fill(textsOf(base)) };
  const saved = await guarded(() => send("PATCH", path(base), { key: base, body: mine }), $("key-changed"), { mine, again, drop });
  if (!saved) return undefined;
  const warnings = saved.warnings ?? [];
  await done(`Saved ${saved.name}`);
  if (!warnings.length) return $("key-dialog").close();
  base = saved;
  return showWrong($("terms"), { models: `Saved, but ${warnings.join("; ")}.` });
}

/** Save the user's changes on top of somebody else's. */
function keep(mine) {
  fill(textsOf({ ...base, ...mine }));
  submitTerms();
}

// The secret

function showSecret(made, title, origin) {
  $("secret-title").textContent = title;
  $("secret").textContent = made.key;
  const budget = made.budget_usd === null ? "no budget" : `budget ${money(made.budget_usd)} ${{ month: "a month", day: "a day", total: "in all" }[made.budget_period]}`;
  $("secret-terms").textContent = [budget, limitsText(made), ...(made.warnings ?? [])].join("; ");
  $("secret-status").textContent = "";
  $("secret-copy").textContent = "Copy";
  $("secret-dialog").dataset.copied = "";
  openDialog($("secret-dialog"), origin, $("secret-copy"));
}

async function copySecret() {
  const copied = await copyText($("secret").textContent);
  if (!copied) {
    getSelection().selectAllChildren($("secret"));
    $("secret-status").textContent = "This browser doesn’t let pages copy. The key is selected: copy it with the keyboard.";
    return;
  }
  $("secret-dialog").dataset.copied = "yes";
  $("secret-copy").textContent = "Copied";
  $("secret-status").textContent = "";
  $("secret-done").focus();
}

/** Keep the dialog open at the first Escape if the key wasn't copied. */
function keepSecret(event) {
  if ($("secret-dialog").dataset.copied) return;
  event.preventDefault();
  $("secret-dialog").dataset.copied = "asked";
  $("secret-status").textContent = "You haven’t copied the key. Press Escape again to close this dialog anyway.";
}

function wipeSecret() {
  $("secret").textContent = "";
  $("secret-terms").textContent = "";
}

// Rotating, disabling, enabling, deleting

/** Warn in a dialog about a key if it is the one that the user is signed in with. */
function warn(dialog, key, text) {
  const box = dialog.querySelector(".own");
  box.hidden = key.id !== own;
  box.textContent = `You are signed in with this key. ${text}`;
}

function rotate(key) {
  base = key;
  warn($("rotate-dialog"), key, "When its old secret ends, sign in again with the new one.");
  $("rotate-title").textContent = `Rotate ${key.name}`;
  $("overlap").value = "86400";
  $("rotate-changed").hidden = $("rotate-problem").hidden = true;
  openDialog($("rotate-dialog"), buttonOf(key.id, "Rotate"));
}

async function submitRotation(event) {
  event?.preventDefault();
  await busy($("rotation"), $("rotate-problem"), async () => {
    const body = { overlap_s: Number($("overlap").value) };
    const again = { text: "Rotate anyway", action: () => submitRotation() };
    const made = await guarded(() => send("POST", path(base, "/rotate"), { key: base, body }), $("rotate-changed"), { again });
    if (!made) return;
    handOver($("rotate-dialog"));
    showSecret(made, `The new key of ${made.name}`, buttonOf(made.id, "Rotate"));
    await done(`Rotated ${made.name}`);
  });
}

let asked = null;

function ask(key, question) {
  base = key;
  warn($("ask-dialog"), key, "You will need another admin key for this page.");
  asked = question;
  $("ask-title").textContent = `${question.verb} ${key.name}?`;
  $("ask-text").textContent = question.text;
  $("ask-yes").textContent = question.verb;
  $("ask-changed").hidden = $("ask-problem").hidden = true;
  openDialog($("ask-dialog"), buttonOf(key.id, PLACES[question.verb] ?? question.verb), $("ask-yes"));
}

async function answer(event) {
  event?.preventDefault();
  await busy($("question"), $("ask-problem"), async () => {
    const again = { text: `${asked.verb} anyway`, action: () => answer() };
    const found = await guarded(() => asked.act(base), $("ask-changed"), { again });
    if (!found) return;
    await done(`${asked.past} ${base.name}`);
    $("ask-dialog").close();
  });
}

const disable = (key) =>
  ask(key, {
    ...{ verb: "Disable", past: "Disabled", text: "Its next calls are refused with a 401, until you enable it again. Calls that are active go on." },
    act: (now) => send("PATCH", path(now), { key: now, body: { disabled: true } }),
  });

const enable = (key) =>
  ask(key, {
    ...{ verb: "Enable", past: "Enabled", text: "Its calls are accepted again." },
    act: (now) => send("PATCH", path(now), { key: now, body: { disabled: false } }),
  });

const remove = (key) =>
  ask(key, {
    ...{ verb: "Delete", past: "Deleted", text: "Its next calls are refused with a 401, and it can’t be restored. Its usage stays in the reports. To stop it for a while, disable it instead." },
    act: (now) => send("DELETE", path(now), { key: now }),
  });

// The start

function options(select, names, first) {
  const chosen = select.value;
  select.replaceChildren(make("option", { value: "" }, first), ...names.map((name) => make("option", {}, name)));
  select.value = names.includes(chosen) ? chosen : "";
}

/** Offer the groups in the filter and in the form. */
export function offerGroups(found) {
  groups = found.map((group) => group.name);
  $("of-group-field").hidden = !groups.length;
  options($("of-group"), groups, "all");
  options($("f-group"), groups, "none");
}

/** Start the section. after: called when a key has changed. ownId: the id of the user's key. */
export function beginKeys(attemptOf, after, ownId) {
  attempt = attemptOf;
  onChange = after;
  own = ownId;
  let typing = 0;
  $("filter").addEventListener("submit", (event) => event.preventDefault());
  $("filter").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(showKeys, TYPING_MS);
  });
  $("more").addEventListener("click", () => showKeys(cursor));
  $("new-key").addEventListener("click", () => openTerms(null));
  $("terms").addEventListener("submit", submitTerms);
  $("key-log").addEventListener("toggle", showLog);
  $("rotation").addEventListener("submit", submitRotation);
  $("question").addEventListener("submit", answer);
  $("secret-copy").addEventListener("click", copySecret);
  $("secret-done").addEventListener("click", () => $("secret-dialog").close());
  $("secret-dialog").addEventListener("cancel", keepSecret);
  $("secret-dialog").addEventListener("close", wipeSecret);
  addEventListener("pagehide", wipeSecret);
}
