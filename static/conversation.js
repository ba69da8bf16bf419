// The conversation of the playground's chat: its messages, which can be edited and deleted, and the
// field for the next one.
//
// - Text from users and models becomes text nodes or the nodes of markdown.js, never HTML.
// - The tab's session storage keeps the conversation until the user signs out.

import { callElements, openCalls } from "./chat.js";
import { $, make, remember, remembered } from "./common.js";
import { parse, render } from "./markdown.js";
import { isRaw } from "./panel.js";

const STORED = "sluice.chat";
const ORDINARY = new Set(["Finished", "Finished with tool calls"]); // ends that need no mention
const NAMES = { user: "User", assistant: "Assistant", system: "System", tool: "Tool result" };

/** Return the messages to send: the system prompt, the turns and the draft, as far as they exist. */
export function messagesOf(system, turns, draft = null) {
  const found = turns.map(({ message }) => message);
  if (system.trim()) found.unshift({ role: "system", content: system });
  return draft ? [...found, draft] : found;
}

/** Return the system prompt and the turns of messages. */
export function apart(messages) {
  const [first, ...rest] = messages;
  const turns = (found) => found.map((message) => ({ message }));
  return first?.role === "system" ? { system: first.content, turns: turns(rest) } : { system: "", turns: turns(messages) };
}

export class Conversation {
  turns = [];
  editing = null; // saves the message that is being edited
  dropped = null; // the answer that the next one replaces

  /**
   * @param changed is called after each change of the messages
   * @param regenerate is called to replace the last answer
   * @param full is called when the tab can't keep the conversation; true if there is more room now
   */
  constructor({ changed, regenerate, full }) {
    Object.assign(this, { changed, regenerate, full });
    $("add").addEventListener("click", () => this.addDraft());
  }

  // The next message

  get draft() {
    const content = $("message").value;
    if (!content.trim()) return null;
    const [role, id] = $("role").value.split(/:(.*)/s);
    return role === "tool" ? { role, tool_call_id: id, content } : { role, content };
  }

  messages(withDraft) {
    return messagesOf($("system").value, this.turns, withDraft ? this.draft : null);
  }

  /** Return true if the last message can be answered. */
  get answerable() {
    const last = this.turns.at(-1)?.message;
    return Boolean(last) && last.role !== "assistant";
  }

  /** Return true if results of tool calls are missing, without which no host answers. */
  get lacksResults() {
    return openCalls(this.turns).length > 0;
  }

  /** Move the draft into the conversation. */
  addDraft() {
    const message = this.draft;
    if (!message) return $("message").focus();
    $("message").value = "";
    this.add({ message });
    if (!message.tool_call_id) $("role").value = message.role === "user" ? "assistant" : "user";
    this.changed();
    return $("message").focus();
  }

  /** Save the message that is being edited, and move the draft into the conversation. */
  settle() {
    this.editing?.save();
    const message = this.draft;
    $("message").value = "";
    $("role").value = "user";
    if (message) this.add({ message });
    this.changed();
  }

  /** Offer the results of the tool calls that are open. */
  offerResults() {
    const calls = openCalls(this.turns);
    const before = $("role").value;
    for (const option of $("role").querySelectorAll("[value^='tool:']")) option.remove();
    $("role").append(...calls.map(({ id, function: { name } }) => make("option", { value: `tool:${id}` }, `Result of ${name}`)));
    if (calls.length) $("role").value = `tool:${calls[0].id}`;
    else $("role").value = before.startsWith("tool:") ? "user" : before;
  }

  // The turns

  add(turn) {
    this.turns.push(turn);
    $("turns").append(this.element(turn));
    this.settled();
    $("talk").scrollTop = $("talk").scrollHeight;
  }

  remove(turn) {
    const at = this.turns.indexOf(turn);
    this.turns.splice(at, 1);
    $("turns").children[at].remove();
    this.settled();
    const next = $("turns").children[Math.min(at, this.turns.length - 1)];
    (next?.querySelector(".delete") ?? $("message")).focus();
  }

  /** Replace all turns. */
  replace(turns) {
    this.editing = null;
    this.turns = turns;
    this.show();
    this.settled();
  }

  /** Remove the last answer, which a new one will replace. */
  dropAnswer() {
    this.editing?.save();
    this.dropped = this.turns.pop();
    $("turns").lastElementChild.remove();
    this.settled();
  }

  settled() {
    this.renumber();
    this.offerResults();
    this.save();
    this.changed();
  }

