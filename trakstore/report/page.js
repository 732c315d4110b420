// Targets are tabs: one panel is shown, arrows move between those that the filter leaves.

const tabs = [...document.querySelectorAll("[role=tab]")];
const filter = document.getElementById("filter");
const label = document.getElementById("label");

function choose(tab, focus) {
  for (const one of tabs) {
    const chosen = one === tab;
    one.setAttribute("aria-selected", String(chosen));
    one.tabIndex = chosen ? 0 : -1;
    document.getElementById(one.getAttribute("aria-controls")).hidden = !chosen;
  }
  if (focus) {
    tab.focus();
  }
  history.replaceState(null, "", `#${tab.id}`);
}

function left() {
  return tabs.filter((tab) => !tab.hidden);
}

function move(event) {
  const shown = left();
  const at = shown.indexOf(event.target.closest("[role=tab]"));
  const steps = {
    ArrowDown: at + 1,
    ArrowRight: at + 1,
    ArrowUp: at - 1,
    ArrowLeft: at - 1,
    Home: 0,
    End: shown.length - 1,
  };
  if (at >= 0 && event.key in steps) {
    event.preventDefault();
    choose(shown[(steps[event.key] + shown.length) % shown.length], true);
  }
}

function narrow() {
  const words = filter.value.trim().toLowerCase();
  const only = label ? label.value : "";
  for (const tab of tabs) {
    const fits = tab.dataset.words.includes(words) && (!only || tab.dataset.label === only);
    tab.hidden = !fits;
  }
  const shown = left();
  document.getElementById("count").textContent = `${shown.length} of ${tabs.length}`;
  if (shown.length && !shown.some((tab) => tab.getAttribute("aria-selected") === "true")) {
    choose(shown[0], false);
  }
}

for (const tab of tabs) {
  tab.addEventListener("click", () => choose(tab, false));
  tab.addEventListener("keydown", move);
}
filter.addEventListener("input", narrow);
if (label) {
  label.addEventListener("change", narrow);
}

// What a link leads to is shown: a target's tab, or a section that is folded.

function follow() {
  const linked = document.getElementById(location.hash.slice(1));
  if (tabs.includes(linked)) {
    choose(linked, false);
  } else if (linked) {
    linked.querySelectorAll("details.provenance").forEach((one) => (one.open = true));
  }
}

window.addEventListener("hashchange", follow);
follow();
