// The playground: the request form, the completion as it arrives, stop, code examples, history.

import { $, BASE, call, make, Problem, remember, remembered, showProblem, signIn, stopStream } from "./common.js";
import { duration, money, size, whole } from "./common.js";
import { LANGUAGES } from "./snippets.js";
import { frames } from "./sse.js";

const NUMBERS = [
  ...["max_tokens", "temperature", "top_p", "frequency_penalty", "presence_penalty", "seed"],
];
const OTHER = "";
const MOST_ASKED = 20;
const LONGEST_KEPT = 20000;
const CHARACTERS_A_TOKEN = 4;
const OVERTAKEN = 10; // retries of a stop, which may arrive before the request that it stops
const OVERTAKEN_MS = 150;

const narrow = matchMedia("(max-width: 860px)");
const models = new Map();
let language = "curl";
let running = null;

// The request form

function fillModels(providers) {
  const select = $("model");
  for (const provider of providers.filter((found) => found.enabled)) {
    const group = make("optgroup", { label: provider.name });
    for (const model of provider.text_completions) {
      const id = `${provider.name}/${model.modelName}`;
      models.set(id, model);
      group.append(make("option", { value: id }, labelled(id, model)));
    }
    if (group.children.length) select.append(group);
  }
  select.append(make("option", { value: OTHER }, "Another model…"));
  choose(remembered("sluice.model", $("ask").dataset.defaultModel));
}

function labelled(id, model) {
  const { input, output } = model.pricing;
  const parts = [id];
  if (input !== null) parts.push(input || output ? `${money(input)} / ${money(output)}` : "free");
  if (model.specs.context_window) parts.push(size(model.specs.context_window));
  return parts.join("  ·  ");
}

function choose(id) {
  $("model").value = models.has(id) ? id : OTHER;
  $("other-model").value = models.has(id) ? "" : id;
  showModel();
}

const chosen = () => $("model").value || $("other-model").value.trim();

function showModel() {
  $("other-model").hidden = $("model").value !== OTHER;
  const model = models.get(chosen());
  const { input = null, output = null } = model?.pricing ?? {};
  const context = model?.specs.context_window;
  let price = `${money(input)} in, ${money(output)} out per million tokens`;
  if (input === null) price = "Price unknown";
  else if (!input && !output) price = "Free";
  $("model-facts").textContent = context ? `${price} · context ${whole(context)} tokens` : price;
}

/** Return the request's body in the native format. */
function asked() {
  const body = { model: chosen(), prompt: $("prompt").value, stream: $("stream").checked };
  const more = {};
  for (const name of NUMBERS) {
    const text = $(name).value.trim();
    if (text !== "") (name === "seed" ? more : body)[name] = Number(text);
  }
  const stops = $("stop").value.split("\n").filter(Boolean);
  if (stops.length) more.stop = stops.map((text) => text.replaceAll("\\n", "\n"));
  if (Object.keys(more).length) body.additional_params = more;
  return body;
}

function fill(body) {
  const values = { ...body, ...body.additional_params };
  choose(values.model);
  $("prompt").value = values.prompt;
  $("stream").checked = values.stream;
  for (const name of NUMBERS) $(name).value = values[name] ?? "";
  $("stop").value = (values.stop ?? []).map((text) => text.replaceAll("\n", "\\n")).join("\n");
}

/** Update what depends on the form: the code, and the number of parameters that are set. */
function changed() {
  const body = asked();
  $("code").textContent = LANGUAGES[language](location.origin + BASE, body);
  const set = [...NUMBERS.filter((name) => $(name).value !== ""), ...($("stop").value ? ["stop"] : [])];
  $("parameters-set").textContent = set.length ? `${set.length} set` : "";
}

/** Return true if the form is valid; else focus its first invalid field, which shows the reason. */
function valid() {
  const bad = [$("prompt"), ...NUMBERS.map($)].find((field) => !field.checkValidity());
  if (!bad) return true;
  if ($("parameters").contains(bad)) $("parameters").open = true;
  bad.reportValidity();
  return false;
}

// The completion

