// Nodes and numbers. Texts only ever become text nodes: nothing on this page parses HTML.

export const $ = (id) => document.getElementById(id);

export function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

export const milliseconds = (ms) => (ms < 10 ? ms.toFixed(1) : Math.round(ms).toLocaleString("en"));
export const probability = (p) => (p > 0 && p < 0.001 ? "<.001" : p < 1 && p > 0.999 ? ">.999" : p.toFixed(3));
export const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(2);
export const percent = (x) => `${(100 * x).toFixed(1)} %`;
