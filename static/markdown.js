// A small Markdown renderer for answers: paragraphs, headings, lists, quotes, code and emphasis.
//
// - `parse` is pure and takes time proportional to the text, however hostile the text is.
// - `render` makes only the elements in TAGS, without attributes from the text. A link is shown as
//   its text and its address, and cannot be followed.
// - A line break stays a line break, so that a plain text looks as it came.

import { make } from "./common.js";

const DEEPEST = 8; // quotes and lists inside one another; deeper ones are text
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|(\d{1,9})[.)])(?:[ \t]+|$)/;
const TABLE = /^ {0,3}\|/;
const LINK = /!?\[([^[\]\n]{0,500})\]\(([^()\s]{0,2000})\)/y;

const indent = (line) => line.length - line.trimStart().length;
const blank = (line) => !line.trim();

/** Return the blocks of a text, as nodes: strings, or {tag, children} with more for some tags. */
export function parse(text) {
  return blocks(text.replaceAll("\r\n", "\n").split("\n"), 0);
}

function blocks(lines, depth) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    const [node, next] = block(lines, at, depth);
    if (node) found.push(node);
    at = next;
  }
  return found;
}

/** Return the block that begins at a line, or null for a blank line, and the line after it. */
function block(lines, at, depth) {
  const line = lines[at];
  if (blank(line)) return [null, at + 1];
  let match;
  if ((match = FENCE.exec(line))) return fenced(lines, at, match);
  if ((match = HEADING.exec(line))) {
    const title = (match[2] ?? "").replace(/[ \t]+#+[ \t]*$/, "");
    return [{ tag: "h3", level: match[1].length, children: inline(title) }, at + 1];
  }
  if (RULE.test(line)) return [{ tag: "hr", children: [] }, at + 1];
  if (TABLE.test(line)) {
    const end = until(lines, at, (next) => !TABLE.test(next));
    return [pre(lines.slice(at, end)), end];
  }
  if (depth < DEEPEST && QUOTE.test(line)) {
    const end = until(lines, at, (next) => !QUOTE.test(next));
    const inner = lines.slice(at, end).map((next) => next.replace(QUOTE, ""));
    return [{ tag: "blockquote", children: blocks(inner, depth + 1) }, end];
  }
  if (depth < DEEPEST && ITEM.test(line)) return list(lines, at, depth);
  const end = until(lines, at + 1, (next) => blank(next) || starts(next, depth));
  return [{ tag: "p", children: inline(lines.slice(at, end).join("\n")) }, end];
}

const starts = (line, depth) =>
  FENCE.test(line) || HEADING.test(line) || RULE.test(line) || TABLE.test(line) ||
  (depth < DEEPEST && (QUOTE.test(line) || ITEM.test(line)));

function until(lines, at, ends) {
  while (at < lines.length && !ends(lines[at])) at += 1;
  return at;
}

const pre = (lines) => ({ tag: "pre", children: [{ tag: "code", children: [lines.join("\n")] }] });

/** Return a block of code. Without its closing fence it goes on to the end of the text. */
function fenced(lines, at, [line, fence]) {
  const end = until(lines, at + 1, (next) => {
    const closing = next.trim();
    return closing.length >= fence.length && closing === fence[0].repeat(closing.length);
  });
  const margin = indent(line);
  const code = lines.slice(at + 1, end).map((next) => next.slice(Math.min(margin, indent(next))));
  return [pre(code), end + 1];
}

/** Return the list that begins at a line. An item goes on over lines that are indented further. */
function list(lines, at, depth) {
  const [, , , number] = ITEM.exec(lines[at]);
  const ordered = number !== undefined;
  const items = [];
  while (at < lines.length) {
    const match = ITEM.exec(lines[at]);
    if (!match || (match[3] !== undefined) !== ordered || RULE.test(lines[at])) break;
    const margin = match[1].length;
    const inner = [lines[at].slice(match[0].length)];
    for (at += 1; at < lines.length; at += 1) {
      if (blank(lines[at])) {
        if (at + 1 === lines.length || blank(lines[at + 1])) break;
        if (indent(lines[at + 1]) <= margin) break;
      } else if (indent(lines[at]) <= margin) break;
      inner.push(lines[at].slice(Math.min(match[0].length, indent(lines[at]))));
    }
    items.push({ tag: "li", children: blocks(inner, depth + 1) });
    const next = until(lines, at, (line) => !blank(line));
    if (next < lines.length && ITEM.test(lines[next])) at = next;
  }
  return [ordered ? { tag: "ol", start: Number(number), children: items } : { tag: "ul", children: items }, at];
}

// Text with emphasis, code and links

const SPECIAL = /`+|\*+|_+|\\[!-/:-@[-`{-~]|!?\[/g;
const WORD = /[\p{L}\p{N}]/u;
const SPACE = /\s/;

/** Return the nodes of a paragraph's text. Marks that have no partner are text. */
export function inline(text) {
  const closers = backticks(text);
  const stack = [{ children: [] }]; // the open marks; at most one of each kind
  const add = (node) => stack.at(-1).children.push(node);
  let at = 0;
  SPECIAL.lastIndex = 0;
  for (let match; (match = SPECIAL.exec(text)); ) {
    const mark = match[0];
    if (match.index > at) add(text.slice(at, match.index));
    at = match.index + mark.length;
    if (mark[0] === "`") {
      const end = closers(mark.length, at);
      if (end < 0) add(mark);
      else {
        add({ tag: "code", children: [trimmed(text.slice(at, end).replaceAll("\n", " "))] });
        at = end + mark.length;
      }
    } else if (mark[0] === "\\") add(mark[1]);
    else if (mark.endsWith("[")) {
      LINK.lastIndex = match.index;
      const link = LINK.exec(text);
      if (!link) add(mark);
      else {
        add({ tag: "span", url: link[2], children: [link[1]] });
        at = LINK.lastIndex;
      }
    } else emphasize(stack, mark, text[match.index - 1] ?? " ", text[at] ?? " ");
    SPECIAL.lastIndex = at;
  }
  if (at < text.length) add(text.slice(at));
  while (stack.length > 1) abandon(stack);
  return stack[0].children;
}

const trimmed = (code) => (code.startsWith(" ") && code.endsWith(" ") && code.trim() ? code.slice(1, -1) : code);

/** Return a function that finds the next run of exactly `length` backticks, or -1 if none is left. */
function backticks(text) {
  const found = new Map(); // from a length to the places of its runs, in reverse
  for (const { index, 0: run } of [...text.matchAll(/`+/g)].reverse()) {
    if (!found.has(run.length)) found.set(run.length, []);
    found.get(run.length).push(index);
  }
  return (length, from) => {
    const places = found.get(length) ?? [];
    while (places.length && places.at(-1) < from) places.pop();
    return places.at(-1) ?? -1;
  };
}

/**
 * Close and open marks for a run of stars or underscores, which stands between two characters.
 * Two underscores are text, because they are more often Python's than Markdown's.
 */
function emphasize(stack, run, before, after) {
  const [kind] = run;
  if (kind === "_" && run.length > 1) return stack.at(-1).children.push(run);
  let left = run.length;
  const closes = !SPACE.test(before) && !(kind === "_" && WORD.test(after));
  const opens = !SPACE.test(after) && !(WORD.test(before) && (kind === "_" || left === 1));
  while (left && closes) {
    const place = stack.findLastIndex(({ mark }) => mark?.[0] === kind && mark.length <= left);
    if (place < 0) break;
    while (stack.length > place + 1) abandon(stack);
    const { mark, children } = stack.pop();
    stack.at(-1).children.push({ tag: mark.length === 2 ? "strong" : "em", children });
    left -= mark.length;
  }
  while (left && left < 4 && opens) {
    const mark = kind.repeat(Math.min(2, left));
    if (stack.some((open) => open.mark === mark)) break;
    stack.push({ mark, children: [] });
    left -= mark.length;
  }
  if (left) stack.at(-1).children.push(kind.repeat(left));
}

/** Turn the latest open mark into text. */
function abandon(stack) {
  const { mark, children } = stack.pop();
  stack.at(-1).children.push(mark);
  for (const child of children) stack.at(-1).children.push(child);
}

// The page

const TAGS = new Set(["p", "h3", "hr", "ul", "ol", "li", "blockquote", "pre", "code", "strong", "em", "span"]);

/** Return the DOM nodes of parsed nodes, in a fragment: a call can't have as many arguments as a text has nodes. */
export function render(nodes) {
  const found = document.createDocumentFragment();
  for (const node of nodes) found.append(typeof node === "string" ? node : element(node));
  return found;
}

function element(node) {
  if (!TAGS.has(node.tag)) throw new Error(`unexpected tag ${node.tag}`);
  const found = make(node.tag, attributes(node), render(node.children));
  if (node.url) found.append(make("span", { class: "faint" }, ` (${node.url})`));
  return found;
}

function attributes({ tag, level, start }) {
  if (tag === "h3") return { class: `level-${level}` };
  if (tag === "ol" && start !== 1) return { start };
  return {};
}
