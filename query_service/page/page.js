// The search page: asks /info once, and for each query /search, or /rerank with pasted passages where there is no index.

import { showAnswer } from "./answer.js";
import { call, complain } from "./api.js";
import { $, make } from "./dom.js";
import "./keys.js";
import "./theme.js";

const COARSEST = 32; // tokens a chunk, of those on offer
const CANDIDATES = 100;
const SHOWN = 10;

let underWay = null; // AbortController of the newest search
let pasted = false; // the service has no index

// ---- the service

async function load() {
  let info;
  try {
    info = await call("info");
  } catch (error) {
    if (error.status !== 401) return true; // without /info the page still searches
    complain(error, start);
    return false;
  }
  pasted = info.index_version === "none";
  const ofIndex = [`${info.passages.toLocaleString("en")} passages`, info.model_id, `generation ${info.index_version}`];
  const facts = pasted ? [info.model_id, "no index"] : ofIndex;
  if (pasted) askForPassages();
  $("facts").replaceChildren(...facts.map((fact) => make("li", "", fact)));
  $("k").max = info.max_documents;
  for (let ratio = info.chunk_size; ratio <= COARSEST; ratio *= 2) offerRatio(ratio);
  for (const input of stageInputs()) input.disabled = Boolean(input.value) && !info.first_stage.includes(input.value);
  return true;
}

function askForPassages() {
  for (const node of document.querySelectorAll(".of-index")) node.hidden = true;
  for (const node of document.querySelectorAll(".pasted")) node.hidden = false;
  document.querySelector("#search .go").textContent = "Rerank";
  $("query").placeholder = "Ask the passages a question";
  $("before-name").textContent = "As pasted";
}

function offerRatio(ratio) {
  const options = [...$("ratio").options];
  if (!options.some((option) => option.value === String(ratio))) $("ratio").add(new Option(`${ratio}`, ratio));
}

// ---- settings, in the address too

const stageInputs = () => [...document.querySelectorAll("[name=stage]")];

function settings() {
  return {
    q: $("query").value.trim(),
    k: $("k").value,
    n: $("shown").value,
    r: $("ratio").value,
    stage: stageInputs().find((input) => input.checked).value,
    instruction: $("instruction").value.trim(),
  };
}

function address(values) {
  const usual = { k: String(CANDIDATES), n: String(SHOWN) };
  return `?${new URLSearchParams(Object.entries(values).filter(([name, value]) => value && value !== usual[name]))}`;
}

function fromAddress() {
  const given = new URLSearchParams(location.search);
  $("query").value = given.get("q") ?? "";
  $("k").value = given.get("k") ?? CANDIDATES;
  $("shown").value = given.get("n") ?? SHOWN;
  $("instruction").value = given.get("instruction") ?? "";
  const ratio = given.get("r") ?? "";
  if (/^[1-9]\d{0,3}$/.test(ratio)) offerRatio(ratio);
  $("ratio").value = ratio;
  if ($("ratio").selectedIndex < 0) $("ratio").value = "";
  const [auto, ...named] = stageInputs();
  (named.find((input) => input.value === given.get("stage")) ?? auto).checked = true;
  if ($("query").value.trim() && (!pasted || passages().length)) search();
  else leave();
}

function leave() {
  underWay?.abort();
  $("answer").hidden = true;
  $("problem").hidden = true;
  $("welcome").hidden = pasted;
  document.title = "kalm-cache";
}

// ---- searching

async function search() {
  const given = settings();
  const request = { query: given.q, top_n: 0 };
  if (pasted) Object.assign(request, { documents: passages(), return_margin: true });
  else request.k = Number(given.k) || undefined;
  if (given.r) request.chunk_size = Number(given.r);
  if (given.stage && !pasted) request.first_stage = given.stage;
  if (given.instruction) request.instruction = given.instruction;
  underWay?.abort();
  const current = (underWay = new AbortController());
  $("problem").hidden = true;
  const button = document.querySelector("#search .go");
  button.setAttribute("aria-busy", "true");
  const began = performance.now();
  try {
    const answer = await (pasted ? rerank(request, current.signal) : call("search", request, current.signal));
    document.title = `${given.q} · kalm-cache`;
    showAnswer(request, answer, performance.now() - began, Math.max(1, Number(given.n) || SHOWN));
  } catch (error) {
    if (error.name === "AbortError") return;
    $("answer").hidden = true;
    $("welcome").hidden = true;
    complain(error, search);
  } finally {
    if (underWay === current) button.setAttribute("aria-busy", "false");
  }
}

const passages = () => $("passages").value.split("\n").map((line) => line.trim()).filter(Boolean);

/** An answer as /search has it: the order in which passages were pasted is the first stage's. */
async function rerank(request, signal) {
  const { results, meta } = await call("rerank", request, signal);
  const hits = results.map((hit, place) => ({
    ...hit,
    doc_id: `passage ${hit.index + 1}`,
    rank: place + 1,
    first_stage_rank: hit.index + 1,
    first_stage_score: null,
    text: request.documents[hit.index],
  }));
  return { results: hits, query_truncated: meta.query_truncated, timings_ms: meta.timings_ms, damaged: [] };
}

$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = settings();
  if (!given.q) return $("query").focus();
  if (pasted && !passages().length) return $("passages").focus();
  if (address(given) !== location.search) history.pushState(null, "", address(given));
  search();
});
addEventListener("popstate", fromAddress);
for (const id of ["k", "shown", "ratio", "stages"]) {
  $(id).addEventListener("change", () => !$("answer").hidden && $("search").requestSubmit());
}

async function start() {
  if (await load()) fromAddress();
}

start();
