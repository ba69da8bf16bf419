// The playground: the request form, one or two completions or a chat, code examples, history.

import { ChatPanel, WatchedAnswer } from "./chat.js";
import { $, BASE, copyText, get, KEY, make, prices, Problem, remember, remembered, stopStream, whole } from "./common.js";
import { apart, Conversation } from "./conversation.js";
import { Panel } from "./panel.js";
import { Picker } from "./picker.js";
import * as resuming from "./resume.js";
import { signIn } from "./session.js";
import { LANGUAGES } from "./snippets.js";

const NUMBERS = [
  ...["max_tokens", "temperature", "top_p", "frequency_penalty", "presence_penalty", "seed"],
];
const MOST_ASKED = 20;
const MOST_RECENT = 5;

const narrow = matchMedia("(max-width: 860px)");
const models = new Map(); // from a full name to the model
const aliases = new Set();
const replicas = new Map(); // from a provider's name to {total, reachable}, if it has replicas

const pricing = (name) => models.get(name)?.pricing;
const conversation = new Conversation({ changed: () => changed(), regenerate, full: forgetOldest });
const completions = [new Panel("", pricing), new Panel("-2", pricing)];
const chats = [new ChatPanel(pricing, conversation)];
let panels = completions; // those of the chosen tab
let language = "curl";

const chatting = () => panels === chats;
const comparing = () => !$("second").hidden;
const running = () => panels.some((panel) => panel.running);

/** Return the place of the model whose code is shown. */
const side = () => (comparing() ? Number(document.querySelector("input[name=side]:checked").value) : 0);

// The models

/** Remember the enabled models that complete text. */
function learn(providers) {
  for (const provider of providers.filter((found) => found.enabled)) {
    if (provider.replicas) replicas.set(provider.name, provider.replicas);
    for (const model of provider.text_completions) models.set(`${provider.name}/${model.modelName}`, model);
  }
}

/** Remember the aliases, which only the list of the OpenAI API has. */
async function learnAliases() {
  const { data } = await get("/v1/models").catch(() => ({ data: [] }));
  for (const { id } of data) if (!models.has(id)) aliases.add(id);
  changed();
}

function groups() {
  const named = [
    { name: "Aliases", ids: [...aliases] },
    { name: "Recent", ids: remembered("sluice.recent", []) },
  ];
  const byProvider = new Map();
  for (const [id, { provider }] of models) {
    if (!byProvider.has(provider)) byProvider.set(provider, []);
    byProvider.get(provider).push(id);
  }
  for (const [name, ids] of byProvider) named.push({ name, ids });
  return named.filter(({ ids }) => ids.length).map(({ name, ids }) => ({ name, items: ids.map((id) => ({ id, note: note(id) })) }));
}

function note(id) {
  const model = models.get(id);
  return model ? prices(model.pricing).replace(" per million tokens", "") : "";
}

function facts(id) {
  const model = models.get(id);
  const context = model?.specs.context_window;
  if (model?.provider === "local") return "Free. A toy that makes up text, without an account.";
  if (model) return prices(model.pricing) + (context ? ` · context ${whole(context)} tokens` : "") + shared(id);
  if (aliases.has(id)) return "An alias of this server. The answer names the model that served.";
  return id ? `Not in this server’s list. Its price is unknown.${shared(id)}` : "";
}

/** Return how many replicas a model's provider has, and how many of them could be reached when the list was loaded. */
function shared(id) {
  const found = replicas.get(id.split("/")[0]);
  if (!found) return "";
  const state = found.reachable < found.total ? `, ${found.reachable} reachable` : "";
  return ` · ${found.total} replicas${state}`;
}

function used(names) {
  remember("sluice.model", names[0]);
  const recent = new Set([...names, ...remembered("sluice.recent", [])]);
  remember("sluice.recent", [...recent].slice(0, MOST_RECENT));
}

const pickers = [new Picker($("model").parentElement, groups, changed), new Picker($("model-2").parentElement, groups, changed)];

function compare(on) {
  $("second").hidden = !on;
  $("panel-2").hidden = !on;
  $("compare").textContent = on ? "Remove the second model" : "Compare with a second model";
  $("compare").setAttribute("aria-pressed", String(on));
  $("bench").classList.toggle("two", on);
  $("side").hidden = !on;
  $("side").querySelector("input").checked = true;
  nameHalt();
  nameAnswer();
  changed();
}

// Completions or a chat

function nameAnswer() {
  $("answer-title").textContent = chatting() ? "Conversation" : comparing() ? "Completions" : "Completion";
}

