// Two sides, each with a question and its answer. The address holds both questions, so that it can be
// sent on. Answers come as HTML that the service has escaped; scripts in it would not run.

const byId = (name) => document.getElementById(name);
const sides = [byId("side0"), byId("side1")];
const questions = [null, null];
const found = [null, null];
const running = [null, null];
const LONGEST_LINK = 8000;
const LARGEST_IMAGE = 5e6;
let about = null;
let dropped = null;

function say(text, failed = false) {
  byId("said").textContent = text;
  byId("said").classList.toggle("failed", failed);
}

function headers() {
  const token = sessionStorage.getItem("trakstore token");
  const bearer = token ? { Authorization: `Bearer ${token}` } : {};
  return { "Content-Type": "application/json", ...bearer };
}

async function failure(response) {
  const document = await response.json().catch(() => ({}));
  if (response.status === 401) {
    byId("enter").hidden = false;
    byId("token").focus();
  }
  return new Error(document.error || `the service answers with ${response.status}`);
}

// What is asked.

const kind = () => document.querySelector("input[name=kind]:checked").value;

function showFields() {
  for (const field of document.querySelectorAll("[data-kind]")) {
    const of = field.dataset.kind;
    field.hidden = of !== kind() && !(of === "new" && kind() !== "target");
  }
}

function tickedEpochs() {
  const boxes = [...byId("epochs").querySelectorAll("input")];
  const ticked = boxes.filter((one) => one.checked);
  return ticked.length && ticked.length < boxes.length ? ticked.map((one) => about.epochs[one.value]) : null;
}

function nameEpochs() {
  const epochs = tickedEpochs();
  byId("chosen").textContent = epochs ? epochs.join(", ") : "all";
}

function common() {
  const question = { k: Number(byId("k").value) || 12, method: byId("method").value };
  const epochs = tickedEpochs();
  if (epochs) {
    question.epochs = epochs;
  }
  if (byId("tokens").checked) {
    question.tokens = true;
  }
  return question;
}

function typed() {
  const question = common();
  if (kind() === "target") {
    question.target = byId("target").value.trim();
    question.split = byId("split").value;
    return question.target ? question : null;
  }
  const label = byId("label").value.trim();
  if (label) {
    question.label = Number.isNaN(Number(label)) ? label : Number(label);
  }
  if (kind() === "text") {
    question.text = byId("text").value;
    return question.text ? question : null;
  }
  question.image = dropped;
  return dropped ? question : null;
}

function fill(question) {
  const of = ["text", "image"].find((one) => one in question) || "target";
  const radio = document.querySelector(`input[name=kind][value=${of}]`);
  radio.checked = true;
  byId("target").value = question.target ?? "";
  byId("split").value = question.split ?? about.targets;
  byId("text").value = question.text ?? "";
  byId("label").value = question.label ?? "";
  byId("k").value = question.k ?? 12;
  byId("tokens").checked = Boolean(question.tokens);
  byId("method").value = question.method ?? about.method;
  if (question.image) {
    preview(question.image);
  }
  for (const box of byId("epochs").querySelectorAll("input")) {
    box.checked = !question.epochs || question.epochs.includes(about.epochs[box.value]);
  }
  nameEpochs();
  showFields();
}

// Answers.

function put(at, html) {
  const parsed = new DOMParser().parseFromString(html, "text/html");
  const close = document.createElement("button");
  close.type = "button";
  close.className = "close";
  close.textContent = "Close";
  close.addEventListener("click", () => clear(at));
  sides[at].replaceChildren(close, ...parsed.body.childNodes);
  watchBoxes();
}

function progress(at, share) {
  let bar = sides[at].querySelector("progress");
  if (share === null || share >= 1) {
    bar?.remove();
    return;
  }
  if (!bar) {
    bar = document.createElement("progress");
    bar.setAttribute("aria-label", "Train rows looked at");
    sides[at].prepend(bar);
  }
  if (share > 0) {
    bar.value = share;
  }
}

function clear(at) {
  running[at]?.abort();
  questions[at] = found[at] = null;
  sides[at].hidden = true;
  sides[at].replaceChildren();
  compare();
  remember();
}

function compare() {
  for (const card of document.querySelectorAll(".card.shared")) {
    card.classList.remove("shared");
  }
  const both = byId("both");
  both.hidden = !(found[0] && found[1]);
  if (both.hidden) {
    return;
  }
  const words = [];
  for (const [name, end] of [["Proponents", "proponents"], ["Opponents", "opponents"]]) {
    const [left, right] = found.map((one) => one[name]);
    const shared = new Set(left.filter((one) => right.includes(one)));
    words.push(`${shared.size} of ${left.length} ${end}`);
    sides.forEach((side, at) => {
      side.querySelectorAll(`.ask[data-list=${name}]`).forEach((button) => {
        const own = shared.has(found[at][name][button.dataset.at]);
        button.closest(".card").classList.toggle("shared", own);
      });
    });
  }
  both.textContent = `In both answers: ${words.join(", ")}; these are outlined.`;
}

async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) {
      return;
    }
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) {
      yield JSON.parse(part);
    }
  }
}

