// The admin page: keys, groups, the usage and active calls of all keys, and the providers' health.

import { $, get, make, whole } from "./common.js";
import { beginKeys, budgetCell, offerGroups, showKeys } from "./admin_keys.js";
import { beginLive, poll, showProviders } from "./admin_live.js";
import { beginUsage, showUsage } from "./admin_usage.js";
import { closeByButtons } from "./dialogs.js";
import { limitsText, modelsText } from "./key_terms.js";
import { signIn } from "./session.js";
import { attempts, cell } from "./tables.js";

const GONE = "The server doesn’t accept your key any more: it was rotated, disabled or deleted. Sign out, and sign in with another one.";
const inBox = attempts($("error"));

/** Run an action and show its problem. Explain a key that is no longer accepted. */
const attempt = (name, action) =>
  inBox(name, async () => {
    try {
      return await action();
    } catch (problem) {
      if (problem.status === 401) problem.advice = GONE;
      throw problem;
    }
  });

async function showGroups() {
  const found = await attempt("groups", () => get("/api/v1/groups"));
  if (!found) return;
  $("group-table").hidden = !found.data.length;
  $("no-groups").hidden = found.data.length > 0;
  $("group-table").tBodies[0].replaceChildren(...found.data.map(groupRow));
  offerGroups(found.data);
}

function groupRow(group) {
  const name = make("th", { scope: "row", class: "model name" }, group.name);
  const limits = cell(group.defined ? limitsText(group) : "", "limits");
  if (!group.defined) limits.append(make("span", { class: "end bad" }, "not in sluice.toml: its keys may use no model"));
  else if (modelsText(group)) limits.append(make("span", { class: "hint" }, `only ${modelsText(group)}`));
  const keys = cell(whole(group.keys), "n");
  keys.dataset.label = "Keys";
  return make("tr", {}, name, keys, limits, budgetCell(group));
}

async function begin() {
  const own = await attempt("key", () => get("/api/v1/user/key"));
  if (own?.admin === false) {
    $("not-admin").hidden = false;
    return;
  }
  $("admin").hidden = false;
  beginKeys(attempt, showGroups, own?.id);
  beginUsage(attempt);
  beginLive(attempt);
  closeByButtons();
  $("refresh").addEventListener("click", () => Promise.all([showKeys(), showGroups(), showUsage(), showProviders()]));
  await Promise.all([showKeys(), showGroups(), showUsage(), poll()]);
  if (location.hash) document.querySelector(`[id="${CSS.escape(location.hash.slice(1))}"]`)?.scrollIntoView();
}

signIn(begin);