/** Show the form of completions, or that of a chat. */
function choose(tab) {
  if (running()) return;
  const chat = tab.id === "tab-chat";
  markTab(tab, "bench");
  panels = chat ? chats : completions;
  if (chat) compare(false);
  for (const found of document.querySelectorAll("[data-for]")) found.hidden = found.dataset.for !== (chat ? "chat" : "completion");
  $(chat ? "chat-act" : "ask").append($("act"));
  $("run-name").textContent = chat ? "Send" : "Run";
  $("bench").classList.toggle("chats", chat);
  remember("sluice.mode", tab.id);
  nameAnswer();
  changed();
}

function clear() {
  conversation.replace([]);
  chats[0].clear();
  $("message").focus();
}

// The request form

/** Return the request's body in the native format. A chat's has the message that isn't sent yet. */
function asked(model, { draft = true } = {}) {
  const input = chatting() ? { messages: conversation.messages(draft) } : { prompt: $("prompt").value };
  const body = { model, ...input, stream: $("stream").checked };
  const more = {};
  for (const name of NUMBERS) {
    const text = $(name).value.trim();
    if (text !== "") (name === "seed" ? more : body)[name] = Number(text);
  }
  const stops = $("stop").value.split("\n").filter(Boolean);
  if (stops.length) more.stop = stops.map((text) => text.replaceAll("\\n", "\n"));
  const tools = chatting() ? toolsOf($("tools").value) : null;
  if (tools) more.tools = tools;
  if (Object.keys(more).length) body.additional_params = more;
  return body;
}

/** Return the list of tools that a text is, or null. */
function toolsOf(text) {
  try {
    const found = JSON.parse(text);
    return Array.isArray(found) && found.length ? found : null;
  } catch {
    return null;
  }
}

function fill(body) {
  if (body.messages) {
    const { system, turns } = apart(body.messages);
    $("system").value = system;
    $("message").value = "";
    conversation.replace(turns);
  } else $("prompt").value = body.prompt;
  fillParameters(body);
}

/** Fill in everything but the text. */
function fillParameters(body) {
  const values = { ...body, ...body.additional_params };
  pickers[0].value = values.model;
  if (chatting()) $("tools").value = values.tools ? JSON.stringify(values.tools, null, 2) : "";
  $("stream").checked = values.stream;
  for (const name of NUMBERS) $(name).value = values[name] ?? "";
  $("stop").value = (values.stop ?? []).map((text) => text.replaceAll("\n", "\\n")).join("\n");
}

/** Update what depends on the form: the code, and the number of parameters that are set. */
function changed() {
  pickers.forEach((picker, place) => ($(place ? "model-facts-2" : "model-facts").textContent = facts(picker.value)));
  pickers.forEach((picker, place) => ($(place ? "side-name-2" : "side-name").textContent = picker.value || (place ? "Second model" : "First model")));
  $("code").textContent = LANGUAGES[language](location.origin + BASE, asked(pickers[side()].value));
  const texts = chatting() ? ["stop", "tools"] : ["stop"];
  const set = [...NUMBERS, ...texts].filter((name) => $(name).value !== "");
  $("parameters-set").textContent = set.length ? `${set.length} set` : "";
}

/**
 * Return true if the form is valid; else focus its first invalid field, which shows the reason.
 * Another answer (again) needs no further message.
 */
function valid({ again = false } = {}) {
  const models = comparing() ? ["model", "model-2"] : ["model"];
  const texts = chatting() ? ["message", "tools"] : ["prompt"];
  const blank = !again && !conversation.answerable && !conversation.draft;
  $("message").setCustomValidity(blank ? "Write a message." : "");
  $("tools").setCustomValidity($("tools").value.trim() && !toolsOf($("tools").value) ? "Tools are a list in JSON." : "");
  const bad = [...models, ...texts, ...NUMBERS].map($).find((field) => !field.checkValidity());
  if (!bad) return true;
  if ($("parameters").contains(bad)) $("parameters").open = true;
  bad.reportValidity();
  return false;
}

// The calls

async function run() {
  if (running() || !valid()) return;
  if (chatting()) conversation.settle();
  if (chatting() && conversation.lacksResults) {
    chats[0].tell("Added. The model needs the results of its other tool calls as well.");
    return $("message").focus();
  }
  return send();
}

async function regenerate() {
  if (running() || !valid({ again: true })) return;
  if (!conversation.answerable) conversation.dropAnswer();
  return send();
}

async function send() {
  const names = pickers.slice(0, comparing() ? 2 : 1).map((picker) => picker.value);
  used(names);
  const calls = names.map((name, place) => panels[place].run(asked(name, { draft: false })).then(ended));
  busy(true);
  await Promise.all(calls);
  busy(false);
}

