// "why": the parts of a passage that the query's tokens attended to.

import { call, complain } from "./api.js";
import { make, percent, signed } from "./dom.js";

/** A button that asks where the query of `request` looked in a passage, and shows it in the row's text. */
export function whyButton(hit, request, node, text) {
  const button = make("button", "why", "why");
  button.type = "button";
  button.setAttribute("aria-expanded", "false");
  button.setAttribute("aria-label", `Why ${hit.doc_id}: where the query looked in it`);
  button.addEventListener("click", () => (button.getAttribute("aria-expanded") === "true" ? close() : open()));

  function close() {
    button.setAttribute("aria-expanded", "false");
    node.querySelector(".key")?.remove();
    text.classList.add("short");
    text.replaceChildren(hit.text);
  }

  async function open() {
    if (button.getAttribute("aria-busy") === "true") return;
    const { query, instruction, chunk_size } = request;
    button.setAttribute("aria-busy", "true");
    node.querySelector(".key")?.remove();
    try {
      const seen = await call("explain", { query, doc_id: hit.doc_id, instruction, chunk_size });
      text.replaceChildren(...highlighted(seen));
      text.classList.remove("short");
      node.append(legend(seen));
      button.setAttribute("aria-expanded", "true");
    } catch (error) {
      if (error.status === 401) complain(error, open);
      else node.append(make("p", "key failed", error.message));
    } finally {
      button.setAttribute("aria-busy", "false");
    }
  }
  return button;
}

/** The passage as text nodes and marks. Offsets count code points, which strings here do not. */
function highlighted(seen) {
  const points = Array.from(seen.text);
  const strongest = Math.max(...seen.chunks.map((chunk) => chunk.weight / chunk.tokens), Number.MIN_VALUE);
  const nodes = [];
  let at = 0;
  for (const chunk of seen.chunks) {
    nodes.push(points.slice(at, chunk.start).join(""));
    const piece = make("mark", "seen", points.slice(chunk.start, chunk.end).join(""));
    piece.style.setProperty("--w", (chunk.weight / chunk.tokens / strongest).toFixed(3));
    piece.title = `${percent(chunk.weight)} of the attention`;
    nodes.push(piece);
    at = chunk.end;
  }
  const rest = points.slice(at).join("");
  nodes.push(seen.truncated ? make("span", "cut", rest) : rest);
  return nodes.filter((node) => node !== "");
}

function legend(seen) {
  const node = make("div", "key");
  const scale = make("span", "", "less");
  scale.append(make("span", "scale"), "more of the query’s attention");
  const best = seen.chunks.reduce((most, chunk) => Math.max(most, chunk.weight), 0);
  const unit = seen.chunk_size === 1 ? "token" : `${seen.chunk_size} tokens`;
  node.append(scale, make("span", "", `strongest ${unit}: ${percent(best)}`), make("span", "", `margin ${signed(seen.margin)}`));
  if (seen.truncated) node.append(make("span", "", "faded: cut when it was indexed"));
  return node;
}
