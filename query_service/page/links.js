// Lines between the two columns, and the passage that stands out in both.

import { $ } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const HEAD = 24; // where a row's line begins or ends, below its top

let hits = [];
let chosen = null;

/** How far a passage moved by reranking: > 0 is up. */
export const moved = (hit) => (hit.first_stage_rank === null ? 0 : hit.first_stage_rank - hit.rank);
export const direction = (by) => (by > 0 ? "up" : by < 0 ? "down" : "same");

export function link(results) {
  hits = results;
  draw();
}

function draw() {
  const frame = $("results").getBoundingClientRect();
  const places = (list) => new Map([...list.children].map((row) => [row.dataset.id, row.getBoundingClientRect()]));
  const before = places($("before"));
  const left = $("before").getBoundingClientRect().right;
  const lines = [];
  for (const [id, to] of places($("after"))) {
    const hit = hits.find((candidate) => candidate.doc_id === id);
    if (!hit || hit.first_stage_rank === null) continue;
    const from = before.get(id); // none: it came from below what is shown
    const start = [left - frame.left + 2, from ? from.top - frame.top + HEAD : frame.height + 6];
    const end = [to.left - frame.left - 2, to.top - frame.top + HEAD];
    lines.push(line(id, `${direction(moved(hit))}${from ? "" : " far"}`, start, end));
  }
  $("links").replaceChildren(...lines);
  light(chosen);
}

function line(id, className, [x1, y1], [x2, y2]) {
  const path = document.createElementNS(SVG, "path");
  const middle = (x1 + x2) / 2;
  const arrow = `M${x2 - 6} ${y2 - 4}L${x2} ${y2}L${x2 - 6} ${y2 + 4}`;
  path.setAttribute("d", `M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}${arrow}`);
  path.setAttribute("class", className);
  path.dataset.id = id;
  return path;
}

function light(id) {
  chosen = id;
  for (const node of $("results").querySelectorAll("[data-id]")) node.classList.toggle("on", node.dataset.id === id);
  $("links").classList.toggle("chosen", Boolean($("links").querySelector(".on")));
}

const idAt = (target) => target.closest?.(".row")?.dataset.id ?? null;
$("results").addEventListener("mouseover", (event) => light(idAt(event.target)));
$("results").addEventListener("mouseleave", () => light(idAt(document.activeElement)));
$("results").addEventListener("focusin", (event) => light(idAt(event.target)));
$("results").addEventListener("focusout", () => light(null));
new ResizeObserver(() => requestAnimationFrame(draw)).observe($("results"));
