// A parser of server-sent events.

/** Yield {event, data} for each frame of a response's body, with data as text. */
export async function* frames(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const parts = rest.split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const frame = parsed(part);
        if (frame) yield frame;
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parsed(text) {
  let event = "";
  const data = [];
  for (const line of text.split("\n")) {
    if (line.startsWith("data: ")) data.push(line.slice(6));
    else if (line.startsWith("event: ")) event = line.slice(7);
  }
  return data.length ? { event, data: data.join("\n") } : null;
}
