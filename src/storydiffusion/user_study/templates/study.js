// Asks the questions one by one; answers stay in this browser until they are downloaded.

const WAIT = 250; // milliseconds after a question appears during which input is ignored
const SIZES = [0.9, 0.85, 0.8, 0.75, 0.7]; // rem, of the text to judge by
const study = JSON.parse(document.getElementById("study").textContent);
const storage = "study-" + study.study;
const at = (id) => document.getElementById(id);

let person = restored(); // {participant, started, finished, answers}, or null before the start
let asked = person ? plan(study, person.participant) : [];
let shownAt = 0;

function restored() {
  try {
    const kept = JSON.parse(localStorage.getItem(storage));
    return kept && typeof kept.participant === "string" && Array.isArray(kept.answers) ? kept : null;
  } catch {
    return null;
  }
}

function keep() {
  try {
    localStorage.setItem(storage, JSON.stringify(person));
  } catch {
    at("unkept").hidden = false;
  }
}

function drawnCode() {
  const letters = "abcdefghjkmnpqrstuvwxyz23456789"; // without look-alikes
  return [...crypto.getRandomValues(new Uint8Array(8))].map((byte) => letters[byte % letters.length]).join("");
}

function start(event) {
  event.preventDefault();
  const participant = at("code").value.replace(/[^\p{L}\p{N} ._-]/gu, "").trim() || drawnCode();
  person = { participant, started: new Date().toISOString(), finished: "", answers: [] };
  asked = plan(study, participant);
  keep();
  show();
}

function show() {
  const answered = person ? person.answers.length : 0;
  const isDone = person !== null && answered === asked.length;
  at("start").hidden = person !== null;
  at("ask").hidden = person === null || isDone;
  at("done").hidden = !isDone;
  window.scrollTo(0, 0);
  if (person === null) at("code").value = drawnCode();
  else if (isDone) at("result").textContent = resultText();
  else ask(asked[answered], answered);
}

function ask({ comparison, left }, answered) {
  at("progress").max = asked.length;
  at("progress").value = answered;
  at("count").textContent = `${answered + 1} of ${asked.length}`;
  at("question").textContent = study.questions[comparison.question];
  at("text").replaceChildren(...study.texts[comparison.text].map((line) => element("li", { textContent: line })));
  const right = left === "first" ? "second" : "first";
  at("left").replaceChildren(...study.media[comparison[left]].map((source, n) => medium("A", source, n)));
  at("right").replaceChildren(...study.media[comparison[right]].map((source, n) => medium("B", source, n)));
  for (const side of ["left", "right"]) lay(at(side));
  at("back").disabled = answered === 0;
  fit();
  shownAt = performance.now();
}

function medium(name, source, n) {
  if (study.kind === "images") return element("img", { src: source, alt: `${name}, image ${n + 1}` });
  const video = element("video", { src: source, loop: true, muted: true, autoplay: true, playsInline: true });
  video.setAttribute("aria-label", `${name}, video`);
  return video;
}

// Sets a long text smaller, until it leaves the images two fifths of the window.
function fit() {
  for (const size of SIZES) {
    at("ask").style.setProperty("--size", `${size}rem`);
    if (at("left").closest(".pair").offsetHeight >= 0.4 * window.innerHeight) return;
  }
}

// Sets rows and columns, from which the style sheet fits a story into the window.
function lay(side) {
  const count = side.children.length;
  const columns = count === 1 ? 1 : count <= 4 ? 2 : count <= 9 ? 3 : 4;
  side.style.setProperty("--columns", columns);
  side.style.setProperty("--rows", Math.ceil(count / columns));
}

function element(tag, properties) {
  return Object.assign(document.createElement(tag), properties);
}

function choose(side) {
  const waited = performance.now() - shownAt;
  if (at("ask").hidden || waited < WAIT) return;
  const { comparison, left } = asked[person.answers.length];
  const seconds = Math.round(waited) / 1000;
  person.answers.push({ comparison: comparison.id, left, chosen: side, seconds });
  if (person.answers.length === asked.length) person.finished = new Date().toISOString();
  keep();
  show();
}

function back() {
  if (at("ask").hidden || person.answers.length === 0) return;
  person.answers.pop();
  keep();
  show();
}

function replay() {
  for (const video of document.querySelectorAll("video")) {
    video.currentTime = 0;
    video.play();
  }
}

function resultText() {
  return JSON.stringify({ format: 1, study: study.study, ...person }, null, 1);
}

function download() {
  const url = URL.createObjectURL(new Blob([resultText()], { type: "application/json" }));
  const code = person.participant.replace(/[^A-Za-z0-9_-]+/g, "_");
  element("a", { href: url, download: `answers-${study.study}-${code}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

function next() {
  if (!confirm("Have the answers been downloaded? They are deleted before the next person starts.")) return;
  localStorage.removeItem(storage);
  person = null;
  asked = [];
  show();
}

document.addEventListener("keydown", (event) => {
  if (at("ask").hidden || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  const action = {
    ArrowLeft: () => choose("left"),
    ArrowRight: () => choose("right"),
    a: () => choose("left"),
    b: () => choose("right"),
    Backspace: back,
  }[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (action) {
    event.preventDefault();
    action();
  }
});
window.addEventListener("resize", fit);
at("start").addEventListener("submit", start);
at("choose-left").addEventListener("click", () => choose("left"));
at("choose-right").addEventListener("click", () => choose("right"));
at("back").addEventListener("click", back);
at("replay").addEventListener("click", replay);
at("download").addEventListener("click", download);
at("next").addEventListener("click", next);
show();
