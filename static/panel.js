// A panel of the playground: one completion as it arrives, its live line, its stop, and its end.
//
// - The ids of a panel's elements have the panel's suffix. The second panel shows a comparison, and
//   the one of chat.js a conversation.
// - Text from models becomes text nodes or the nodes of markdown.js, never HTML.

import { $, call, copyText, duration, isFree, make, money, prices, Problem, showProblem, stopStream, whole } from "./common.js";
import { parse, render } from "./markdown.js";
import { frames } from "./sse.js";

const LONGEST_KEPT = 20000;
const CHARACTERS_A_TOKEN = 4;
const LONGEST_TOKEN = 8; // characters of a usual token, at most
const OVERTAKEN = 10; // retries of a stop, which may arrive before the request that it stops
const OVERTAKEN_MS = 150;
const RENDER_SHARE = 10; // rendering may take a tenth of the time
const FIGURES = ["tokens", "rate", "first", "cost"];
const NO_PRICE = { input: null, output: null };

const ENDINGS = {
  stop: "Finished",
  length: "Cut off at max tokens",
  content_filter: "Ended by the provider’s content filter",
  tool_calls: "Finished with tool calls",
  cancelled: "Stopped",
};

/** Return the figures of a usage, each with its label. */
export function usageText(usage) {
  if (!usage) return "";
  const about = usage.source === "estimate" ? "≈ " : "";
  return [
    `${about}${whole(usage.input_tokens)} tokens in`,
    `${about}${whole(usage.output_tokens)} tokens out`,
    `cost ${usage.cost_usd === null ? "" : about}${money(usage.cost_usd)}`,
  ].join(" · ");
}

/**
 * Return an error's message for a reader of the page. The API's message about a provider without a
 * key is for programs: it names a field that the page doesn't have.
 */
export function forPeople({ code, message }) {
  const match = code === "provider_not_found" && /^Provider '(.+)' is not enabled on this server: its operator must set (\w+(?: and \w+)*)/.exec(message);
  if (!match) return message;
  const [, provider, variables] = match;
  return (
    `${provider} isn’t set up on this server. If the server is yours, put ${variables} into .env and restart it; ` +
    "the quickstart shows how. Otherwise ask its operator, or choose another model."
  );
}

/** Return a word for how a call ended, for people. */
export function endingText({ problem, text, reason, continued, length = text?.length }) {
  if (problem) return length ? "Broken off" : "Failed";
  return (ENDINGS[reason] ?? reason) + (continued ? ", continued by another model" : "");
}

/** Estimate the tokens of a text. Short pieces are tokens; long ones hold several. */
export function estimated(pieces, characters) {
  return characters < LONGEST_TOKEN * pieces ? pieces : Math.round(characters / CHARACTERS_A_TOKEN);
}

