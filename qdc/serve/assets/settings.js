// The fields: what the server offers, what the strategy reads, and what a request says of them.
const NUMBERS = {
  steps: "steps", length: "max_tokens", gap: "gap_tokens", block: "block", seed: "seed",
  temperature: "temperature", threshold: "threshold", factor: "factor", cfg: "cfg",
};
const FIELDS = ["mode", "strategy", "cache", ...Object.keys(NUMBERS)];
const narrow = matchMedia("(max-width: 34rem)");
let facts = {};

function fillFields(chosen) {
  at("cache").replaceChildren(...facts.caches.map((name) => new Option(name, name)));
  for (const [id, name] of Object.entries(NUMBERS)) {
    const bounds = facts.bounds[name], field = at(id);
    const least = bounds.minimum ?? bounds.exclusiveMinimum;
    const most = bounds.maximum ?? bounds.exclusiveMaximum ?? Infinity;
    field.min = least;
    field.max = Math.min(most, Number.MAX_SAFE_INTEGER); // beyond it numbers are not exact here
    field.title = most < 1e6 ? `${least} to ${most}` : `${least} or more`;
  }
  if (!facts.fill_strategies.length) at("mode").querySelector("[value=fill]")?.remove();
  for (const id of FIELDS) at(id).value = "";
  at("length").value = Math.min(64, facts.default_length);
  at("gap").value = Math.min(4, facts.max_length);
  at("mode").value = facts.chat_template ? "chat" : "text";
  at("cache").value = "none";
  for (const id of FIELDS) {
    if (id === "strategy" || typeof chosen[id] !== "string") continue;
    const before = at(id).value;
    at(id).value = chosen[id];
    if (at(id).tagName === "SELECT" && at(id).value === "") at(id).value = before; // not offered
  }
  fit(chosen.strategy);
}

// Show what this mode and this strategy read, and say what they do.
function fit(wanted) {
  const mode = at("mode").value, filling = mode === "fill";
  const offered = filling ? facts.fill_strategies : facts.strategies;
  const options = offered.map((name) => new Option(name, name));
  for (const option of options) option.title = facts.strategy_summaries[option.value];
  at("strategy").replaceChildren(...options);
  at("strategy").value = offered.includes(wanted) ? wanted : offered[0];
  const name = at("strategy").value, read = facts.strategy_options[name];
  const defaults = facts.strategy_defaults[name];
  for (const id of ["steps", "block", "temperature", "threshold", "factor"]) {
    show(id, read.includes(id));
    if (id in defaults) at(id).placeholder = defaults[id];
  }
  const loops = facts.fill_strategies.includes(name); // apd has its own cache, and no guidance
  for (const id of ["cache", "cfg"]) show(id, loops);
  show("length", !filling);
  show("gap", filling);
  at("about").textContent = facts.strategy_summaries[name] + ".";
  at("prompt").placeholder = MODES[mode];
  const bare = mode === "chat" && !facts.chat_template;
  at("note").hidden = !bare;
  at("note").textContent = bare ? "This model has no chat template. Each message is sent as a line " +
    "of plain text, without saying whose it is, and the model goes on writing behind the last." : "";
  const length = at(filling ? "gap" : "length");
  const tokens = `${length.value || "auto"} tokens${filling ? " a gap" : ""}`;
  at("settings").setAttribute("aria-label", `Settings: ${name}, ${tokens}`);
  complain();
}

function show(id, shown) {
  at(id).disabled = !shown;
  at(id).closest("label").hidden = !shown;
}

function complain() {
  const lacks = at("mode").value === "fill" && at("prompt").value && !hasGap(at("prompt").value);
  at("prompt").setCustomValidity(lacks ? "Write ___ where something is missing." : "");
}

function settings() {
  return Object.fromEntries(FIELDS.map((id) => [id, at(id).value]));
}

// What of the settings a request says, by the names of the server.
function chosen(mode) {
  const body = {strategy: at("strategy").value};
  if (!at("cache").disabled && at("cache").value !== "none") body.cache = at("cache").value;
  for (const [id, name] of Object.entries(NUMBERS)) {
    const field = at(id);
    if (field.value !== "" && !field.disabled) body[name] = Number(field.value);
  }
  return body;
}

// On a wide screen the settings are a part of the form; on a narrow one, a sheet above it.
function dock() {
  const sheet = at("sheet");
  if (sheet.open) sheet.close();
  if (narrow.matches) sheet.removeAttribute("role");
  else {
    sheet.setAttribute("role", "group");
    sheet.setAttribute("open", "");
  }
}

// Whether the fields in a place are within their bounds; else the first that is not is shown.
function isValid(place) {
  const wrong = place.querySelector(":invalid");
  if (wrong === null) return true;
  if (at("more").contains(wrong)) at("more").open = true;
  if (at("sheet").contains(wrong) && narrow.matches && !at("sheet").open) at("sheet").showModal();
  return wrong.reportValidity();
}
