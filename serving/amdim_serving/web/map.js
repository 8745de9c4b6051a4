// The collection on a plane: a canvas one can drag and zoom, and walk through by keys. Where the
// points lie comes from the worker; what is drawn comes from the collection.

import { $, announce, count } from "./dom.js";
import { likeness, ranked } from "./similarity.js";

const RINGED = 8; // neighbours that are tied to the chosen picture
const ZOOM = 1.25;

export class PictureMap {
  #worker = null;
  #plane = new Float32Array(0);
  #pictures = []; // point by point, as their vectors are in the matrix
  #matrix = new Float32Array(0);
  #view = { x: 0, y: 0, scale: 1 };
  #moved = false; // the reader has moved the view: layouts no longer fit it
  #frame = 0;
  #chosen = null;
  #walk = -1;

  /** @param {(picture: object) => void} choose */
  constructor(collection, choose) {
    Object.assign(this, { collection, choose, canvas: $("plane") });
    this.context = this.canvas.getContext("2d");
    new ResizeObserver(() => this.#resize()).observe(this.canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    collection.addEventListener("thumbnail", () => this.draw());
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
    this.#watchPointer();
    $("zoom-in").addEventListener("click", () => this.#zoom(ZOOM));
    $("zoom-out").addEventListener("click", () => this.#zoom(1 / ZOOM));
    $("zoom-fit").addEventListener("click", () => this.#fit());
    $("map-layout").addEventListener("click", ({ currentTarget }) => {
      const isPressed = currentTarget.getAttribute("aria-pressed") !== "true";
      currentTarget.setAttribute("aria-pressed", String(isPressed));
      this.lay();
    });
  }

  get isShown() {
    return !$("map").hidden;
  }

  /** Lays the whole collection out anew. */
  lay() {
    this.#worker?.terminate();
    const { pictures, matrix } = this.collection.inOrder();
    this.#pictures = pictures;
    this.#matrix = matrix;
    this.#walk = -1;
    this.#moved = false;
    const { length: n } = this.#pictures;
    if (n === 0) return this.draw();
    const { dim } = this.collection;
    const byNeighbours = $("map-layout").getAttribute("aria-pressed") === "true";
    $("map-note").textContent = `Placing ${count(n, "picture")}…`;
    this.#worker = new Worker("/web/layout_worker.js", { type: "module" });
    this.#worker.addEventListener("message", ({ data }) => {
      const wide = this.#breadth();
      this.#plane = data.plane.map((value, at) => (at % 2 ? value : value * wide));
      if (!this.#moved) this.#fit();
      this.draw();
      if (!data.isDone) return;
      this.#worker.terminate();
      const how = data.isSettled ? "by neighbourhood" : "along the two main axes of their vectors";
      $("map-note").textContent = `${count(n, "picture")}, placed ${how}`;
    });
    this.#worker.postMessage({ matrix, n, dim, byNeighbours });
  }

  mark(picture) {
    this.#chosen = picture;
    this.draw();
  }

  draw() {
    if (this.isShown) this.#frame ||= requestAnimationFrame(() => this.#paint());
  }

  #screen(at) {
    const { x, y, scale } = this.#view;
    return [(this.#plane[2 * at] - x) * scale, (this.#plane[2 * at + 1] - y) * scale];
  }

  #paint() {
    this.#frame = 0;
    const { context, canvas } = this;
    const ratio = devicePixelRatio;
    context.setTransform(ratio, 0, 0, ratio, canvas.width / 2, canvas.height / 2);
    context.clearRect(-canvas.width, -canvas.height, 2 * canvas.width, 2 * canvas.height);
    const colours = getComputedStyle(canvas);
    const [accent, soft] = ["--accent", "--soft"].map((name) => colours.getPropertyValue(name));
    const chosen = this.#pictures.indexOf(this.#chosen);
    if (chosen >= 0) this.#tie(chosen, accent);
    const size = this.#size();
    const [right, down] = [canvas.width / ratio / 2 + size, canvas.height / ratio / 2 + size];
    context.fillStyle = soft;
    this.#pictures.forEach(({ icon }, at) => {
      const [x, y] = this.#screen(at);
      if (Math.abs(x) > right || Math.abs(y) > down) return;
      if (!icon) return context.fillRect(x - 3, y - 3, 6, 6);
      const scale = size / Math.max(icon.width, icon.height);
      const [w, h] = [icon.width * scale, icon.height * scale];
      context.drawImage(icon, x - w / 2, y - h / 2, w, h);
    });
    for (const at of new Set([chosen, this.#walk])) if (at >= 0) this.#ring(at, size, accent);
  }

  #size() {
    const { width, height } = this.canvas.getBoundingClientRect();
    const room = Math.sqrt((width * height) / (this.#pictures.length || 1));
    const zoomed = Math.sqrt(this.#view.scale / this.#fitted().scale);
    return Math.max(9, Math.min(112, Math.min(44, room * 0.55) * zoomed));
  }

  #ring(at, size, accent) {
    const [x, y] = this.#screen(at);
    this.context.lineWidth = 4;
    this.context.strokeStyle = accent;
    this.context.strokeRect(x - size / 2 - 4, y - size / 2 - 4, size + 8, size + 8);
  }

  #tie(chosen, accent) {
    const { collection, context } = this;
    const scores = likeness(this.#matrix, collection.vector(this.#chosen), this.#pictures.length);
    context.strokeStyle = accent;
    context.lineWidth = 1.5;
    context.beginPath();
    for (const at of ranked(scores).slice(0, RINGED + 1)) {
      context.moveTo(...this.#screen(chosen));
      context.lineTo(...this.#screen(at));
    }
    context.stroke();
  }

  #resize() {
    const { width, height } = this.canvas.getBoundingClientRect();
    this.canvas.width = width * devicePixelRatio;
    this.canvas.height = height * devicePixelRatio;
    if (!this.#moved) this.#fit();
    this.draw();
  }

  /** How much broader than high the canvas is; layouts are square. */
  #breadth() {
    const { width, height } = this.canvas.getBoundingClientRect();
    return Math.max(0.5, Math.min(2.2, (width - 70) / (height - 70)));
  }

  /** The view that holds all points. */
  #fitted() {
    const low = [Infinity, Infinity];
    const high = [-Infinity, -Infinity];
    this.#plane.forEach((value, at) => {
      low[at % 2] = Math.min(low[at % 2], value);
      high[at % 2] = Math.max(high[at % 2], value);
    });
    if (this.#plane.length === 0) return { x: 0, y: 0, scale: 1 };
    const { width, height } = this.canvas.getBoundingClientRect();
    const scales = [width, height].map((side, i) => (side - 70) / (high[i] - low[i] || 1));
    const scale = Math.max(1e-3, Math.min(...scales));
    return { x: (low[0] + high[0]) / 2, y: (low[1] + high[1]) / 2, scale };
  }

  #fit() {
    this.#view = this.#fitted();
    this.#moved = false;
    this.draw();
  }

  /** Zooms about a point of the screen, counted from the middle. */
  #zoom(factor, x = 0, y = 0) {
    const view = this.#view;
    const least = this.#fitted().scale;
    const scale = Math.max(least * 0.5, Math.min(least * 60, view.scale * factor));
    view.x += x / view.scale - x / scale;
    view.y += y / view.scale - y / scale;
    view.scale = scale;
    this.#moved = true;
    this.draw();
  }

  #pan(dx, dy) {
    this.#view.x -= dx / this.#view.scale;
    this.#view.y -= dy / this.#view.scale;
    this.#moved = true;
    this.draw();
  }

  #watchPointer() {
    const { canvas } = this;
    const held = new Map();
    let travelled = 0;
    const fromMiddle = ({ clientX, clientY }) => {
      const { left, top, width, height } = canvas.getBoundingClientRect();
      return [clientX - left - width / 2, clientY - top - height / 2];
    };
    const apart = () => {
      const [[ax, ay], [bx, by]] = held.values();
      return Math.hypot(ax - bx, ay - by);
    };
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.#zoom(Math.exp(-event.deltaY / 400), ...fromMiddle(event));
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      held.set(event.pointerId, fromMiddle(event));
      travelled = held.size > 1 ? Infinity : 0;
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!held.has(event.pointerId)) return;
      const [x, y] = fromMiddle(event);
      const [oldX, oldY] = held.get(event.pointerId);
      const before = held.size === 2 ? apart() : 0;
      held.set(event.pointerId, [x, y]);
      if (before) this.#zoom(apart() / before, x, y);
      else this.#pan(x - oldX, y - oldY);
      travelled += Math.hypot(x - oldX, y - oldY);
    });
    canvas.addEventListener("pointerup", (event) => {
      const at = travelled < 5 ? this.#at(...fromMiddle(event)) : -1;
      held.delete(event.pointerId);
      if (at >= 0) this.choose(this.#pictures[at]);
    });
    canvas.addEventListener("pointercancel", (event) => held.delete(event.pointerId));
  }

  /** The picture drawn topmost at a point, or -1. */
  #at(x, y) {
    const reach = this.#size() / 2;
    for (let at = this.#pictures.length - 1; at >= 0; at--) {
      const [px, py] = this.#screen(at);
      if (Math.abs(px - x) <= reach && Math.abs(py - y) <= reach) return at;
    }
    return -1;
  }

  #key(event) {
    const moves = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in moves) this.#pan(...moves[event.key]);
    else if (event.key === "+" || event.key === "=") this.#zoom(ZOOM);
    else if (event.key === "-") this.#zoom(1 / ZOOM);
    else if (event.key === "0") this.#fit();
    else if (event.key === "n" || event.key === "N") this.#step(1);
    else if (event.key === "p" || event.key === "P") this.#step(-1);
    else if (event.key === "Enter" && this.#walk >= 0) this.choose(this.#pictures[this.#walk]);
    else return;
    event.preventDefault();
  }

  #step(by) {
    const n = this.#pictures.length;
    if (n === 0) return;
    this.#walk = (this.#walk + by + n) % n;
    const [x, y] = this.#screen(this.#walk);
    const { width, height } = this.canvas.getBoundingClientRect();
    if (Math.abs(x) > width / 2 - 30 || Math.abs(y) > height / 2 - 30) this.#pan(-x, -y);
    announce(this.#pictures[this.#walk].name);
    this.draw();
  }
}