// Answers that began before the page was loaded

/** Go on with what the tab kept of its active streams: those of the tab that was used last. */
async function resume() {
  const records = resuming.kept();
  if (!records.length) return;
  const latest = records.reduce((last, record) => (record.at > last.at ? record : last));
  const mine = records.filter(({ panel }) => (panel === "-chat") === (latest.panel === "-chat"));
  for (const { id } of records.filter((record) => !mine.includes(record))) resuming.forget(id);
  const panelOf = ({ panel }) => panels.find(({ suffix }) => suffix === panel);
  choose($(latest.panel === "-chat" ? "tab-chat" : "tab-completion"));
  mine.forEach(fillAgain);
  changed();
  const calls = mine.map((record) => {
    const answer = record.watched ? new WatchedAnswer(record.body, pricing) : undefined;
    return panelOf(record).resume(record, answer).then(ended);
  });
  busy(true);
  await Promise.all(calls);
  busy(false);
}

/** Fill the form in as it was when a stream began. */
function fillAgain({ panel, body, watched }) {
  if (watched) return;
  if (panel === "-2") compare(true);
  if (!chatting()) $("prompt").value = body.prompt;
  const { value } = pickers[0];
  fillParameters(body);
  if (panel === "-2") [pickers[0].value, pickers[1].value] = [value, body.model];
}

/** Follow a stream that another tab or a program began. */
async function watch(id) {
  if (running()) return;
  choose($("tab-completion"));
  compare(false);
  try {
    const { path, provider, model, created_at: created } = await resuming.stateOf(id);
    const body = { model: `${provider}/${model}`, stream: true };
    resuming.keep({ panel: "", id, path, at: Date.parse(created), body, known: true, watched: true });
  } catch (problem) {
    const message = "This stream can’t be followed here. It may not be resumable, have ended some time ago, or be in the format of an editor.";
    const found = problem.status === 404 ? new Problem(message, problem) : problem;
    panels[0].conclude({ problem: found, text: "" }, []);
    return;
  }
  await resume();
}

/** Return the id of the stream that the page's address names, or "". Take it out of the address. */
function named() {
  const id = /^#stream=([\w.:-]+)$/.exec(location.hash)?.[1] ?? "";
  if (id) history.replaceState(null, "", location.pathname);
  return id;
}

/** Follow the stream that the page's address names, or go on with what the tab kept. */
function restore() {
  const id = named();
  if (id && !resuming.kept().some((record) => record.id === id)) watch(id);
  else resume();
}

const halt = () => panels.forEach((panel) => panel.halt());

/** Name the stop button for what it stops. */
function nameHalt() {
  const one = panels.filter((panel) => panel.running).length === 1;
  $("halt-name").textContent = comparing() && !one ? "Stop both" : "Stop";
}

function ended(answer) {
  if (!answer.gone && !answer.watched) keep(answer);
  nameHalt();
}

function busy(is) {
  const [from, to] = is ? [$("run"), $("halt")] : [$("halt"), $("run")];
  const focused = document.activeElement === from || document.activeElement === document.body;
  to.disabled = false;
  document.body.classList.toggle("flowing", is);
  const next = !is && chatting() && !narrow.matches ? $("message") : to; // a phone would show its keyboard
  if (focused) next.focus();
  from.disabled = true;
  nameHalt();
  $("compare").disabled = is;
  for (const tab of $("modes").children) tab.disabled = is;
  conversation.enable(!is);
  if (is && narrow.matches) $("answer-title").scrollIntoView({ block: "start" });
  else if (is && chatting()) $("act").scrollIntoView({ block: "nearest" });
}

// The history

/** Keep an answer once. An answer that was kept when its page was left ends later. */
function keep(answer) {
  if (answer.kept) return;
  answer.kept = true;
  const entry = answer.entry();
  const others = remembered("sluice.history", []).filter(({ stream }) => stream !== entry.stream);
  const found = [entry, ...others].slice(0, MOST_ASKED);
  while (found.length && !remember("sluice.history", found)) found.pop();
  showHistory();
}

/** Forget the oldest entry to make room. Return false if there was none. */
function forgetOldest() {
  const found = remembered("sluice.history", []);
  if (!found.length) return false;
  remember("sluice.history", found.slice(0, -1));
  showHistory();
  return true;
}

/** Keep what has arrived, because the page is left in the middle of it. The rest may be had later. */
function left() {
  if (!remembered(KEY, "")) return; // signed out, which forgets everything
  for (const panel of panels) {
    const { answer } = panel;
    if (!panel.running || answer.watched) continue;
    Object.assign(answer, { problem: { code: "page left" } });
    if (chatting()) panel.put(answer.length ? answer.turn : null);
    keep(answer);
  }
  conversation.save();
}