/** A completion that is arriving: its text, and the figures in the live line. */
class Answer {
  constructor(body, streamId) {
    Object.assign(this, { body, streamId, began: performance.now(), at: Date.now() });
    Object.assign(this, { text: "", pending: "", pieces: 0, input: 0, first: null, usage: null });
    Object.assign(this, { reason: "", requestId: "", stopped: false, painting: 0 });
    this.price = models.get(body.model)?.pricing ?? { input: null, output: null };
    this.node = document.createTextNode("");
    $("output").replaceChildren(this.node);
  }

  add(text) {
    if (this.first === null) {
      this.first = performance.now();
      if (!this.stopped) $("ending").textContent = "Receiving…";
    }
    this.pieces += 1;
    this.text += text;
    this.pending += text;
    this.painting ||= requestAnimationFrame(() => this.paint());
  }

  paint() {
    cancelAnimationFrame(this.painting);
    this.painting = 0;
    const box = $("output");
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    this.node.appendData(this.pending);
    this.pending = "";
    if (atEnd) box.scrollTop = box.scrollHeight;
    this.live();
  }

  /** Return the output tokens so far: the provider's count once there is one, until then an estimate. */
  tokens() {
    return (
      this.usage?.output_tokens ??
      Math.max(this.pieces, Math.round(this.text.length / CHARACTERS_A_TOKEN))
    );
  }

  cost() {
    if (this.usage) return this.usage.cost_usd;
    const { input, output } = this.price;
    const asked = this.input || Math.round(this.body.prompt.length / CHARACTERS_A_TOKEN);
    return input === null ? null : (asked * input + this.tokens() * output) / 1e6;
  }

  live() {
    const about = this.usage && this.usage.source !== "estimate" ? "" : "≈ ";
    const now = this.ended ?? performance.now();
    const flowing = now - (this.first ?? now);
    // If the completion arrived all at once, the rate is that of the whole request.
    const seconds = (flowing > 50 ? flowing : now - this.began) / 1000;
    const cost = this.cost();
    $("live-tokens").textContent = about + whole(this.tokens());
    $("live-rate").textContent = this.first ? whole((this.tokens() / seconds).toPrecision(3)) : "–";
    $("live-first").textContent = this.first ? duration(this.first - this.began) : "–";
    $("live-cost-name").textContent = this.ended ? "Cost" : "Cost so far";
    $("live-cost").textContent = (cost === null ? "" : about) + money(cost);
  }
}

function newId() {
  // crypto.randomUUID needs a secure context, and this page may be on http in a local network.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `play-${[...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

async function run() {
  if (running || !valid()) return;
  const body = asked();
  const answer = (running = new Answer(body, newId()));
  busy(true);
  remember("sluice.model", body.model);
  let problem = null;
  try {
    const response = await call("/api/v1/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...body, stream_id: answer.streamId }),
    });
    answer.requestId = response.headers.get("X-Request-ID") ?? "";
    if (body.stream) await follow(answer, response);
    else take(answer, await response.json());
  } catch (error) {
    problem = error instanceof Problem ? error : new Problem("The connection broke before the completion was finished.", { code: "network", requestId: answer.requestId });
  }
  answer.ended = performance.now();
  answer.paint();
  running = null;
  busy(false);
  finish(answer, problem);
}

async function follow(answer, response) {
  for await (const { event, data } of frames(response.body)) {
    if (data === "[DONE]") return;
    const frame = JSON.parse(data);
    if (frame.type === "error") throw Problem.of(frame, 0, answer.requestId);
    if (event === "usage_start") answer.input = frame.input_tokens;
    else if (event === "usage_final") answer.usage = frame;
    else if (frame.type === "content") answer.add(frame.data);
    else if (frame.type === "finish") answer.reason = frame.finish_reason;
  }
  throw new Problem("The stream ended before the completion was finished.", { requestId: answer.requestId });
}

function take(answer, found) {
  answer.add(found.data);
  answer.reason = found.finish_reason;
  answer.usage = {
    input_tokens: found.usage.tokens_prompt,
    output_tokens: found.usage.tokens_completion,
    cost_usd: found.usage.cost,
    source: found.usage.source,
  };
}

const ENDINGS = {
  stop: "Finished",
  length: "Cut off at max tokens",
  content_filter: "Ended by the provider’s content filter",
  cancelled: "Stopped",
};

