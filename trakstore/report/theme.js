"use strict";

// First part of the scripts of the report and of the live page. The button says which colours it turns
// to; without scripts it is not there, and the page has those that the system prefers.

const theme = document.getElementById("theme");
const preferred = window.matchMedia("(prefers-color-scheme: dark)");
let dark = preferred.matches;

function paint() {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  theme.textContent = dark ? "Light colours" : "Dark colours";
  theme.hidden = false;
}

theme.addEventListener("click", () => {
  dark = !dark;
  paint();
});
preferred.addEventListener("change", () => {
  dark = preferred.matches;
  paint();
});
paint();

