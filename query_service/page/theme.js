// Light and dark: the system's, until the button says otherwise.

import { $ } from "./dom.js";

const root = document.documentElement;
const system = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
const show = () => $("theme").setAttribute("aria-pressed", String(isDark()));

try {
  const chosen = localStorage.getItem("theme");
  if (chosen === "dark" || chosen === "light") root.dataset.theme = chosen;
} catch {} // no storage here
$("theme").addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try {
    localStorage.setItem("theme", root.dataset.theme);
  } catch {} // for this visit only
  show();
});
system.addEventListener("change", show);
show();
