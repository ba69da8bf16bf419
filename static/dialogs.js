// Dialogs: Escape and "Cancel" close them, and the focus returns to where it was.

import { showProblem } from "./common.js";

/** Open a dialog. When it closes, focus what origin() returns then: tables may have been redrawn. */
export function openDialog(dialog, origin, first = null) {
  dialog.returnValue = "";
  dialog.addEventListener("close", () => dialog.returnValue || origin()?.focus(), { once: true });
  dialog.showModal();
  (first ?? dialog.querySelector("input, select, button"))?.focus();
}

/** Close a dialog that another one follows, without moving the focus. */
export const handOver = (dialog) => dialog.close("next");

/** Have the buttons with data-close close their dialog. */
export function closeByButtons() {
  for (const button of document.querySelectorAll("[data-close]")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
}

/** Run an action while the buttons of a form can't be pressed twice. Return its result, if any. */
export async function busy(form, box, action) {
  const button = form.querySelector("[type=submit]");
  if (button.disabled) return undefined;
  button.disabled = true;
  showProblem(box, null);
  try {
    return await action();
  } catch (problem) {
    showProblem(box, problem);
    box.scrollIntoView({ block: "nearest" });
    return undefined;
  } finally {
    button.disabled = false;
  }
}

/** Show problems at the fields with these names, or none. Return true if every name has a field. */
export function showWrong(form, wrong) {
  const fields = [...form.querySelectorAll("[aria-describedby$='-error']")];
  for (const field of fields) {
    const text = wrong[field.name || field.id] ?? "";
    const box = document.getElementById(field.getAttribute("aria-describedby").split(" ").at(-1));
    box.textContent = text;
    box.hidden = !text;
    field.toggleAttribute("aria-invalid", Boolean(text));
    if (text) field.setAttribute("aria-invalid", "true");
  }
  const found = fields.find((field) => wrong[field.name || field.id]);
  const details = found?.closest("details");
  if (details) details.open = true;
  found?.focus();
  return Object.keys(wrong).every((name) => fields.some((field) => (field.name || field.id) === name));
}