function finish(answer, problem) {
  showProblem($("error"), problem);
  const { usage } = answer;
  const used = usage
    ? `${whole(usage.input_tokens)} tokens in, ${whole(usage.output_tokens)} out, ${money(usage.cost_usd)}`
    : "";
  const how = problem ? "Failed" : (ENDINGS[answer.reason] ?? answer.reason);
  $("ending").textContent = [how, used, `${duration(answer.ended - answer.began)}`].filter(Boolean).join(" · ");
  keep({
    at: answer.at,
    body: answer.body,
    text: answer.text.slice(0, LONGEST_KEPT),
    how: problem ? `Failed: ${problem.code || "network"}` : how,
    used,
  });
}

function busy(is) {
  const [from, to] = is ? [$("run"), $("halt")] : [$("halt"), $("run")];
  const focused = document.activeElement === from;
  to.disabled = false;
  $("output").setAttribute("aria-busy", String(is)); // screen readers then wait for the whole text
  document.body.classList.toggle("flowing", is);
  if (focused) to.focus();
  from.disabled = true;
  if (!is) return;
  if (narrow.matches) $("live").scrollIntoView({ block: "start" });
  showProblem($("error"), null);
  $("ending").textContent = "Waiting for the model…";
  for (const name of ["tokens", "rate", "first", "cost"]) $(`live-${name}`).textContent = "–";
}

/** Stop the running call. Its stream then ends normally, with its usage. */
async function halt() {
  const answer = running;
  if (!answer || answer.stopped) return;
  answer.stopped = true;
  $("ending").textContent = "Stopping…";
  for (let left = OVERTAKEN; running === answer; left -= 1) {
    try {
      return await stopStream(answer.streamId);
    } catch (problem) {
      if (left && problem.status === 404) await new Promise((go) => setTimeout(go, OVERTAKEN_MS));
      else {
        answer.stopped = false;
        return running === answer ? showProblem($("error"), problem) : undefined;
      }
    }
  }
}

// The history

function keep(entry) {
  const found = [entry, ...remembered("sluice.history", [])].slice(0, MOST_ASKED);
  while (found.length && !remember("sluice.history", found)) found.pop();
  showHistory();
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
        make("span", { class: "prompt" }, entry.body.prompt.slice(0, 120)),
        make("span", { class: "faint" }, `${entry.body.model} · ${entry.how}${entry.used ? ` · ${entry.used}` : ""}`),
      );
      button.addEventListener("click", () => bringBack(entry));
      return make("li", {}, button);
    }),
  );
}

function bringBack(entry) {
  if (running) return;
  fill(entry.body);
  changed();
  showProblem($("error"), null);
  $("output").replaceChildren(entry.text);
  $("ending").textContent = [entry.how, entry.used].filter(Boolean).join(" · ");
  for (const name of ["tokens", "rate", "first", "cost"]) $(`live-${name}`).textContent = "–";
  $("prompt").focus();
}

// The code examples

function select(tab) {
  for (const other of $("languages").children) {
    other.setAttribute("aria-selected", String(other === tab));
    other.tabIndex = other === tab ? 0 : -1;
  }
  $("code-panel").setAttribute("aria-labelledby", tab.id);
  language = tab.dataset.language;
  changed();
}

function moveTab(event) {
  const tabs = [...$("languages").children];
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const next = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length];
  event.preventDefault();
  select(next);
  next.focus();
}

async function copy() {
  const text = $("code").textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // The clipboard API needs a secure context, and this page may be on http in a local network.
    const area = make("textarea", { class: "unseen" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    $("copy").focus();
  }
  $("copied").textContent = "Copied. Set SLUICE_KEY to your key before you run it.";
}

function begin(providers) {
  fillModels(providers);
  $("ask").addEventListener("input", () => {
    showModel();
    changed();
  });
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  $("halt").addEventListener("click", halt);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      run();
    } else if (event.key === "Escape") halt();
  });
  $("languages").addEventListener("click", (event) => {
    const tab = event.target.closest("[role=tab]");
    if (tab) select(tab);
  });
  $("languages").addEventListener("keydown", moveTab);
  $("copy").addEventListener("click", copy);
  $("forget").addEventListener("click", () => {
    sessionStorage.removeItem("sluice.history");
    showHistory();
    $("prompt").focus();
  });
  if (/Mac|iP/.test(navigator.platform)) $("run").querySelector("kbd").textContent = "⌘ ↵";
  showHistory();
  changed();
  $("prompt").focus();
}

signIn(begin);
