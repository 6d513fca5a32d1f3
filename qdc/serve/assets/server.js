// Requests to the server that sent this page, and its events.
let key = takeKey();

function ask(path, options = {}) {
  const headers = {...options.headers};
  if (key !== null) headers.Authorization = "Bearer " + key;
  return fetch(path, {...options, headers});
}

async function refusal(answer) {
  if (answer.status === 401) {
    key = null;
    keep(KEY, null);
    at("entry").hidden = false;
    at("form").hidden = at("leave").hidden = true;
    at("key").focus();
  }
  return new Error((await answer.json()).error.message);
}

async function* events(path, body, signal) {
  const answer = await ask(path, {
    method: "POST", headers: {"Content-Type": "application/json"},
    body: JSON.stringify(body), signal,
  });
  if (!answer.ok) throw await refusal(answer);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {done, value} = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ")) continue;
      const event = JSON.parse(part.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}
