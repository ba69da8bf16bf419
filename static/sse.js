// A parser of server-sent events.

/**
 * Yield {event, data, id} for each frame of a response's body, with data as text. A frame without
 * an id has the id 0.
 *
 * @param silence after so many milliseconds without a byte, throw an Error; 0 waits forever
 */
export async function* frames(body, { silence = 0 } = {}) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await (silence ? within(silence, reader.read()) : reader.read());
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

function within(milliseconds, promise) {
  let timer;
  const late = new Promise((_, fail) => {
    timer = setTimeout(() => fail(new Error("The stream is silent.")), milliseconds);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

function parsed(text) {
  let event = "";
  let id = 0;
  const data = [];
  for (const line of text.split("\n")) {
    if (line.startsWith("data: ")) data.push(line.slice(6));
    else if (line.startsWith("event: ")) event = line.slice(7);
    else if (line.startsWith("id: ")) id = Number(line.slice(4));
  }
  return data.length ? { event, data: data.join("\n"), id } : null;
}
