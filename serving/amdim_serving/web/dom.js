// The few lines that every part needs to make and find elements. Knows no part.

/** The element with this id. */
export const $ = (id) => document.getElementById(id);

/**
 * A new element. `on…` are listeners, `class`, `data-…` and `aria-…` attributes, the rest
 * properties; children that are no nodes become text.
 */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "class" || name === "role") node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** "1 picture", "12 pictures". */
export const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

let spoken;

/** Has a screen reader say a sentence, the latest only. */
export function announce(sentence) {
  clearTimeout(spoken);
  spoken = setTimeout(() => ($("announce").textContent = sentence), 80);
}

/** Puts a box of 0..1 on an element that covers the picture. */
export function place(node, [x0, y0, x1, y1]) {
  node.style.left = `${x0 * 100}%`;
  node.style.top = `${y0 * 100}%`;
  node.style.width = `${(x1 - x0) * 100}%`;
  node.style.height = `${(y1 - y0) * 100}%`;
}
