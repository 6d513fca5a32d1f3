"use strict";
const at = (id) => document.getElementById(id);

// What outlives a reload: the key, the settings and the conversation, in the storage of this tab,
// which ends with it. Whatever is read from there may have been written by anybody, and is checked.
const KEY = "qdc key", SETTINGS = "qdc settings", TALK = "qdc conversation";
const LARGEST = 400_000; // characters of a conversation that are kept; browsers give about 5 million

function keep(name, value) {
  try {
    if (value === null) sessionStorage.removeItem(name);
    else sessionStorage.setItem(name, value);
    return true;
  } catch {
    return false; // storage is switched off, or full
  }
}

function kept(name) {
  try {
    return sessionStorage.getItem(name);
  } catch {
    return null;
  }
}

function keptObject(name) {
  try {
    const found = JSON.parse(kept(name));
    return found !== null && typeof found === "object" ? found : {};
  } catch {
    return {};
  }
}

function takeKey() {
  const given = new URLSearchParams(location.hash.slice(1)).get("key");
  if (given === null) return kept(KEY);
  keep(KEY, given);
  history.replaceState(null, "", location.pathname + location.search); // it leaves the address
  return given;
}

// The newest turns that fit, and how many did not.
function keepTalk(turns, lost, draft) {
  let room = LARGEST, first = turns.length;
  while (first > 0 && (room -= JSON.stringify(turns[first - 1]).length) >= 0) first -= 1;
  const whole = {turns: turns.slice(first), lost: lost + first, draft: draft.slice(0, LARGEST)};
  return keep(TALK, turns.length || draft || lost ? JSON.stringify(whole) : null);
}

function keptTalk() {
  const found = keptObject(TALK), given = Array.isArray(found.turns) ? found.turns : [];
  const turns = given.filter(isTurn);
  for (const turn of turns) {
    if (turn.text !== null || turn.error !== "" || turn.line.endsWith("stopped")) continue;
    turn.line = turn.line.startsWith("step") ? turn.line + " · stopped" : "stopped"; // by the reload
  }
  const before = Number.isSafeInteger(found.lost) && found.lost > 0 ? found.lost : 0;
  return {
    turns, lost: before + given.length - turns.length,
    draft: typeof found.draft === "string" ? found.draft : "",
  };
}

function isTurn(turn) {
  const isText = (value) => typeof value === "string";
  const areTokens = (value) => Array.isArray(value) && value.every((t) => t === null || isText(t));
  return turn !== null && typeof turn === "object" && Object.hasOwn(MODES, turn.mode) && isText(turn.prompt) &&
    isText(turn.line) && isText(turn.error) && (turn.text === null || isText(turn.text)) &&
    Array.isArray(turn.gaps) && turn.gaps.every(areTokens) && areTokens(turn.tokens) &&
    (turn.mode !== "fill" || turn.gaps.length === 0 ||
      turn.gaps.length === turn.prompt.split(GAP).length - 1);
}
