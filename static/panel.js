// A panel of the playground: one completion as it arrives, its live line, its stop, and its end.
//
// - The ids of a panel's elements have the panel's suffix. The second panel shows a comparison, and
//   the one of chat.js a conversation.
// - Text from models becomes text nodes or the nodes of markdown.js, never HTML.

import { $, BASE, call, copyText, duration, isFree, make, money, prices, Problem, showProblem, stopStream, whole } from "./common.js";
import { parse, render } from "./markdown.js";
import { forget, framesOf, giveUp, keep, nativeFrames } from "./resume.js";

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

const WAITING = "Waiting for the model…";
const BROKE = "The connection broke before the completion was finished.";
const UNREACHABLE = "The connection broke, and the server couldn’t be reached again. The answer may still go on: reload this page to get all of it.";
const GONE = "The rest of this answer can’t be had any more. What had arrived is in the history.";

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
    Object.assign(this, { stream: null, restored: false, watched: false, unseen: false });
  }

  /** Go on with a call that began before this page was loaded. Its record is one of resume.js. */
  restore({ id, path, at, first = null, known, watched = false }) {
    const began = performance.now() - Math.max(0, Date.now() - at);
    Object.assign(this, { streamId: id, at, began, first: first === null ? null : began + first });
    Object.assign(this, { restored: true, watched, unseen: first === null });
    this.stream = { path, id, last: 0, resumable: known || undefined };
  }

  /**
   * Add a frame of a stream, or a whole response.
   *
   * @param pieces the number of pieces that the frame holds
   */
  add({ data }, pieces = 1) {
    this.count(pieces);
    this.text += data;
  }

  /** Count pieces of the answer. */
  count(pieces) {
    this.first ??= performance.now();
    this.pieces += pieces;
  }

  /** Return the text to show. */
  get shown() {
    return this.text;
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

  /** Return when the answer ended, or null. It may have ended while no page was there to see it. */
  get end() {
    const known = this.restored && this.ended !== null ? this.usage?.latency_ms : undefined;
    return known === undefined ? this.ended : Math.min(this.ended, this.began + known);
  }

  get seconds() {
    const now = this.end ?? performance.now();
    const flowing = this.unseen ? 0 : now - (this.first ?? now);
    // If the completion arrived all at once, the rate is that of the whole request.
    return (flowing > 50 ? flowing : now - this.began) / 1000;
  }

  /** Return the answer as the history keeps it. */
  entry() {
    const { at, body, served, streamId: stream } = this;
    const how = endingText(this);
    return {
      at,
      body,
      served,
      text: this.text.slice(0, LONGEST_KEPT),
      how: this.problem ? `${how}: ${this.problem.code || "network"}` : how,
      bad: this.problem !== null,
      used: usageText(this.usage),
      stream,
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
    this.at("copy-answer").addEventListener("click", () => this.copy("copy-answer", this.text));
    this.at("copy-link").addEventListener("click", () => this.copy("copy-link", this.link));
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

  /** Return the address at which another tab can follow the answer. */
  get link() {
    return `${location.origin}${BASE}/#stream=${encodeURIComponent(this.answer.streamId)}`;
  }

  async copy(button, text) {
    const name = this.at(button).dataset.name;
    await copyText(text);
    this.at(button).textContent = "Copied";
    setTimeout(() => (this.at(button).textContent = name), 2000);
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
    this.at("live-first").textContent = answer.first && !answer.unseen ? duration(answer.first - answer.began) : "–";
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
  async run(body, answer = this.answerTo(body)) {
    this.answer = answer;
    answer.stream ??= { path: this.path, id: answer.streamId, last: 0, resumable: undefined };
    this.start(answer);
    try {
      if (body.stream) await this.follow(answer);
      else this.take(answer, await (await this.send(answer)).json());
    } catch (error) {
      this.fail(answer, error);
    }
    this.finish(answer);
    return answer;
  }

  /** Show the rest of an answer that began before this page was loaded. Return it when it has ended. */
  resume(record, answer = this.answerTo(record.body)) {
    answer.restore(record);
    return this.run(record.body, answer);
  }

  async send(answer) {
    const { body, streamId } = answer;
    const headers = { "Content-Type": "application/json" };
    if (body.stream) headers["X-Sluice-Resumable"] = "1";
    const sent = JSON.stringify({ ...body, stream_id: streamId });
    const response = await call(this.path, { method: "POST", headers, body: sent });
    answer.requestId = response.headers.get("X-Request-ID") ?? "";
    return response;
  }

  /** Note why an answer isn't whole. */
  fail(answer, error) {
    const { requestId, stream, restored, length } = answer;
    const { lost = false, code, status } = error;
    const waits = lost && code === "network" && stream.resumable === true;
    const gone = lost && (status === 404 || status === 429 || status >= 500);
    Object.assign(answer, { waits, gone: restored && !length && gone });
    if (error instanceof Problem && !lost) answer.problem = Object.assign(error, { message: forPeople(error) });
    else if (error instanceof Problem && code !== "network" && !gone) answer.problem = error;
    else answer.problem = new Problem(waits ? UNREACHABLE : BROKE, { code: "network", requestId });
  }

  /** Keep what a reload of the page needs to go on. */
  remember({ streamId, at, body, began, first, unseen, stream, watched }) {
    const { path, resumable } = stream;
    const after = first === null || unseen ? null : first - began;
    keep({ panel: this.suffix, id: streamId, path, at, body: this.keptBody(body), first: after, known: resumable === true, watched });
  }

  keptBody(body) {
    return body;
  }

  start(answer) {
    const { body } = answer;
    if (body.stream) this.remember(answer);
    showProblem(this.at("error"), null);
    this.noFigures();
    this.name("", body.model);
    this.at("output").hidden = false;
    this.at("output").classList.remove("broken");
    this.at("output").setAttribute("aria-busy", "true"); // screen readers then wait for the whole text
    this.at("panel").classList.add("flows");
    this.at("halt-one").disabled = false;
    this.at("halt-one").setAttribute("aria-label", `Stop ${body.model}`);
    this.at("copy-link").hidden = true;
    this.at("ending").textContent = answer.restored ? "Getting the answer again…" : WAITING;
    this.show("");
    this.noFigures();
  }

  async follow(answer) {
    const { stream, restored } = answer;
    const connections = framesOf(stream, {
      begin: restored ? null : () => this.send(answer),
      opened: (response) => this.opened(answer, response),
      lost: () => this.tell("The connection is lost. Trying again…"),
    });
    for await (const { data, covered } of connections) {
      if (data === "[DONE]") return;
      for (const frame of nativeFrames(JSON.parse(data))) this.read(answer, frame, covered);
    }
    if (!answer.reason) throw new Problem(BROKE, { code: "network", requestId: answer.requestId });
  }

  opened(answer, response) {
    const { stream } = answer;
    const before = stream.resumable;
    stream.resumable = response.headers.get("X-Sluice-Resumable") === "1";
    this.at("copy-link").hidden = !stream.resumable;
    if (!stream.resumable) forget(stream.id);
    else if (!before) this.remember(answer);
    if (!answer.stopped) this.tell(answer.first === null ? WAITING : this.receiving(answer));
  }

  read(answer, frame, pieces) {
    if (frame.type === "error") throw Problem.of(frame, 0, answer.requestId);
    this.serve(answer, frame.provider, frame.model);
    if (frame.type === "usage_start") answer.input = frame.input_tokens;
    else if (frame.type === "usage_final") answer.usage = frame;
    else if (frame.type === "content") this.receive(answer, frame, pieces);
    else if (frame.type === "finish") this.conclusion(answer, frame);
  }

  receive(answer, frame, pieces) {
    const none = answer.first === null;
    answer.add(frame, pieces);
    if (none && answer.first !== null && answer.stream.resumable) this.remember(answer);
    if (!answer.stopped && answer.first !== null) this.tell(this.receiving(answer));
    this.show(answer.shown, { soon: true });
  }

  receiving() {
    return "Receiving…";
  }

  /** Show a state. Screen readers would read one again that is replaced by itself. */
  tell(state) {
    if (this.at("ending").textContent !== state) this.at("ending").textContent = state;
  }

  conclusion(answer, frame) {
    if (answer.endsWithText) this.receive(answer, frame); // the last frame of a chat may have text as well
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
    if (!answer.waits) forget(answer.streamId);
    this.show(answer.shown);
    this.at("output").setAttribute("aria-busy", "false");
    this.at("panel").classList.remove("flows");
    this.at("halt-one").disabled = true;
    this.at("copy-link").hidden = true;
    if (answer.gone) {
      this.at("ending").textContent = GONE;
      return;
    }
    if (!this.pricing(answer.served) && answer.cost !== null) this.at("price").textContent = "";
    const took = `took ${duration(answer.end - answer.began)}`;
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
          if (problem.code === "network") giveUp(answer.stream);
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
