// Turns of the conversation, and how they are drawn. All text is put in as text, never as HTML.
const MODES = {
  text: "A text to continue", chat: "A message", fill: "A text with ___ where something is missing",
};
const GAP = /_{3,}/;
const hasGap = (text) => GAP.test(text);

function newTurn(mode, prompt) {
  return {mode, prompt, text: null, tokens: [], gaps: [], line: "", error: ""};
}

function make(tag, name, text) {
  const found = document.createElement(tag);
  if (name) found.className = name;
  if (text !== undefined) found.textContent = text;
  return found;
}

function button(text, label, act, again) {
  const found = make("button", again ? "tool again" : "tool", text);
  found.type = "button";
  found.setAttribute("aria-label", label);
  found.addEventListener("click", () => act(found));
  return found;
}

function fail(place, message) {
  const box = make("div", "error", message);
  box.setAttribute("role", "alert");
  place.insertBefore(box, place.querySelector(":scope > .tools"));
  box.scrollIntoView({block: "nearest"});
}

// The article of an answer; `draw` shows the turn as it is now.
function answerBox(turn) {
  const box = make("article", "answer" + letters(turn)), text = make("div", "text"), bar = make("progress");
  const line = make("p", "figures"), tools = make("div", "tools");
  box.setAttribute("aria-label", turn.mode === "fill" ? "Text with its gaps filled" : "Answer");
  bar.setAttribute("aria-label", "Places decided");
  bar.hidden = true;
  tools.append(button("Copy", "Copy the answer", (pressed) => copy(asText(turn), text, pressed)));
  tools.append(button("Retry", "Write this answer again", () => retry(turn), true));
  if (turn.mode === "fill") tools.append(button("Edit", "Edit this text", () => edit(turn), true));
  box.append(text, bar, line, tools);
  const draw = (before) => {
    if (turn.mode === "fill") drawGaps(text, turn, before);
    else if (turn.text !== null) text.textContent = turn.text;
    else drawTokens(text, turn.tokens, before && before.tokens);
    text.hidden = turn.mode !== "fill" && turn.error !== "" && turn.tokens.length === 0;
    line.textContent = turn.line;
    line.hidden = turn.line === "";
    tools.firstElementChild.hidden = asText(turn) === "";
    bar.max = Math.max(1, places(turn).length);
    bar.value = decided(turn);
  };
  return {box, text, bar, draw};
}

function promptBox(turn) {
  const box = make("article", "turn" + letters(turn)), tools = make("div", "tools");
  const mine = make("div", "mine", turn.prompt);
  box.setAttribute("aria-label", "You");
  tools.append(button("Copy", "Copy your text", (pressed) => copy(turn.prompt, mine, pressed)));
  tools.append(button("Edit", "Edit your text", () => edit(turn), true));
  box.append(mine, tools);
  return box;
}

// Columns are kept where a text is continued, which may be code, and not in talk.
const letters = (turn) => turn.mode === "chat" ? "" : " mono";

function drawTokens(place, tokens, before) {
  place.replaceChildren(...tokens.map((token, number) => {
    if (token === null) return make("span", "veil");
    return make("span", before && before[number] === null ? "fresh" : "", token);
  }));
}

function drawGaps(place, turn, before) {
  const parts = [];
  turn.prompt.split(GAP).forEach((piece, number) => {
    if (number > 0) {
      const gap = make("mark", "gap"), tokens = turn.gaps[number - 1];
      if (tokens) drawTokens(gap, tokens, before && before.gaps[number - 1]);
      else gap.append(make("span", "veil"));
      parts.push(gap);
    }
    parts.push(document.createTextNode(piece));
  });
  place.replaceChildren(...parts);
}

const places = (turn) => turn.mode === "fill" ? turn.gaps.flat() : turn.tokens;
const decided = (turn) => places(turn).filter((token) => token !== null).length;

// What is copied: the answer, or the whole text with its gaps filled; open places are gaps again.
function asText(turn) {
  const open = (tokens) => tokens.map((t) => t === null ? "\0" : t).join("").replace(/\0+/g, "___");
  if (turn.mode !== "fill") return turn.text ?? open(turn.tokens);
  return turn.prompt.split(GAP).map((piece, n) =>
    (n ? (turn.gaps[n - 1] ? open(turn.gaps[n - 1]) : "___") : "") + piece).join("");
}

function figures(turn, state) {
  const done = decided(turn), rate = state.seconds > 0 ? (done / state.seconds).toFixed(1) : "0";
  const of = state.steps === null ? "" : " of " + state.steps;
  return `step ${state.step}${of} · ${done} tokens · ${rate} tokens/s · ` +
    `${(done / state.step).toFixed(2)} tokens/step · ${state.seconds.toFixed(2)} s`;
}

// Beyond this machine a page without TLS has no clipboard of its own; there the selection is copied.
async function copy(text, place, pressed) {
  try {
    await navigator.clipboard.writeText(text);
    say("Copied");
  } catch {
    const area = make("textarea", "unseen", text);
    place.after(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    pressed.focus();
    if (!done) return say("This browser does not let the page copy; select the text by hand");
  }
  pressed.textContent = "Copied";
  setTimeout(() => { pressed.textContent = "Copy"; }, 1500);
}

// Said to readers of screens.
function say(text) {
  at("status").textContent = text;
}
