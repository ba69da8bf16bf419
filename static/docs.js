// The API page: it lists the operations of the OpenAPI document, and sends requests to try them.

import { $, BASE, call, KEY, make, Problem, remembered, showProblem } from "./common.js";
import { shareKey } from "./session.js";

const DEEPEST = 3;
const MOST_SHOWN = 100_000;

let api = null;

/** Return what a $ref stands for. */
export function resolved(value, root) {
  if (!value?.$ref) return value;
  return value.$ref.replace("#/", "").split("/").reduce((found, name) => found[name], root);
}

/** Return a schema's type in words. */
export function typeOf(schema, root) {
  const found = resolved(schema, root);
  if (!found) return "anything";
  const parts = found.anyOf ?? found.oneOf;
  if (parts) return [...new Set(parts.map((part) => typeOf(part, root)))].join(" or ");
  if (found.enum) return found.enum.map((value) => JSON.stringify(value)).join(" or ");
  if (found.const !== undefined) return JSON.stringify(found.const);
  if (found.type === "array") return `list of ${typeOf(found.items, root)}`;
  if (schema.$ref) return schema.$ref.split("/").pop();
  return found.type ?? "anything";
}

/** Return the properties of a schema, also of the one object among its alternatives. */
function propertiesOf(schema) {
  const found = resolved(schema, api);
  if (found?.properties) return found;
  const parts = (found?.anyOf ?? found?.oneOf ?? []).map((part) => resolved(part, api));
  return parts.find((part) => part.properties) ?? (found?.items ? propertiesOf(found.items) : null);
}

const json = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2));

const sample = (label, value) =>
  make("pre", { tabindex: "0", role: "group", "aria-label": label }, make("code", {}, json(value)));

function named(name, type, text, more) {
  return [
    make("dt", {}, make("code", {}, name), " ", make("span", { class: "hint" }, type)),
    make("dd", {}, text ?? "", ...(more ? [more] : [])),
  ];
}

function fields(schema, depth = 0) {
  const found = propertiesOf(schema);
  if (!found || depth > DEEPEST) return null;
  const required = new Set(found.required ?? []);
  return make(
    "dl",
    { class: "fields" },
    ...Object.entries(found.properties).flatMap(([name, property]) => {
      const inner = propertiesOf(property) && fields(property, depth + 1);
      const more = inner && make("details", {}, make("summary", {}, "Fields"), inner);
      const needed = required.has(name) && depth === 0 ? ", required" : "";
      return named(name, typeOf(property, api) + needed, property.description ?? resolved(property, api).description, more);
    }),
  );
}

function parameters({ parameters: listed = [] }) {
  if (!listed.length) return [];
  const rows = listed.flatMap((found) =>
    named(found.name, `${found.in === "path" ? "in the path" : found.in}, ${typeOf(found.schema, api)}`, found.description),
  );
  return [make("h3", {}, "Parameters"), make("dl", { class: "fields" }, ...rows)];
}

function body({ requestBody }) {
  const content = requestBody?.content["application/json"];
  if (!content) return [];
  const examples = Object.entries(content.examples ?? {});
  return [
    make("h3", {}, "Body"),
    ...[fields(content.schema)].filter(Boolean),
    ...examples.map(([name, found]) => sample(`Example of a body: ${name}`, resolved(found, api).value)),
  ];
}

function responses(operation) {
  return [
    make("h3", {}, "Responses"),
    ...Object.entries(operation.responses).map(([status, response]) =>
      make(
        "details",
        { class: "response" },
        make("summary", {}, make("code", {}, status), " ", response.description),
        ...Object.entries(response.content ?? {}).flatMap(([media, found]) => example(media, found)),
      ),
    ),
  ];
}

function example(media, { example: one, examples = {}, schema }) {
  const all = Object.values(examples).map((found) => resolved(found, api).value);
  if (one !== undefined && one !== "") all.unshift(one);
  const inner = schema && fields(schema);
  return [
    make("p", { class: "hint" }, media),
    ...all.map((found) => sample(`Example in ${media}`, found)),
    ...(inner ? [make("details", {}, make("summary", {}, "Fields"), inner)] : []),
  ];
}

// Trying an operation