function showHistory() {
  const found = remembered("sluice.history", []);
  $("no-history").hidden = found.length > 0;
  $("forget").hidden = !found.length;
  $("history").replaceChildren(
    ...found.map((entry) => {
      const time = new Date(entry.at).toLocaleTimeString("en-GB");
      const button = make(
        "button",
        { type: "button" },
        make("span", { class: "figures faint" }, time),
        make("span", { class: "prompt" }, titleOf(entry.body).slice(0, 120)),
        make("span", { class: "faint" }, entry.served || entry.body.model, " · ", make("span", { class: entry.bad ? "bad" : "" }, entry.how), entry.used ? ` · ${entry.used}` : ""),
      );
      button.addEventListener("click", () => bringBack(entry));
      return make("li", {}, button);
    }),
  );
}

/** Return the text that names an entry: the prompt, or the latest message that a person wrote. */
function titleOf({ prompt, messages }) {
  if (!messages) return prompt;
  const [last] = messages.filter(({ role }) => role === "user").slice(-1);
  return `Chat: ${last?.content ?? messages.at(-1).content}`;
}

function bringBack(entry) {
  if (running()) return;
  choose($(entry.body.messages ? "tab-chat" : "tab-completion"));
  compare(false);
  fill(entry.body);
  changed();
  panels[0].bringBack(entry);
  $(chatting() ? "message" : "prompt").focus();
}

// The code examples

/** Mark a tab as the one whose panel is shown. */
function markTab(tab, panel) {
  for (const other of tab.parentElement.children) {
    other.setAttribute("aria-selected", String(other === tab));
    other.tabIndex = other === tab ? 0 : -1;
  }
  $(panel).setAttribute("aria-labelledby", tab.id);
}

function select(tab) {
  markTab(tab, "code-panel");
  language = tab.dataset.language;
  changed();
}

/** Make a list of tabs answer to clicks and to the arrow keys. */
function listen(list, select) {
  list.addEventListener("click", (event) => {
    const tab = event.target.closest("[role=tab]");
    if (tab) select(tab);
  });
  list.addEventListener("keydown", (event) => moveTab(event, [...list.children], select));
}

function moveTab(event, tabs, select) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const next = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length];
  event.preventDefault();
  select(next);
  next.focus();
}

async function copy() {
  await copyText($("code").textContent);
  $("copied").textContent = "Copied. Set SLUICE_KEY to your key before you run it.";
}

function keyed(event) {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    run();
  } else if (event.key === "Escape") halt();
}

function begin(providers) {
  learn(providers);
  learnAliases();
  pickers[0].value = remembered("sluice.model", $("ask").dataset.defaultModel);
  $("bench").addEventListener("input", changed);
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  $("halt").addEventListener("click", halt);
  $("compare").addEventListener("click", () => {
    compare(!comparing());
    $(comparing() ? "model-2" : "compare").focus();
  });
  const view = remembered("sluice.view", "rendered");
  for (const choice of document.querySelectorAll("input[name=view]")) choice.checked = choice.value === view;
  $("view").addEventListener("change", (event) => {
    remember("sluice.view", event.target.value);
    for (const panel of panels) if (panel.text) panel.paint(true);
    conversation.show();
  });
  $("side").addEventListener("change", changed);
  document.addEventListener("keydown", keyed);
  addEventListener("pagehide", left);
  addEventListener("pageshow", ({ persisted }) => persisted && resuming.kept().length && location.reload());
  addEventListener("hashchange", () => {
    const id = named();
    if (id) watch(id);
  });
  addEventListener("signout", () => {
    for (const { running: runs, answer } of panels) if (runs && !answer.watched) stopStream(answer.streamId).catch(() => {});
  });
  listen($("languages"), select);
  listen($("modes"), choose);
  $("clear").addEventListener("click", clear);
  $("copy").addEventListener("click", copy);
  $("forget").addEventListener("click", () => {
    sessionStorage.removeItem("sluice.history");
    showHistory();
    $(chatting() ? "message" : "prompt").focus();
  });
  if (/Mac|iP/.test(navigator.platform)) $("run").querySelector("kbd").textContent = "⌘ ↵";
  showHistory();
  conversation.load();
  const tab = location.hash === "#chat" ? "tab-chat" : remembered("sluice.mode", "tab-completion");
  choose($(tab));
  $(chatting() ? "message" : "prompt").focus();
  restore();
}

signIn(begin);
