// Lets a reader draw a box on a picture, by pointer or by keys. Knows no search.

import { announce, el, place } from "./dom.js";

const LEAST = 0.03; // of the picture's side; less is a click
const STEP = 0.02;

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

/**
 * Makes an element drawable.
 *
 * @param {HTMLElement} sheet - covers the picture exactly
 * @param {{change: (box: number[]|null) => void, search: () => void}} on
 * @returns {{box: number[]|null, set: (box: number[]|null) => void}}
 */
export function makeDrawable(sheet, on) {
  const frame = el("span", { class: "box", hidden: true });
  const drawn = { box: null, set };
  let from = null;
  sheet.append(frame);
  sheet.classList.add("drawable");
  sheet.tabIndex = 0;
  sheet.setAttribute("role", "group");
  sheet.setAttribute(
    "aria-label",
    "The picture. Enter draws a box, arrow keys move it, Shift and arrow keys change its size, " +
      "Enter again searches for it, Escape removes it.",
  );

  function set(box) {
    drawn.box = box;
    frame.hidden = !box;
    if (box) place(frame, box);
    on.change(box);
  }

  const at = (event) => {
    const { left, top, width, height } = sheet.getBoundingClientRect();
    return [
      clamp((event.clientX - left) / width, 0, 1),
      clamp((event.clientY - top) / height, 0, 1),
    ];
  };

  sheet.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    sheet.setPointerCapture(event.pointerId);
    sheet.focus({ focusVisible: false });
    from = at(event);
  });
  sheet.addEventListener("pointermove", (event) => {
    if (from) set(between(from, at(event)));
  });
  sheet.addEventListener("pointerup", (event) => {
    if (!from) return;
    const box = between(from, at(event));
    from = null;
    set(box[2] - box[0] < LEAST || box[3] - box[1] < LEAST ? null : box);
  });
  sheet.addEventListener("pointercancel", () => (from = null));

  sheet.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
    if (event.key === "Enter") {
      if (drawn.box) on.search();
      else set([0.3, 0.3, 0.7, 0.7]);
    } else if (event.key === "Escape" && drawn.box) set(null);
    else if (event.key in moves && drawn.box) {
      const change = event.shiftKey ? resized : moved;
      set(change(drawn.box, moves[event.key]));
    } else return;
    event.preventDefault();
    event.stopPropagation();
    announce(drawn.box ? spoken(drawn.box) : "No box.");
  });
  return drawn;
}

const between = ([ax, ay], [bx, by]) => [
  Math.min(ax, bx), Math.min(ay, by), Math.max(ax, bx), Math.max(ay, by),
];

function moved([x0, y0, x1, y1], [dx, dy]) {
  const left = clamp(x0 + dx, 0, 1 - (x1 - x0));
  const top = clamp(y0 + dy, 0, 1 - (y1 - y0));
  return [left, top, left + (x1 - x0), top + (y1 - y0)];
}

function resized([x0, y0, x1, y1], [dx, dy]) {
  return [x0, y0, clamp(x1 + dx, x0 + LEAST, 1), clamp(y1 + dy, y0 + LEAST, 1)];
}

function spoken([x0, y0, x1, y1]) {
  const [left, top, right, bottom] = [x0, y0, x1, y1].map((value) => Math.round(value * 100));
  return `Box from ${left} to ${right} % across and ${top} to ${bottom} % down.`;
}

/**
 * A square, in pixels, around a box, moved into the picture where it sticks out: the encoder sees
 * squares, and a box cut to one would lose its ends.
 *
 * @param {number} context - the square's side over the box's longer one
 * @returns {number[]} box in 0..1
 */
export function squareAround([x0, y0, x1, y1], width, height, context = 1) {
  const side = Math.max((x1 - x0) * width, (y1 - y0) * height) * context;
  const w = Math.min(side, width);
  const h = Math.min(side, height);
  const left = clamp(((x0 + x1) * width - w) / 2, 0, width - w);
  const top = clamp(((y0 + y1) * height - h) / 2, 0, height - h);
  return [left / width, top / height, (left + w) / width, (top + h) / height];
}