/** Return a form that sends the operation, with the key of this session. */
function trial(path, method, operation) {
  const inputs = (operation.parameters ?? [])
    .filter((found) => found.in !== "header")
    .map((found) => ({ found, input: make("input", { id: `${operation.operationId}-${found.name}`, autocomplete: "off", spellcheck: "false" }) }));
  for (const { found, input } of inputs) input.value = found.example ?? "";
  const [first] = Object.values(operation.requestBody?.content["application/json"]?.examples ?? {});
  const area = first && make("textarea", { id: `${operation.operationId}-body`, rows: "6", spellcheck: "false" });
  if (area) area.value = json(resolved(first, api).value);
  const output = make("pre", { tabindex: "0", role: "group", "aria-label": "Response", hidden: true });
  const problem = make("div", { class: "problem", role: "alert", hidden: true });
  const form = make(
    "form",
    { class: "trial", novalidate: true },
    make("h3", {}, "Try it"),
    ...inputs.map(({ found, input }) => make("div", { class: "field" }, make("label", { for: input.id }, found.name), input)),
    ...(area ? [make("div", { class: "field" }, make("label", { for: area.id }, "Body"), area)] : []),
    make("button", { type: "submit" }, "Send"),
    problem,
    output,
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    showProblem(problem, null);
    const button = form.querySelector("button");
    button.disabled = true;
    try {
      if (!remembered(KEY, "")) throw new Problem("There is no key yet. Sign in on the playground or the usage page first.");
      await send(addressed(path, inputs), method, area?.value, output);
    } catch (error) {
      output.hidden = true;
      showProblem(problem, error instanceof Problem ? error : new Problem("The connection broke."));
    }
    button.disabled = false;
  });
  return form;
}

function addressed(path, inputs) {
  let address = path;
  const query = new URLSearchParams();
  for (const { found, input } of inputs) {
    if (found.in === "query" && input.value) query.set(found.name, input.value);
    // A model's name may contain slashes, which belong to the path.
    else if (found.in === "path") address = address.replace(`{${found.name}}`, input.value.split("/").map(encodeURIComponent).join("/"));
  }
  return query.size ? `${address}?${query}` : address;
}

async function send(path, method, text, output) {
  const headers = { Accept: "*/*", ...(text ? { "Content-Type": "application/json" } : {}) };
  const response = await call(path, { method: method.toUpperCase(), headers, body: text });
  output.replaceChildren();
  output.hidden = false;
  const decoder = new TextDecoder();
  let left = MOST_SHOWN;
  for (const reader = response.body.getReader(); ; ) {
    const { value, done } = await reader.read();
    const piece = (done ? decoder.decode() : decoder.decode(value, { stream: true })).slice(0, left);
    left -= piece.length;
    output.append(piece);
    if (!left) reader.cancel();
    if (done || !left) return;
  }
}

// The page

function shown(path, method, operation) {
  const found = make(
    "details",
    { class: "operation", id: operation.operationId },
    make(
      "summary",
      {},
      make("code", { class: `method ${method}` }, method.toUpperCase()),
      " ",
      make("code", {}, BASE + path),
      " ",
      make("span", { class: "faint" }, operation.summary),
    ),
  );
  found.addEventListener("toggle", () => fill(found, path, method, operation));
  return found;
}

/** Fill in an operation when it is first opened. */
function fill(found, path, method, operation) {
  if (found.children.length > 1) return;
  found.append(
    make(
      "div",
      { class: "inside" },
      ...(operation.description ? [make("p", {}, operation.description)] : []),
      ...parameters(operation),
      ...body(operation),
      ...responses(operation),
      trial(path, method, operation),
    ),
  );
}

function section({ name }) {
  const found = Object.entries(api.paths).flatMap(([path, methods]) =>
    Object.entries(methods)
      .filter(([, operation]) => operation.tags.includes(name))
      .map(([method, operation]) => ({ path, method, operation })),
  );
  found.sort((a, b) => (b.method === "post") - (a.method === "post")); // what does something comes first
  const operations = found.map(({ path, method, operation }) => shown(path, method, operation));
  const title = make("h2", { id: `tag-${name}` }, name);
  $("index").append(make("a", { href: `#${title.id}` }, name));
  return make("section", { "aria-labelledby": title.id }, title, ...operations);
}

function openTarget() {
  const found = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!found) return;
  if (found.matches("details")) found.open = true;
  found.scrollIntoView();
}

async function begin() {
  shareKey();
  try {
    api = await (await fetch(`${BASE}/openapi.json`)).json();
  } catch {
    return showProblem($("error"), new Problem("The server can’t be reached."));
  }
  $("about").textContent = api.info.description.split(" The providers of this server")[0];
  const engines = api["x-sluice-engines"];
  const names = (found) => found.flatMap((name) => [make("code", {}, name), " "]);
  $("enabled").append(...names(api["x-sluice-providers"].filter((name) => !engines.includes(name))));
  $("engines").append(...names(engines));
  $("engines-name").hidden = $("engines").hidden = !engines.length;
  $("operations").append(...api.tags.map(section));
  openTarget();
  addEventListener("hashchange", openTarget);
}

if (globalThis.document) begin();