async function ask(at, question, { push = true, focus = false } = {}) {
  running[at]?.abort();
  const own = (running[at] = new AbortController());
  questions[at] = question;
  sides[at].hidden = false;
  sides[at].setAttribute("aria-busy", "true");
  progress(at, 0);
  say("Asked; the answer is on its way.");
  if (push) {
    remember(true);
  }
  try {
    const body = JSON.stringify(question);
    const response = await fetch("panel", { method: "POST", headers: headers(), body, signal: own.signal });
    if (!response.ok) {
      throw await failure(response);
    }
    for await (const line of lines(response)) {
      if (line.error) {
        throw new Error(line.error);
      }
      put(at, line.html);
      found[at] = line.ids;
      progress(at, line.share);
      compare();
    }
    const heading = sides[at].querySelector("h3");
    say(`Answered: ${heading.textContent.trim().replace(/\s+/g, " ")}`);
    if (focus) {
      heading.tabIndex = -1;
      heading.focus();
    }
  } catch (error) {
    if (error.name === "AbortError") {
      return;
    }
    found[at] = null;
    if (!sides[at].querySelector("h3")) {
      sides[at].hidden = true;
      questions[at] = null;
    }
    compare();
    say(error.message, true);
  }
  if (running[at] === own) {
    progress(at, null);
    sides[at].removeAttribute("aria-busy");
  }
}

// The address.

function remember(push = false) {
  byId("link").hidden = questions.every((one) => one === null);
  const text = JSON.stringify(questions);
  const fits = text.length <= LONGEST_LINK;
  byId("link").disabled = !fits;
  byId("link").title = fits ? "" : "This question is too long for a link";
  const place = fits && !byId("link").hidden ? `#${encodeURIComponent(text)}` : "#";
  history[push ? "pushState" : "replaceState"](null, "", place);
}

function recall() {
  let given = [];
  try {
    given = JSON.parse(decodeURIComponent(location.hash.slice(1)));
  } catch {
    return;
  }
  if (!Array.isArray(given)) {
    return;
  }
  [0, 1].forEach((at) => {
    const question = given[at];
    if (question && typeof question === "object") {
      ask(at, question, { push: false });
    } else if (questions[at]) {
      clear(at);
    }
  });
  if (given[0]) {
    fill(given[0]);
  }
  byId("link").hidden = !given.some(Boolean);
}

// Images.

function preview(data) {
  dropped = data;
  byId("preview").src = data;
  byId("preview").hidden = false;
}

function take(file) {
  if (!file || !file.type.startsWith("image/")) {
    say("That is no image.", true);
    return;
  }
  if (file.size > LARGEST_IMAGE) {
    say("The image has more than 5 MB.", true);
    return;
  }
  const reader = new FileReader();
  reader.addEventListener("load", () => {
    document.querySelector("input[value=image]").checked = true;
    showFields();
    preview(reader.result);
    say("Image taken: ask.");
  });
  reader.readAsDataURL(file);
}

function dropping(event) {
  event.preventDefault();
  if (!about?.takes.includes("image")) {
    return;
  }
  byId("image").closest("label").classList.toggle("over", event.type === "dragover");
  if (event.type === "drop" && event.dataTransfer.files.length) {
    take(event.dataTransfer.files[0]);
  }
}

for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, dropping);
}
byId("image").addEventListener("change", () => take(byId("image").files[0]));

// Clicks.

function submit(at) {
  const question = typed();
  if (question === null) {
    say("Name, type or drop a sample first.", true);
    return;
  }
  ask(at, question);
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  submit(0);
});
byId("beside").addEventListener("click", () => submit(questions[0] ? 1 : 0));
byId("kinds").addEventListener("change", showFields);
byId("epochs").addEventListener("change", nameEpochs);
byId("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    submit(0);
  }
});
byId("link").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(location.href);
    say("Link copied.");
  } catch {
    say("The address of this page is the link.");
  }
});
sides.forEach((side, at) => {
  side.addEventListener("click", (event) => {
    const card = event.target.closest(".card");
    const button = card?.querySelector(".ask");
    if (!button || event.target.closest("summary") || !found[at]) {
      return;
    }
    const { k, method, epochs, tokens } = questions[at];
    const target = found[at][button.dataset.list][button.dataset.at];
    const question = { k, method, target, split: about.train };
    if (epochs) {
      question.epochs = epochs;
    }
    if (tokens) {
      question.tokens = tokens;
    }
    if (at === 0) {
      fill(question);
    }
    ask(at, question, { focus: true });
  });
});
window.addEventListener("popstate", recall);

// The start.

function options(select, values, chosen) {
  select.replaceChildren(
    ...values.map(([value, text]) => {
      const one = document.createElement("option");
      one.value = value;
      one.textContent = text;
      one.selected = value === chosen;
      return one;
    }),
  );
}

function offer() {
  byId("place").textContent = about.store;
  document.title = `trakstore: ${about.store}`;
  byId("train").textContent = about.train;
  const splits = [...new Set([about.targets, about.train])];
  options(byId("split"), splits.map((one) => [one, one]), about.targets);
  options(byId("method"), about.methods.map((one) => [one, one]), about.method);
  options(byId("some"), about.some.map((one) => [String(one), String(one)]), "");
  byId("target").placeholder = `such as ${about.some[0]}`;
  byId("with-tokens").hidden = !about.tokens;
  byId("k").max = about.most;
  byId("k").value = Math.min(12, about.most);
  for (const field of document.querySelectorAll(".new")) {
    field.hidden = !about.takes.includes(field.querySelector("input").value);
  }
  byId("epochs").replaceChildren(
    ...about.epochs.map((name, at) => {
      const label = document.createElement("label");
      const box = document.createElement("input");
      box.type = "checkbox";
      box.value = at;
      box.checked = true;
      label.append(box, ` ${name}`);
      return label;
    }),
  );
}

async function start() {
  try {
    const response = await fetch("store", { headers: headers() });
    if (!response.ok) {
      throw await failure(response);
    }
    about = await response.json();
  } catch (error) {
    say(error.message, true);
    return;
  }
  byId("enter").hidden = true;
  say("");
  offer();
  recall();
}

byId("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("trakstore token", byId("token").value);
  start();
});
start();
