// The conversation: sending, and what may be done to a turn afterwards.
let turns = [], lost = 0, running = null, editing = null, undone = null;

// Messages of the chat that the last turns are, in the form of the server.
function messages(before) {
  const found = [];
  for (let n = before.length - 1; n >= 0 && before[n].mode === "chat"; n -= 1) {
    if (before[n].text === null) continue; // it was stopped, or failed
    found.unshift({role: "user", content: before[n].prompt},
      {role: "assistant", content: before[n].text});
  }
  return found;
}

function request(turn, before) {
  const body = chosen(turn.mode);
  if (turn.mode === "fill") body.text = turn.prompt.split(GAP);
  else if (turn.mode === "text") body.prompt = turn.prompt;
  else body.messages = [...messages(before), {role: "user", content: turn.prompt}];
  return body;
}

async function send() {
  const prompt = at("prompt").value;
  if (running || prompt === "") return;
  if (editing === null) offerUndo(null, "");
  else cutFrom(editing, "replaced");
  leaveEditing();
  at("prompt").value = "";
  grow();
  const turn = newTurn(at("mode").value, prompt);
  await write(turn, {});
  if (turn.error !== "" && at("prompt").value === "") at("prompt").value = prompt;
  store();
  backToPrompt();
}

async function retry(turn) {
  if (running) return;
  at("mode").value = turn.mode;
  fit(at("strategy").value);
  if (!isValid(at("sheet"))) return;
  const former = turn.text === null ? null : asText(turn);
  cutFrom(turn, "written again");
  const again = newTurn(turn.mode, turn.prompt);
  const seed = at("seed").value === "" ? crypto.getRandomValues(new Uint32Array(1))[0] : null;
  if (await write(again, seed === null ? {} : {seed})) {
    if (asText(again) === former)
      again.line += " · the same as before; a temperature above 0 draws by chance";
    else if (seed !== null) again.line += " · seed " + seed;
    again.draw();
  }
  store();
  backToPrompt();
}

// Where keys are at hand; on a phone it would open the keyboard above the answer.
function backToPrompt() {
  if (!matchMedia("(pointer: coarse)").matches) at("prompt").focus();
}

// Send a turn and show its answer step by step; whether it came to its end.
async function write(turn, more) {
  const body = {...request(turn, turns), ...more}, log = at("log");
  turns.push(turn);
  const {text, bar, draw} = append(turn);
  Object.defineProperty(turn, "draw", {value: draw, configurable: true}); // not kept
  running = new AbortController();
  turn.line = "waiting";
  draw();
  bar.hidden = false;
  text.setAttribute("aria-busy", "true");
  busy(true);
  store();
  log.scrollTop = log.scrollHeight;
  try {
    const path = turn.mode === "fill" ? "/fill" : "/generate";
    for await (const state of events(path, body, running.signal)) {
      const before = turn.line === "waiting" ? masked(state) : {tokens: turn.tokens, gaps: turn.gaps};
      if (state.step) {
        if (turn.mode === "fill") turn.gaps = state.gaps;
        else turn.tokens = state.tokens;
        turn.line = figures(turn, state);
      } else {
        turn.text = state.text;
        turn.tokens = [];
        if (turn.mode === "fill") turn.gaps = state.gaps.map((gap) => [gap]);
        if (state.text === "") turn.line += " · empty";
      }
      draw(turn.text === null ? before : null);
      if (log.scrollHeight - log.scrollTop - log.clientHeight < 160) log.scrollTop = log.scrollHeight;
    }
    if (turn.text === null) throw new Error("the answer broke off");
    say((turn.mode === "fill" ? "Filled: " : "Answer: ") + asText(turn));
  } catch (error) {
    if (error.name === "AbortError") turn.line += " · stopped";
    else {
      turn.error = error instanceof TypeError ? "the server cannot be reached" : error.message;
      if (turn.line === "waiting") turn.line = "";
      fail(text.parentElement, turn.error);
    }
    if (turn.line.startsWith("waiting · ")) turn.line = "stopped";
    draw();
  } finally {
    running = null;
    bar.hidden = true;
    text.removeAttribute("aria-busy");
    busy(false);
    if (log.scrollHeight - log.scrollTop - log.clientHeight < 240) log.scrollTop = log.scrollHeight;
  }
  return turn.text !== null;
}

// The state in front of the first one.
function masked(state) {
  const none = (tokens) => tokens.map(() => null);
  return {tokens: none(state.tokens ?? []), gaps: (state.gaps ?? []).map((gap) => none([...gap]))};
}

function append(turn) {
  const shown = answerBox(turn);
  if (turn.mode !== "fill") at("log").append(promptBox(turn));
  at("log").append(shown.box);
  at("empty").hidden = true;
  at("clear").hidden = false;
  return shown;
}

function render() {
  at("log").replaceChildren(at("empty"));
  at("empty").hidden = turns.length > 0;
  at("clear").hidden = turns.length === 0 && lost === 0;
  if (lost > 0) at("log").append(make("p", "hint", lost === 1
    ? "One earlier turn was not kept over a reload: there was no room for it."
    : `${lost} earlier turns were not kept over a reload: there was no room for them.`));
  for (const turn of turns) {
    const {box, draw} = append(turn);
    draw();
    if (turn.error) fail(box, turn.error);
  }
  at("log").scrollTop = at("log").scrollHeight;
}

function busy(is) {
  at("send").disabled = is;
  at("stop").hidden = !is;
  for (const each of document.querySelectorAll(".again")) each.disabled = is;
}

function store() {
  if (keepTalk(turns, lost, at("prompt").value) || document.getElementById("unkept")) return;
  const warning = make("p", "hint",
    "This browser keeps nothing for the page: a reload loses the conversation.");
  warning.id = "unkept";
  at("form").append(warning);
}

// Take away a turn and what is behind it; it can be undone until something else is sent.
function cutFrom(turn, what) {
  const first = turns.indexOf(turn), before = {turns, lost};
  if (first < 0) return;
  const behind = turns.length - first - 1;
  turns = turns.slice(0, first);
  render();
  offerUndo(before, behind ? `1 turn ${what}, ${behind} behind it removed.` : `1 turn ${what}.`);
}

function offerUndo(before, text) {
  undone = before;
  at("undo").hidden = before === null;
  at("undo").firstElementChild.textContent = text;
}

function undo() {
  if (running) running.abort();
  ({turns, lost} = undone);
  offerUndo(null, "");
  leaveEditing();
  render();
  store();
  backToPrompt();
}

function clear() {
  if (running) running.abort();
  const before = turns.length ? {turns, lost} : null;
  turns = [];
  lost = 0;
  leaveEditing();
  render();
  offerUndo(before, before ? `${before.turns.length} turn${before.turns.length > 1 ? "s" : ""} cleared.` : "");
  store();
  backToPrompt();
}

function edit(turn) {
  if (running) return;
  editing = turn;
  at("editing").hidden = false;
  at("mode").value = turn.mode;
  at("prompt").value = turn.prompt;
  fit(at("strategy").value);
  grow();
  at("prompt").focus();
}

function leaveEditing() {
  editing = null;
  at("editing").hidden = true;
}
