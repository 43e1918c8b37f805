// The keyboard: one row at a time is in the tab order, letters and arrows move between rows.

import { $ } from "./dom.js";

function focusRow(node) {
  if (!node) return;
  for (const row of $("results").querySelectorAll(".row")) row.tabIndex = -1;
  node.tabIndex = 0;
  node.focus();
  node.scrollIntoView({ block: "nearest" });
}

function step(by) {
  const current = document.activeElement.closest(".row");
  const rows = [...(current?.parentNode ?? $("after")).children];
  focusRow(current ? rows[rows.indexOf(current) + by] : rows[0]);
}

function cross(to) {
  const current = document.activeElement.closest(".row");
  if (!current || current.parentNode === to) return;
  const place = [...current.parentNode.children].indexOf(current);
  const same = [...to.children].find((node) => node.dataset.id === current.dataset.id);
  focusRow(same ?? to.children[Math.min(place, to.children.length - 1)]);
}

const KEYS = {
  j: () => step(1),
  k: () => step(-1),
  ArrowDown: () => step(1),
  ArrowUp: () => step(-1),
  ArrowLeft: () => cross($("before")),
  ArrowRight: () => cross($("after")),
  w: () => document.activeElement.closest(".row")?.querySelector(".why")?.click(),
  "/": () => $("query").select(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const typing = event.target.matches("input, select, textarea");
  if (event.target === $("query") && event.key === "ArrowDown" && $("after").children.length && !$("answer").hidden) {
    event.preventDefault();
    return step(1);
  }
  if (event.key === "Escape" && typing) return event.target.blur();
  if (typing || !KEYS[event.key]) return;
  if (event.key !== "/" && $("answer").hidden) return;
  event.preventDefault();
  KEYS[event.key]();
});