  /** Show all turns again. */
  show() {
    this.editing?.save();
    $("turns").replaceChildren(...this.turns.map((turn) => this.element(turn)));
    this.renumber();
  }

  /** Name the buttons by the messages' numbers, and offer another answer at the end. */
  renumber() {
    $("no-turns").hidden = this.turns.length > 0;
    $("clear").hidden = !this.turns.length;
    [...$("turns").children].forEach((item, at) => {
      const again = item.querySelector(".again"); // a message that is edited has none
      if (again) again.hidden = at < this.turns.length - 1;
      for (const button of item.querySelectorAll(".tools button:not(.again)")) {
        button.setAttribute("aria-label", `${button.textContent} message ${at + 1}`);
      }
    });
  }

  /** Enable or disable what changes the turns. */
  enable(on) {
    for (const button of $("turns").querySelectorAll("button")) button.disabled = !on;
    $("add").disabled = $("clear").disabled = !on;
  }

  element(turn) {
    const { message, reasoning, served, how, bad } = turn;
    const notes = [served, ORDINARY.has(how) ? "" : how, message.tool_call_id].filter(Boolean);
    const button = (name, kind, act) => {
      const found = make("button", { type: "button", class: `quiet ${kind}` }, name);
      found.addEventListener("click", act);
      return found;
    };
    const item = make(
      "li",
      { class: `turn ${message.role}${bad ? " broken" : ""}` },
      make(
        "div",
        { class: "row" },
        make("p", { class: "role" }, make("strong", {}, NAMES[message.role] ?? message.role), " ", make("span", { class: bad ? "hint bad" : "hint" }, notes.join(" · "))),
        make(
          "div",
          { class: "tools" },
          button(message.role === "assistant" ? "Regenerate" : "Get an answer", "again", () => this.regenerate()),
          button("Edit", "edit", () => this.edit(turn)),
          button("Delete", "delete", () => this.remove(turn)),
        ),
      ),
    );
    if (reasoning) item.append(make("details", { class: "reasoning" }, make("summary", {}, "Reasoning"), make("div", { class: "thoughts" }, reasoning)));
    if (message.content) item.append(body(message));
    item.append(...callElements(message.tool_calls ?? []));
    return item;
  }

  // Editing

  edit(turn) {
    this.editing?.save();
    const at = this.turns.indexOf(turn);
    const { message } = turn;
    const area = make("textarea", { "aria-label": `Text of message ${at + 1}`, rows: 4 });
    area.value = message.content ?? "";
    const fixed = message.role === "tool" || message.tool_calls;
    const roles = fixed ? [message.role] : ["user", "assistant", "system"];
    const role = make("select", { "aria-label": `Role of message ${at + 1}` }, ...roles.map((name) => make("option", { value: name }, NAMES[name])));
    role.value = message.role;
    const save = make("button", { type: "button", class: "small" }, "Save");
    const cancel = make("button", { type: "button", class: "quiet" }, "Cancel");
    const item = make("li", { class: `turn ${message.role}` }, area, make("div", { class: "edits" }, role, save, cancel));
    const close = (keeps) => {
      this.editing = null;
      if (keeps) turn.message = { ...message, role: role.value, content: area.value || (message.tool_calls ? null : "") };
      item.replaceWith(this.element(turn));
      this.settled();
      $("turns").children[this.turns.indexOf(turn)].querySelector(".edit").focus();
    };
    this.editing = { save: () => close(true) };
    save.addEventListener("click", () => close(true));
    cancel.addEventListener("click", () => close(false));
    item.addEventListener("keydown", (event) => {
      if (event.key === "Escape") close(false);
    });
    $("turns").children[at].replaceWith(item);
    area.focus();
  }

  // The tab's memory

  save() {
    const kept = { system: $("system").value, draft: $("message").value, turns: this.turns };
    while (!remember(STORED, kept)) if (!this.full()) return;
  }

  load() {
    const { system = "", draft = null, turns = [] } = remembered(STORED, {});
    $("system").value = system;
    if (draft !== null) $("message").value = draft;
    this.replace(turns);
  }
}

/** Return the element of a message's text. Only models write Markdown. */
function body({ role, content }) {
  if (isRaw() || role === "tool") return make("div", { class: "said raw" }, content);
  if (role === "assistant") return make("div", { class: "said" }, render(parse(content)));
  return make("div", { class: "said plain" }, content);
}
