// Code examples that send a completion's request, or a chat's, which has messages. They read the key from the environment variable SLUICE_KEY.

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** Return a JSON value as Python source. A JSON string is a Python string as well. */
function python(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object") {
    const items = Object.entries(value).map(([name, item]) => `${python(name)}: ${python(item)}`);
    return `{${items.join(", ")}}`;
  }
  return JSON.stringify(value);
}

const path = (body) => (body.messages ? "/api/v1/chat/completions" : "/api/v1/completions");

const lines = (items, indent) => items.map((item) => `${indent}${item},\n`).join("");

function curl(origin, body) {
  return [
    `curl ${body.stream ? "-N" : "-sS"} ${origin}${path(body)} \\`,
    '  -H "Authorization: Bearer $SLUICE_KEY" \\',
    "  -H 'Content-Type: application/json' \\",
    `  -d ${shell(JSON.stringify(body))}`,
  ].join("\n");
}

function openai(origin, body) {
  const { additional_params: more = {}, ...fields } = body;
  const named = Object.entries({ ...fields, ...more }).map(([k, v]) => `${k}=${python(v)}`);
  const [name, piece, text] = body.messages
    ? ["chat.completions", 'choice.delta.content or ""', "message.content"]
    : ["completions", "choice.text", "text"];
  const end = body.stream
    ? `for chunk in completion:\n    for choice in chunk.choices:\n        print(${piece}, end="", flush=True)\nprint()`
    : `print(completion.choices[0].${text})`;
  return `import os

from openai import OpenAI

client = OpenAI(base_url="${origin}/v1", api_key=os.environ["SLUICE_KEY"])
completion = client.${name}.create(
${lines(named, "    ")})
${end}`;
}

function requests(origin, body) {
  const named = Object.entries(body).map(([k, v]) => `${python(k)}: ${python(v)}`);
  const end = body.stream
    ? `for line in response.iter_lines():
    if line.startswith(b"data: {"):
        frame = json.loads(line[6:])
        if frame["type"] == "error":
            raise RuntimeError(frame["error"])
        if frame["type"] ${body.messages ? 'in ("content", "finish")' : '== "content"'}:
            print(${body.messages ? 'frame.get("data", "")' : 'frame["data"]'}, end="", flush=True)
print()`
    : 'print(response.json()["data"])';
  return `${body.stream ? "import json\n" : ""}import os

import requests

body = {
${lines(named, "    ")}}
response = requests.post(
    "${origin}${path(body)}",
    headers={"Authorization": f"Bearer {os.environ['SLUICE_KEY']}"},
    json=body,
    stream=${python(body.stream)},
)
response.raise_for_status()
${end}`;
}

function javascript(origin, body) {
  const end = body.stream
    ? `let rest = "";
for await (const piece of response.body.pipeThrough(new TextDecoderStream())) {
  const lines = (rest + piece).split("\\n");
  rest = lines.pop();
  for (const line of lines) {
    if (!line.startsWith("data: {")) continue;
    const frame = JSON.parse(line.slice(6));
    if (frame.type === "error") throw new Error(frame.error);
    if (${body.messages ? "frame.data" : 'frame.type === "content"'}) process.stdout.write(frame.data);
  }
}
console.log();`
    : "console.log((await response.json()).data);";
  return `const response = await fetch("${origin}${path(body)}", {
  method: "POST",
  headers: {
    Authorization: \`Bearer \${process.env.SLUICE_KEY}\`,
    "Content-Type": "application/json",
  },
  body: JSON.stringify(${JSON.stringify(body, null, 2).replaceAll("\n", "\n  ")}),
});
if (!response.ok) throw new Error(await response.text());
${end}`;
}

export const LANGUAGES = { curl, openai, requests, javascript };
