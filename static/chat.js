// The playground's chat: the parts of an answer, and the panel that shows them as they arrive.
//
// - A turn is {message, reasoning, served, how, bad, stream}. The message is sent back with the next
//   request as it came; the rest is only shown, and `stream` is the id of its call.

import { $, make } from "./common.js";
import { Answer, appendNew, Panel } from "./panel.js";

const text = (value) => (typeof value === "string" ? value : "");

/** Return the reasoning of a message, or of a piece of it. Hosts have three ways to send it. */
export function reasoningOf({ reasoning_content: long, reasoning, content }) {
  const parts = Array.isArray(content) ? content.flatMap((part) => part?.thinking ?? []) : [];
  return text(long) || text(reasoning) || parts.map((part) => text(part?.text ?? part)).join("");
}

/**
 * Return tool calls with further pieces. A piece continues the call with its index, unless their ids
 * differ: some hosts send whole calls that all have the index 0.
 */
export function joinCalls(calls, pieces) {
  const found = [...calls];
  for (const piece of Array.isArray(pieces) ? pieces : []) {
    const at = found.findLastIndex(
      ({ index, id }) => index !== undefined && index === piece.index && (!piece.id || !id || piece.id === id),
    );
    if (at < 0) found.push({ ...piece, function: { ...piece.function, arguments: argumentsOf(piece) } });
    else found[at] = joinCall(found[at], piece);
  }
  return found;
}

function joinCall(call, piece) {
  const filled = Object.fromEntries(Object.entries(piece).filter(([, value]) => value !== null && value !== ""));
  const name = call.function.name || piece.function?.name;
  return { ...call, ...filled, function: { ...call.function, name, arguments: argumentsOf(call) + argumentsOf(piece) } };
}

function argumentsOf({ function: { arguments: found = "" } = {} }) {
  return typeof found === "string" ? found : JSON.stringify(found);
}

/** Return the tool calls of the latest answer that have no result yet. */
export function openCalls(turns) {
  const at = turns.findLastIndex(({ message }) => message.tool_calls?.length);
  if (at < 0 || turns.slice(at + 1).some(({ message }) => message.role !== "tool")) return [];
  const answered = new Set(turns.slice(at + 1).map(({ message }) => message.tool_call_id));
  return turns[at].message.tool_calls.filter(({ id }) => !answered.has(id));
}

/** Return the elements that show tool calls. */
export function callElements(calls) {
  return calls.map(({ id, function: { name, arguments: found } }) =>
    make(
      "div",
      { class: "call" },
      make("p", { class: "hint" }, "Tool call ", make("code", {}, name ?? ""), id ? ` · ${id}` : ""),
      make("pre", {}, make("code", {}, found)),
    ),
  );
}

/** An answer of a chat, which may have reasoning and tool calls besides its text. */
export class ChatAnswer extends Answer {
  reasoning = "";
  calls = [];
  endsWithText = true;

  /** Add a frame of a stream, or a whole response. A refusal is shown as text. */
  add({ data, choices }, pieces = 1) {
    const part = choices?.[0]?.delta ?? choices?.[0]?.message ?? {};
    const found = { text: text(data) || text(part.refusal), reasoning: reasoningOf(part), calls: part.tool_calls ?? [] };
    if (!found.text && !found.reasoning && !found.calls.length) return;
    this.count(pieces);
    this.text += found.text;
    this.reasoning += found.reasoning;
    this.calls = joinCalls(this.calls, found.calls);
  }

  get length() {
    const called = this.calls.reduce((sum, { function: { name = "", arguments: found } }) => sum + name.length + found.length, 0);
    return this.text.length + this.reasoning.length + called;
  }

  get turn() {
    const calls = this.calls.map(({ index, ...call }) => call);
    const message = { role: "assistant", content: calls.length && !this.text ? null : this.text };
    if (calls.length) message.tool_calls = calls;
    const { how, bad } = super.entry();
    return { message, reasoning: this.reasoning, served: this.served || this.body.model, how, bad, stream: this.streamId };
  }

  entry() {
    return { ...super.entry(), text: "", turn: this.length ? this.turn : null };
  }
}

/** The answer of a call that another page or program made: a completion, or a chat as one text. */
export class WatchedAnswer extends ChatAnswer {
  get shown() {
    const calls = this.calls.map(({ function: { name, arguments: found } }) => `${name}(${found})`);
    return [this.reasoning, this.text, ...calls].filter(Boolean).join("\n\n");
  }
}

export class ChatPanel extends Panel {
  path = "/api/v1/chat/completions";

  /**
   * @param pricing returns the pricing of a model by its full name, or undefined
   * @param conversation the Conversation that gets the turns
   */
  constructor(pricing, conversation) {
    super("-chat", pricing);
    this.conversation = conversation;
  }

  get scroller() {
    return $("talk");
  }

  answerTo(body) {
    return new ChatAnswer(body, this.pricing);
  }

  /** The conversation is kept by itself. */
  keptBody({ messages, ...rest }) {
    return rest;
  }

  /**
   * Show the rest of an answer. The page that was left may have put a part of it into the
   * conversation, or the answer that it was to replace.
   */
  resume(record) {
    const { conversation } = this;
    if (conversation.turns.length && !conversation.answerable) conversation.dropAnswer();
    return super.resume({ ...record, body: { ...record.body, messages: conversation.messages(false) } });
  }

  start(answer) {
    $("coming").hidden = false;
    $("coming-name").textContent = answer.body.model;
    $("thinking").open = false;
    $("no-turns").hidden = true;
    super.start(answer);
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  receiving({ text: found, reasoning }) {
    return reasoning && !found ? "Reasoning…" : "Receiving…";
  }

  write(box, now) {
    const { reasoning = "", calls = [] } = this.answer ?? {};
    super.write(box, now);
    $("thinking").hidden = !reasoning;
    appendNew($("thoughts"), reasoning);
    $("calling").replaceChildren(...callElements(calls));
  }

  finish(answer) {
    super.finish(answer);
    this.put(answer.length && !answer.kept ? answer.turn : null);
  }

  /** Move the answer into the conversation. If nothing has arrived, restore the answer that it replaces. */
  put(turn) {
    const found = turn ?? this.conversation.dropped;
    this.conversation.dropped = null;
    $("coming").hidden = true;
    if (found) this.conversation.add(found);
    else this.conversation.renumber();
  }

  /** Show how an answer of the history ended. Its conversation has already been restored. */
  bringBack(entry) {
    super.bringBack({ ...entry, text: entry.turn?.message.content ?? "" });
    this.put(entry.turn);
  }

  clear() {
    this.answer = null;
    this.show("");
    this.noFigures();
    this.at("served").textContent = "No answer yet";
    this.at("price").textContent = "";
    this.conclude({ problem: null, text: "" }, []);
  }
}

