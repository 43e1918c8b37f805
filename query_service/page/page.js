// The search page: asks /info once, and /search for each query.

import { showAnswer } from "./answer.js";
import { call, complain } from "./api.js";
import { $, make } from "./dom.js";
import "./keys.js";
import "./theme.js";

const COARSEST = 32; // tokens a chunk, of those on offer
const CANDIDATES = 100;
const SHOWN = 10;

let underWay = null; // AbortController of the newest search

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
  const facts = [`${info.passages.toLocaleString("en")} passages`, info.model_id, `generation ${info.index_version}`];
  $("facts").replaceChildren(...facts.map((fact) => make("li", "", fact)));
  $("k").max = info.max_documents;
  for (let ratio = info.chunk_size; ratio <= COARSEST; ratio *= 2) offerRatio(ratio);
  for (const input of stageInputs()) input.disabled = Boolean(input.value) && !info.first_stage.includes(input.value);
  return true;
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
  if ($("query").value.trim()) search();
  else leave();
}

function leave() {
  underWay?.abort();
  $("answer").hidden = true;
  $("problem").hidden = true;
  $("welcome").hidden = false;
  document.title = "kalm-cache";
}

// ---- searching

async function search() {
  const given = settings();
  const request = { query: given.q, k: Number(given.k) || undefined, top_n: 0 };
  if (given.r) request.chunk_size = Number(given.r);
  if (given.stage) request.first_stage = given.stage;
  if (given.instruction) request.instruction = given.instruction;
  underWay?.abort();
  const current = (underWay = new AbortController());
  $("problem").hidden = true;
  const button = document.querySelector("#search .go");
  button.setAttribute("aria-busy", "true");
  const began = performance.now();
  try {
    const answer = await call("search", request, current.signal);
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

$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = settings();
  if (!given.q) return $("query").focus();
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
