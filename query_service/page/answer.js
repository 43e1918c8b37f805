// An answer on the page: where the time went, and the two columns.

import { $, make, milliseconds, probability, signed } from "./dom.js";
import { direction, link, moved } from "./links.js";
import { whyButton } from "./why.js";

const STAGES = ["queue", "first_stage", "read", "encode", "decode"]; // as the service times them
const NAMES = { first_stage: "first stage" };

let request = null;
let answer = null;
let shown = 0;
let step = 10;

/** Show an answer and its first `count` passages. `wall`: milliseconds that it took, seen from here. */
export function showAnswer(asked, answered, wall, count) {
  [request, answer, shown, step] = [asked, { ...answered, wall }, count, count];
  show(true);
}

function show(fresh) {
  const { results } = answer;
  $("welcome").hidden = true;
  $("answer").hidden = false;
  showTimes(fresh);
  showRemarks();
  const after = results.slice(0, shown);
  const before = results.filter((hit) => hit.first_stage_rank !== null && hit.first_stage_rank <= shown);
  before.sort((a, b) => a.first_stage_rank - b.first_stage_rank);
  $("results").classList.toggle("fresh", fresh);
  const known = new Map([...$("after").children].map((row) => [row.dataset.id, row]));
  $("after").replaceChildren(...after.map((hit) => (!fresh && known.get(hit.doc_id)) || afterRow(hit)));
  $("before").replaceChildren(...before.map(beforeRow));
  $("stage-name").textContent = request.first_stage ?? "";
  const first = $("after").firstElementChild;
  if (first && !$("results").querySelector("[tabindex='0']")) first.tabIndex = 0;
  $("more").hidden = shown >= results.length;
  $("status").textContent = results.length
    ? `${after.length} of ${results.length} passages. First: ${after[0].doc_id}, P yes ${probability(after[0].score)}.`
    : "Nothing found.";
  link(results);
}

function showTimes(fresh) {
  const { results, timings_ms: timings, wall } = answer;
  const known = STAGES.filter((stage) => stage !== "encode" || timings.encode).map((stage) => ({ stage, name: NAMES[stage] ?? stage, ms: timings[stage] ?? 0 }));
  const rest = Math.max(0, wall - known.reduce((sum, part) => sum + part.ms, 0));
  const parts = [...known, { stage: "other", name: "other, network", ms: rest }];
  const count = make("strong", "", `${results.length}`);
  $("summary").replaceChildren(count, " candidates reranked in ", make("strong", "", `${milliseconds(wall)} ms`));
  $("bar").setAttribute("aria-label", `Time: ${parts.map(({ name, ms }) => `${name} ${milliseconds(ms)} ms`).join(", ")}`);
  $("bar").classList.toggle("fresh", fresh);
  $("bar").replaceChildren(...parts.map(timeOnBar));
  $("legend").replaceChildren(...parts.map(timeInLegend));
}

function timeOnBar({ stage, name, ms }) {
  const node = make("i", stage);
  node.style.setProperty("--ms", ms.toFixed(3));
  node.title = `${name}: ${milliseconds(ms)} ms`;
  return node;
}

function timeInLegend({ stage, name, ms }) {
  const node = make("li", stage, `${name} `);
  node.append(make("b", "", milliseconds(ms)));
  return node;
}

function showRemarks() {
  const remarks = [];
  if (!answer.results.length) remarks.push("The first stage found no candidates.");
  if (answer.query_truncated) remarks.push("The query was too long: its end was cut.");
  if (answer.damaged.length) remarks.push(`Left out or without text, as stored data is damaged: ${answer.damaged.join(", ")}.`);
  $("remarks").textContent = remarks.join(" ");
  $("remarks").hidden = !remarks.length;
}

function row(hit, label) {
  const node = make("li", "row");
  node.dataset.id = hit.doc_id;
  node.tabIndex = -1;
  node.setAttribute("aria-label", label);
  return node;
}

function passage(hit, className) {
  if (hit.text === null) return make("p", `${className} missing`, "The index keeps no text of this passage.");
  return make("p", className, hit.text);
}

function mark(hit) {
  const by = moved(hit);
  const node = make("span", `moved ${direction(by)}`, by ? `${by > 0 ? "▲" : "▼"} ${Math.abs(by)}` : "=");
  const label = by ? `${direction(by)} by ${Math.abs(by)}, from ${hit.first_stage_rank} to ${hit.rank}` : "did not move";
  node.setAttribute("role", "img");
  node.setAttribute("aria-label", label);
  node.title = label;
  return node;
}

function beforeRow(hit) {
  const node = row(hit, `First stage ${hit.first_stage_rank}: ${hit.doc_id}, reranked to ${hit.rank}`);
  node.append(make("span", "rank", `${hit.first_stage_rank}`), passage(hit, "snippet"));
  if (hit.rank > shown) {
    const away = make("span", "moved down", `→ ${hit.rank}`);
    away.title = `reranked to ${hit.rank}`;
    node.append(away);
  }
  if (hit.first_stage_score !== null) node.title = `${hit.doc_id} · first-stage score ${hit.first_stage_score.toPrecision(4)}`;
  return node;
}

function afterRow(hit) {
  const node = row(hit, `Rank ${hit.rank}: ${hit.doc_id}`);
  const place = make("div", "place");
  place.append(make("span", "rank", `${hit.rank}`), mark(hit));
  const text = passage(hit, "text short");
  const side = make("div", "side");
  const under = make("div", "under");
  const id = make("span", "id", hit.doc_id);
  id.title = hit.doc_id;
  under.append(id);
  if (hit.text !== null && !request.documents) under.append(whyButton(hit, request, node, text));
  side.append(probabilityBar(hit), under);
  node.append(place, text, side);
  return node;
}

function probabilityBar(hit) {
  const node = make("div", "prob");
  node.setAttribute("role", "img");
  node.setAttribute("aria-label", `P yes ${probability(hit.score)}, margin ${signed(hit.margin)}`);
  const track = make("span", "track");
  const fill = make("span", "fill");
  fill.style.setProperty("--p", hit.score);
  track.append(fill);
  const from = hit.first_stage_score === null ? "" : ` · first stage ${hit.first_stage_score.toPrecision(3)}`;
  node.append(track, make("span", "", probability(hit.score)), make("span", "tip", `margin ${signed(hit.margin)}${from}`));
  return node;
}

$("more").addEventListener("click", () => {
  const reached = shown;
  shown += step;
  show(false);
  $("after").children[reached]?.focus();
});

