// A text field with a list of models: search, groups, and any other name that is typed.
//
// It follows the combobox pattern of the ARIA Authoring Practices: the focus stays in the field, and
// aria-activedescendant names the chosen option.

import { make } from "./common.js";

const MOST_SHOWN = 100;

/** Return the groups with only those items that contain all words of a text. */
export function matching(groups, text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  return groups
    .map(({ name, items }) => ({
      name,
      items: items.filter(({ id }) => words.every((word) => id.toLowerCase().includes(word))),
    }))
    .filter(({ items }) => items.length);
}

export class Picker {
  /**
   * @param field the element of class "picker", with an input, a listbox and a hint
   * @param groups returns [{name, items: [{id, note}]}], in the order to show
   * @param changed is called after each change of the value
   */
  constructor(field, groups, changed) {
    this.input = field.querySelector("input");
    this.popup = field.querySelector(".popup");
    this.list = field.querySelector("[role=listbox]");
    this.hint = field.querySelector(".popup .hint");
    Object.assign(this, { groups, changed, active: null });
    this.input.addEventListener("focus", () => this.input.select());
    this.input.addEventListener("click", () => this.open(""));
    this.input.addEventListener("input", () => {
      this.open(this.input.value);
      this.changed();
    });
    this.input.addEventListener("keydown", (event) => this.pressed(event));
    this.input.addEventListener("blur", () => this.close());
    this.popup.addEventListener("mousedown", (event) => event.preventDefault()); // keep the focus
    this.list.addEventListener("click", (event) => {
      const option = event.target.closest("[role=option]");
      if (option) this.take(option);
    });
  }

  get value() {
    return this.input.value.trim();
  }

  set value(id) {
    this.input.value = id;
  }

  get options() {
    return [...this.list.querySelectorAll("[role=option]")];
  }

  open(text) {
    const found = matching(this.groups(), text);
    const count = found.reduce((sum, { items }) => sum + items.length, 0);
    let left = MOST_SHOWN;
    this.list.replaceChildren(
      ...found.map(({ name, items }, place) => {
        const title = make("div", { class: "group", id: `${this.list.id}-${place}`, role: "presentation" }, name);
        const group = make("div", { role: "group", "aria-labelledby": title.id }, title);
        for (const item of items.slice(0, left)) group.append(this.option(item, `${place}-${group.children.length}`));
        left = Math.max(0, left - items.length);
        return group;
      }).filter((group) => group.children.length > 1),
    );
    this.list.hidden = !count;
    this.hint.textContent = this.hintFor(count);
    this.hint.hidden = !this.hint.textContent;
    this.popup.hidden = false;
    this.input.setAttribute("aria-expanded", "true");
    this.activate(null);
  }

  hintFor(count) {
    if (!count) return "No model of the list has this name. It is sent as you type it: provider/model.";
    return count > MOST_SHOWN ? `${count - MOST_SHOWN} more. Type a part of the name.` : "";
  }

  option({ id, note }, place) {
    return make(
      "div",
      { role: "option", id: `${this.list.id}-option-${place}`, "data-id": id, "aria-selected": String(id === this.value) },
      make("span", {}, id),
      " ",
      make("span", { class: "hint figures" }, note),
    );
  }

  close() {
    this.popup.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.activate(null);
  }

  activate(option) {
    this.active?.classList.remove("active");
    this.active = option;
    if (!option) return this.input.removeAttribute("aria-activedescendant");
    option.classList.add("active");
    option.scrollIntoView({ block: "nearest" });
    this.input.setAttribute("aria-activedescendant", option.id);
  }

  take(option) {
    this.value = option.dataset.id;
    this.close();
    this.changed();
  }

  pressed(event) {
    const shown = !this.popup.hidden;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      if (!shown) this.open("");
      this.move(step);
    } else if (event.key === "Enter" && shown && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      if (this.active) this.take(this.active);
      else this.close();
    } else if (event.key === "Escape" && shown) {
      event.stopPropagation(); // Escape stops a running call elsewhere
      this.close();
    }
  }

  /** Move to the next or previous option. Start at the selected one. */
  move(step) {
    const { options } = this;
    if (!options.length) return;
    const selected = options.find((option) => option.getAttribute("aria-selected") === "true");
    if (!this.active && selected) return this.activate(selected);
    const from = this.active ? options.indexOf(this.active) : step > 0 ? -1 : 0;
    this.activate(options[(from + step + options.length) % options.length]);
  }
}