export function newId() {
  // crypto.randomUUID needs a secure context, and this page may be on http in a local network.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `play-${[...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

/** Return the characters of a request's input. */
export function inputLength({ prompt = "", messages = [] }) {
  return messages.reduce((sum, { content }) => sum + (content?.length ?? 0), prompt.length);
}

/** A completion that arrives: its text, and what is known of it. */
export class Answer {
  constructor(body, pricing) {
    Object.assign(this, { body, pricing, streamId: newId(), began: performance.now(), at: Date.now() });
    Object.assign(this, { text: "", pieces: 0, input: 0, first: null, usage: null, ended: null });
    Object.assign(this, { reason: "", requestId: "", provider: "", served: "", stopped: false, continued: false, problem: null });
  }

  /** Add a frame of a stream, or a whole response. */
  add({ data }) {
    this.count();
    this.text += data;
  }

  /** Count a piece of the answer. */
  count() {
    this.first ??= performance.now();
    this.pieces += 1;
  }

  /** Return the characters that have arrived. */
  get length() {
    return this.text.length;
  }

  /** Return the output tokens so far: the provider's count once there is one, until then an estimate. */
  get tokens() {
    return this.usage?.output_tokens ?? estimated(this.pieces, this.length);
  }

  get cost() {
    if (this.usage) return this.usage.cost_usd;
    const { input, output } = this.pricing(this.served || this.body.model) ?? NO_PRICE;
    const asked = this.input || Math.round(inputLength(this.body) / CHARACTERS_A_TOKEN);
    return input === null ? null : (asked * input + this.tokens * output) / 1e6;
  }

  /** Return false if the call failed before there was anything to count. */
  get counted() {
    return !this.problem || this.length > 0 || this.usage !== null;
  }

  get free() {
    return isFree(this.pricing(this.served || this.body.model));
  }

  get seconds() {
    const now = this.ended ?? performance.now();
    const flowing = now - (this.first ?? now);
    // If the completion arrived all at once, the rate is that of the whole request.
    return (flowing > 50 ? flowing : now - this.began) / 1000;
  }

  /** Return the answer as the history keeps it. */
  entry() {
    const { at, body, served } = this;
    const how = endingText(this);
    return {
      at,
      body,
      served,
      text: this.text.slice(0, LONGEST_KEPT),
      how: this.problem ? `${how}: ${this.problem.code || "network"}` : how,
      bad: this.problem !== null,
      used: usageText(this.usage),
    };
  }
}

/** Show a text in an element by appending what is new, because a long text would be slow to replace. */
export function appendNew(box, text) {
  const node = box.firstChild;
  if (node instanceof Text && !node.nextSibling && text.startsWith(node.data)) {
    node.appendData(text.slice(node.length));
  } else box.replaceChildren(text);
}

export const isRaw = () => document.querySelector("input[name=view]:checked").value === "raw";

export class Panel {
  path = "/api/v1/completions";

  /** @param pricing returns the pricing of a model by its full name, or undefined */
  constructor(suffix, pricing) {
    Object.assign(this, { suffix, pricing, answer: null, text: "", painting: 0, renderAt: 0, later: 0 });
    this.at("halt-one").addEventListener("click", () => this.halt());
    this.at("copy-answer").addEventListener("click", () => this.copy());
  }

  at = (name) => $(name + this.suffix);

  get running() {
    return this.answer !== null && this.answer.ended === null;
  }

  /** Return the element that scrolls when the answer is long. */
  get scroller() {
    return this.at("output");
  }

  // The text

  /** Show a text. While it arrives, show it soon. */
  show(text, { soon = false } = {}) {
    this.text = text;
    this.at("copy-answer").hidden = !text;
    if (soon) this.painting ||= requestAnimationFrame(() => this.paint());
    else this.paint(true);
  }

  paint(now = false) {
    cancelAnimationFrame(this.painting);
    clearTimeout(this.later);
    this.painting = 0;
    const box = this.scroller;
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    this.write(this.at("output"), now);
    if (atEnd && this.running) box.scrollTop = box.scrollHeight;
    this.live();
  }

  write(box, now) {
    if (isRaw()) {
      box.classList.add("raw");
      return appendNew(box, this.text);
    }
    const began = performance.now();
    if (!now && began < this.renderAt) {
      this.later = setTimeout(() => this.paint(), this.renderAt - began);
      return undefined;
    }
    box.classList.remove("raw");
    box.replaceChildren(render(parse(this.text)));
    this.renderAt = performance.now() + RENDER_SHARE * (performance.now() - began);
    return undefined;
  }

  async copy() {
    await copyText(this.text);
    this.at("copy-answer").textContent = "Copied";
    setTimeout(() => (this.at("copy-answer").textContent = "Copy answer"), 2000);
  }

  // The figures

  live() {
    const { answer } = this;
    if (!answer) return;
    if (!answer.counted) {
      this.noFigures();
      return;
    }
    const about = answer.usage && answer.usage.source !== "estimate" ? "" : "≈ ";
    this.at("live-tokens").textContent = about + whole(answer.tokens);
    this.at("live-rate").textContent = answer.first ? whole((answer.tokens / answer.seconds).toPrecision(3)) : "–";
    this.at("live-first").textContent = answer.first ? duration(answer.first - answer.began) : "–";
    this.at("live-cost-name").textContent = answer.ended ? "Cost" : "Cost so far";
    this.at("live-cost").textContent = answer.free && !answer.cost ? "free" : (answer.cost === null ? "" : about) + money(answer.cost);
  }

  noFigures() {
    this.at("live-cost-name").textContent = "Cost";
    for (const name of FIGURES) this.at(`live-${name}`).textContent = "–";
  }

  /** Name the model that serves the answer, and its price. */
  name(served, asked) {
    const by = served && served !== asked ? `${served}, for ${asked}` : served || asked;
    this.at("served").textContent = by;
    const price = this.pricing(served || asked);
    this.at("price").textContent = price || served ? prices(price ?? NO_PRICE) : "";
  }

  serve(answer, provider, model) {
    // A fallback may take over after the start, and a later frame names only its provider.
    if (!provider || provider === answer.provider) return;
    answer.provider = provider;
    answer.served = model ? `${provider}/${model}` : `${provider} (a fallback)`;
    this.name(answer.served, answer.body.model);
  }

  // The call

  answerTo(body) {
    return new Answer(body, this.pricing);
  }

  /** Send a request and show its completion. Return the answer when it has ended. */
  async run(body) {
    const answer = (this.answer = this.answerTo(body));
    this.start(answer);
    try {
      const response = await call(this.path, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ ...body, stream_id: answer.streamId }),
      });
      answer.requestId = response.headers.get("X-Request-ID") ?? "";
      if (body.stream) await this.follow(answer, response);
      else this.take(answer, await response.json());
    } catch (error) {
      answer.problem =
        error instanceof Problem
          ? Object.assign(error, { message: forPeople(error) })
          : new Problem("The connection broke before the completion was finished.", { code: "network", requestId: answer.requestId });
    }
    this.finish(answer);
    return answer;
  }

  start({ body }) {
    showProblem(this.at("error"), null);
    this.noFigures();
    this.name("", body.model);
    this.at("output").hidden = false;
    this.at("output").classList.remove("broken");
    this.at("output").setAttribute("aria-busy", "true"); // screen readers then wait for the whole text
    this.at("panel").classList.add("flows");
    this.at("halt-one").disabled = false;
    this.at("halt-one").setAttribute("aria-label", `Stop ${body.model}`);
    this.at("ending").textContent = "Waiting for the model…";
    this.show("");
    this.noFigures();
  }

  async follow(answer, response) {
    for await (const { event, data } of frames(response.body)) {
      if (data === "[DONE]") return;
      const frame = JSON.parse(data);
      if (frame.type === "error") throw Problem.of(frame, 0, answer.requestId);
      this.serve(answer, frame.provider, frame.model);
      if (event === "usage_start") answer.input = frame.input_tokens;
      else if (event === "usage_final") answer.usage = frame;
      else if (frame.type === "content") this.receive(answer, frame);
      else if (frame.type === "finish") this.conclusion(answer, frame);
    }
    throw new Problem("The stream ended before the completion was finished.", { code: "network", requestId: answer.requestId });
  }

  receive(answer, frame) {
    answer.add(frame);
    if (!answer.stopped && answer.first !== null) this.tell(this.receiving(answer));
    this.show(answer.text, { soon: true });
  }

  receiving() {
    return "Receiving…";
  }

  /** Show a state. Screen readers would read one again that is replaced by itself. */
  tell(state) {
    if (this.at("ending").textContent !== state) this.at("ending").textContent = state;
  }

  conclusion(answer, frame) {
    Object.assign(answer, { reason: frame.finish_reason, continued: frame.continued === true });
  }

  take(answer, found) {
    this.serve(answer, found.provider, found.model);
    answer.add(found);
    answer.reason = found.finish_reason;
    answer.usage = {
      input_tokens: found.usage.tokens_prompt,
      output_tokens: found.usage.tokens_completion,
      cost_usd: found.usage.cost,
      source: found.usage.source,
    };
  }

  finish(answer) {
    answer.ended = performance.now();
    this.show(answer.text);
    this.at("output").setAttribute("aria-busy", "false");
    this.at("panel").classList.remove("flows");
    this.at("halt-one").disabled = true;
    if (!this.pricing(answer.served) && answer.cost !== null) this.at("price").textContent = "";
    const took = `took ${duration(answer.ended - answer.began)}`;
    this.conclude(answer, [endingText(answer), usageText(answer.usage), took]);
  }

  /** Show the end of an answer. An error takes the place of an empty text. */
  conclude({ problem, text, length = text.length }, parts) {
    this.at("output").classList.toggle("broken", Boolean(problem && length));
    this.at("output").hidden = Boolean(problem && !length);
    showProblem(this.at("error"), problem);
    this.at("ending").textContent = parts.filter(Boolean).join(" · ");
  }

  /** Stop the running call. Its stream then ends normally, with its usage. */
  async halt() {
    const { answer } = this;
    if (!this.running || answer.stopped) return;
    answer.stopped = true;
    this.at("ending").textContent = "Stopping…";
    for (let left = OVERTAKEN; answer.ended === null; left -= 1) {
      try {
        await stopStream(answer.streamId);
        return;
      } catch (problem) {
        if (left && problem.status === 404) await new Promise((go) => setTimeout(go, OVERTAKEN_MS));
        else {
          answer.stopped = false;
          if (answer.ended === null) showProblem(this.at("error"), problem);
          return;
        }
      }
    }
  }

  /** Show an answer of the history. */
  bringBack(entry) {
    this.answer = null;
    this.noFigures();
    this.name(entry.served, entry.body.model);
    this.show(entry.text);
    const [, code] = entry.bad ? entry.how.split(": ") : [];
    const problem = entry.bad ? new Problem("This call failed when it was made.", { code }) : null;
    this.conclude({ problem, text: entry.text }, [entry.how, entry.used]);
  }
}
