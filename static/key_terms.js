// The terms of a key: conversion between the form's texts and the API's values, and into words.
//
// Nothing here touches the page.

import { money, whole } from "./common.js";

const LIMITS = { requests_per_minute: "requests a minute", tokens_per_hour: "tokens an hour", max_streams: "calls at a time" };
const PERIODS = { month: "a month", day: "a day", total: "in all" };
const NOTHING = { expires: "never", resumable: "the server’s default" };
const NUMBERS = ["budget_usd", ...Object.keys(LIMITS)];
const LABELS = {
  name: "Name",
  budget_usd: "Budget",
  budget_period: "Budget’s period",
  group: "Group",
  tier: "Tier",
  expires: "Expires",
  requests_per_minute: "Requests per minute",
  tokens_per_hour: "Tokens per hour",
  max_streams: "Calls at a time",
  models: "Models",
  admin: "Admin key",
  resumable: "Streams resumable",
  disabled: "Disabled",
  previous_until: "Old secret valid until",
};

/** Return a number of the form: null if it is empty, NaN if it isn't a number. */
function numberOf(text) {
  const plain = text.trim().replace(/^\$/, "").replace(/[\s_,](?=\d{3})/g, "");
  if (!plain) return null;
  return /^\d*\.?\d+$/.test(plain) ? Number(plain) : NaN;
}

const listOf = (text) => text.split(/[\s,]+/).filter(Boolean);

/** Return the API's values of the form's texts, and the problems by field. */
export function termsOf(values) {
  const terms = { ...values };
  const wrong = {};
  for (const name of NUMBERS) {
    terms[name] = numberOf(values[name]);
    if (Number.isNaN(terms[name])) wrong[name] = "Type a number such as 20, or nothing.";
  }
  if (terms.budget_usd === null) delete terms.budget_period;
  terms.expires = values.expires.trim() || null;
  terms.models = listOf(values.models);
  if (!terms.models.length) terms.models = ["*"];
  if ("group" in values) terms.group = values.group || null;
  if ("name" in values) {
    terms.name = values.name.trim();
    if (!terms.name) wrong.name = "Give the key a name.";
  }
  return { terms, wrong };
}

/** Return the form's texts for a key. */
export function textsOf(key) {
  const period = key.budget_usd === null ? "month" : key.budget_period; // the usual choice
  const found = { name: key.name, budget_period: period, group: key.group ?? "", tier: key.tier, admin: key.admin };
  for (const name of NUMBERS) found[name] = key[name] === null ? "" : String(key[name]);
  found.expires = key.expires ?? "";
  found.models = key.models.join() === "*" ? "" : key.models.join(", ");
  return found;
}

const same = (a, b) => JSON.stringify(a ?? null) === JSON.stringify(b ?? null);

/** Return the terms that differ from those of a key. */
export const changedTerms = (key, terms) =>
  Object.fromEntries(Object.entries(terms).filter(([name, value]) => !same(value, key[name])));

function shown(name, value) {
  if (value === null || value === undefined) return NOTHING[name] ?? "none";
  if (name === "budget_usd") return money(value);
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (name === "budget_period") return PERIODS[value] ?? value;
  if (Array.isArray(value)) return value.join() === "*" ? "all" : value.join(", ");
  return typeof value === "number" ? whole(value) : String(value);
}

/** Return the differences between two states of a key, a line for each field. */
export function differences(before, after, mine = {}) {
  return Object.entries(LABELS)
    .filter(([name]) => !same(before[name], after[name]))
    .map(([name, label]) => {
      const line = `${label}: ${shown(name, before[name])} → ${shown(name, after[name])}`;
      return name in mine && !same(mine[name], after[name]) ? `${line} (you: ${shown(name, mine[name])})` : line;
    });
}

const ACTIONS = { create: "Created", change: "Changed", disable: "Disabled", enable: "Enabled", rotate: "Rotated", delete: "Deleted" };

/** Return who changed a key, and how. An entry of the log with no key was a command on the server. */
export function changeTitle({ action, by }) {
  return `${ACTIONS[action] ?? action} by ${by.name}${by.key_id === null ? ", with a command on the server" : ""}`;
}

/** Return what an entry of a key's log changed, a line for each field. */
export function changeLines({ action, changes }) {
  if (action === "disable" || action === "enable") return []; // the title says it
  return Object.entries(changes).map(([name, value]) => {
    if (name === "overlap_s") return value ? `Old secret valid for ${span(value)}` : "Old secret refused at once";
    const text = value?.to === undefined ? shown(name, value) : `${shown(name, value.from)} → ${shown(name, value.to)}`;
    return `${LABELS[name] ?? name}: ${text}`;
  });
}

function span(seconds) {
  const [size, unit] = [[86400, "day"], [3600, "hour"], [60, "minute"], [1, "second"]].find(([size]) => seconds % size === 0);
  const count = seconds / size;
  return count === 1 ? `${unit === "hour" ? "an" : "a"} ${unit}` : `${whole(count)} ${unit}s`;
}

/** Return the limits that apply to a key or a group, in words. */
export function limitsText(holder) {
  const limits = { ...holder, ...holder.limits };
  const found = Object.entries(LIMITS)
    .filter(([name]) => typeof limits[name] === "number")
    .map(([name, words]) => `${whole(limits[name])} ${words}`);
  return found.join(", ") || "no limits";
}

/** Return the models that a key or a group may use in words; "" for all. */
export const modelsText = ({ models }) => (models.length === 1 && models[0] === "*" ? "" : models.join(", "));

/** Return the spent and the remaining part of a budget in words, and the used share (null: none). */
export function budgetText({ budget_usd: budget, budget_period: period, used }) {
  if (budget === null) return { text: used ? `${money(used.spent_usd)} spent` : "unknown", hint: "no budget", share: null };
  const all = `${money(budget)} ${PERIODS[period]}`;
  if (!used) return { text: `of ${all}`, hint: "What is spent is unknown: the ledger can’t be read.", share: null };
  const share = budget ? Math.min(1, 1 - used.left_usd / budget) : 1;
  return { text: `${money(used.spent_usd)} of ${all}`, hint: `${money(used.left_usd)} left`, share };
}

/** Return the field of the form that an error of the API is about, or "". */
export function fieldOf({ code, message }) {
  if (code === "key_exists") return "name";
  return /^(\w+)(?::| is missing)/.exec(message)?.[1] ?? "";
}

/** Return an error's message for the field at which it is shown, without the field's name and null. */
export const atField = (message) =>
  message.replace(/^\w+: /, "").replace(/, or null for (\w+)/, "; empty: $1").replace(/^./, (first) => first.toUpperCase());

/** Return true if a text is the secret of a key rather than its name or id. */
export const isSecret = (text) => /(^|\W)(sk-)?sluice-\S{16,}|^\s*sk-/i.test(text);
