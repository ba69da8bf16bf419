// Signing in: the key is asked for once, and shared by the tabs of this browser.
//
// - A tab keeps the key in sessionStorage. A new tab asks the others for it over a BroadcastChannel,
//   which reaches only pages of this server.
// - Signing out signs out every tab that uses the same key.

import { $, BASE, get, KEY, Problem, remember, remembered, showProblem } from "./common.js";

const ANSWER_MS = 150; // how long a new tab waits for the others before it shows the form
const OTHERS = [
  [/^sk-ant-/, "Anthropic"],
  [/^sk-or-/, "OpenRouter"],
  [/^sk-(proj|svcacct|admin)-/, "OpenAI"],
  [/^AIza/, "Google"],
  [/^gsk_/, "Groq"],
  [/^xai-/, "xAI"],
  [/^hf_/, "Hugging Face"],
];

/** Return what was pasted without quotes, a variable's name, and the word Bearer. */
export function cleaned(text) {
  return text
    .trim()
    .replace(/^(export\s+)?SLUICE_KEY\s*=\s*/, "")
    .replace(/^(Authorization:\s*)?Bearer\s+/i, "")
    .replace(/^(["'])(.*)\1$/, "$2")
    .trim();
}

/** Return a sentence about a text that can't be a key, or "". */
export function unusable(key) {
  // fetch reports a key that a header can't carry as a network error.
  if (!/^[\x21-\x7e]+$/.test(key)) return "A key is one word without spaces or special letters.";
  if (key.includes("\u2026") || key.endsWith("...")) return "This is the short form of a key. Paste all of it.";
  return "";
}

/** Return what to do about a key that the server doesn't accept. */
export function advice(key) {
  const other = OTHERS.find(([pattern]) => pattern.test(key));
  if (other) return `This looks like a key of ${other[1]}. Sluice has keys of its own, which begin with sk-sluice-.`;
  return (
    "This server doesn\u2019t accept the key. It may be incomplete, disabled, expired, or a key of another " +
    "server. Check that you copied all of it, or ask for a new one."
  );
}

const openChannel = () => new BroadcastChannel(`sluice.key ${BASE}`);

/** Sign out. The page's listeners of "signout" still have the key. */
const leave = () => {
  dispatchEvent(new Event("signout"));
  sessionStorage.clear();
  location.reload();
};

function showKey(channel) {
  const key = remembered(KEY, "");
  $("who-key").textContent = `…${key.slice(-4)}`;
  $("who").hidden = !key;
  $("sign-out").onclick = () => {
    channel.postMessage({ left: remembered(KEY, "") });
    leave();
  };
}

/** Share the key with the other tabs, on a page that works without one. */
export function shareKey() {
  const channel = openChannel();
  channel.addEventListener("message", ({ data }) => {
    const key = remembered(KEY, "");
    if (data.asks && key) channel.postMessage({ key });
    else if (data.left && data.left === key) leave();
    else if (data.key && !key) {
      remember(KEY, data.key);
      showKey(channel);
    }
  });
  if (!remembered(KEY, "")) channel.postMessage({ asks: true });
  showKey(channel);
}

/** Ask for a key if there is none, check it, then call begin(models). */
export function signIn(begin) {
  const channel = openChannel();
  let open = false;

  const form = () => {
    $("sign-in").hidden = false;
    $("loading").hidden = true;
    wait(false);
  };
  const wait = (is) => {
    const button = $("key-form").querySelector("button");
    button.disabled = is;
    button.textContent = is ? "Signing in…" : "Sign in";
  };

  const enter = async () => {
    const key = remembered(KEY, "");
    let models;
    $("loading").hidden = !$("sign-in").hidden;
    wait(true);
    try {
      models = await get("/api/v1/models");
    } catch (problem) {
      if (problem.status === 401) {
        sessionStorage.removeItem(KEY);
        problem.advice = advice(key);
      }
      form();
      $("key").focus();
      return showProblem($("sign-in-error"), problem);
    }
    if (open) return;
    open = true;
    showKey(channel);
    $("sign-in").hidden = $("loading").hidden = true;
    $("app").hidden = false;
    channel.postMessage({ key });
    begin(models);
  };

  channel.addEventListener("message", ({ data }) => {
    const key = remembered(KEY, "");
    if (data.asks && open) channel.postMessage({ key });
    else if (data.key && !key) {
      remember(KEY, data.key);
      enter();
    } else if (data.left && data.left === key) leave();
  });
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const key = cleaned($("key").value);
    if (!key) return $("key").focus();
    const why = unusable(key);
    if (why) return showProblem($("sign-in-error"), new Problem(why));
    remember(KEY, key);
    showProblem($("sign-in-error"), null);
    enter();
  });
  $("sign-in").hidden = true;
  if (remembered(KEY, "")) return enter();
  channel.postMessage({ asks: true });
  setTimeout(() => remembered(KEY, "") || form(), ANSWER_MS);
}
