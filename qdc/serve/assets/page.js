// The page begins here: the model that is served, what was said before, and who listens to what.
async function begin() {
  const answer = await ask("/v1/models");
  if (answer.status === 401 && key === null) return void await refusal(answer);
  if (!answer.ok) throw await refusal(answer);
  const model = (await answer.json()).data[0];
  at("entry").hidden = true;
  at("form").hidden = false;
  at("leave").hidden = key === null;
  facts = model.qdc;
  at("name").textContent = model.id;
  document.title = model.id + " - qdc";
  at("facts").textContent = (facts.compiled ? "compiled by qdc" : "original weights") +
    ", " + facts.max_length.toLocaleString("en") + " tokens";
  fillFields(keptObject(SETTINGS));
  const said = keptTalk();
  if (turns.length === 0) ({turns, lost} = said);
  if (at("prompt").value === "") at("prompt").value = said.draft;
  render();
  grow();
  complain();
}

function grow() {
  at("prompt").style.height = "auto";
  at("prompt").style.height = at("prompt").scrollHeight + "px";
}

function submit() {
  complain();
  if (!isValid(at("form"))) return;
  if (at("sheet").matches(":modal")) at("sheet").close();
  send();
}

const start = () => begin().catch((error) => fail(at("log"), error.message));

at("form").noValidate = true; // isValid opens what hides the field that is wrong
at("form").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
at("form").addEventListener("change", (event) => {
  if (event.target === at("prompt")) return;
  fit(at("strategy").value);
  keep(SETTINGS, JSON.stringify(settings()));
});
at("entry").addEventListener("submit", (event) => {
  event.preventDefault();
  key = at("key").value.trim();
  keep(KEY, key);
  at("key").value = "";
  for (const box of document.querySelectorAll("main > .error")) box.remove();
  start();
});
at("prompt").addEventListener("input", () => { grow(); complain(); });
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || at("sheet").matches(":modal")) return;
  if (running) running.abort();
  else leaveEditing();
});
at("stop").addEventListener("click", () => running && running.abort());
at("clear").addEventListener("click", clear);
at("undo").lastElementChild.addEventListener("click", undo);
at("editing").lastElementChild.addEventListener("click", () => { leaveEditing(); at("prompt").focus(); });
at("leave").addEventListener("click", () => {
  for (const name of [KEY, SETTINGS, TALK]) keep(name, null);
  forgetting = true;
  location.reload();
});
at("settings").addEventListener("click", () => at("sheet").showModal());
at("done").addEventListener("click", () => at("sheet").close());
at("sheet").addEventListener("click", (event) => {
  if (event.target === at("sheet") && at("sheet").matches(":modal")) at("sheet").close();
});
at("reset").addEventListener("click", () => {
  keep(SETTINGS, null);
  fillFields({});
});
at("more").addEventListener("toggle", () => { at("log").scrollTop = at("log").scrollHeight; });
narrow.addEventListener("change", dock);
let forgetting = false;
window.addEventListener("pagehide", () => {
  if (forgetting || at("form").hidden || !facts.bounds) return;
  keep(SETTINGS, JSON.stringify(settings()));
  store();
});
dock();
start();
