// The tiles: one per picture, in the collection's order or by score, with one place in the tab
// order and arrow keys inside. Only what is near the window is laid out (content-visibility).

import { $, el, place } from "./dom.js";

export class Grid {
  #tiles = new Map();
  #current = null; // the tile that the Tab key reaches

  /**
   * @param {import("./collection.js").Collection} collection
   * @param {import("./thumbnails.js").Thumbnails} thumbnails
   * @param {(picture: object, how: {compare: boolean}) => void} choose
   */
  constructor(collection, thumbnails, choose) {
    Object.assign(this, { collection, thumbnails, choose, node: $("grid") });
    collection.addEventListener("added", ({ detail }) => this.#add(detail));
    collection.addEventListener("thumbnail", ({ detail }) => this.#show(detail));
    collection.addEventListener("removed", ({ detail }) => this.#remove(detail));
    collection.addEventListener("ready", ({ detail }) => {
      this.#tiles.get(detail.id)?.classList.remove("pending");
    });
    collection.addEventListener("cleared", () => {
      this.node.replaceChildren();
      this.#tiles.clear();
      this.#current = null;
    });
    this.node.addEventListener("click", (event) => this.#act(event.target, event.shiftKey));
    this.node.addEventListener("keydown", (event) => this.#key(event));
  }

  /** The collection's own order, no scores. */
  showAll() {
    const order = Array.from(this.collection.pictures.values(), (picture) => ({ picture }));
    this.#arrange(order, false);
  }

  /**
   * Shows pictures in an order, with their scores.
   *
   * @param {{picture: object, score?: number, box?: number[]}[]} order
   */
  showRanked(order) {
    this.#arrange(order, order.some(({ box }) => box));
    scrollTo({ top: 0 });
  }

  /** Marks a picture as the chosen one; null for none. */
  mark(picture) {
    this.node.querySelector('[aria-selected="true"]')?.setAttribute("aria-selected", "false");
    const tile = picture && this.#tiles.get(picture.id);
    if (!tile) return;
    tile.setAttribute("aria-selected", "true");
    this.#reach(tile);
  }

  focus(picture) {
    this.#tiles.get(picture.id)?.focus();
  }

  #add(picture) {
    const tile = el(
      "div",
      { class: "tile pending", role: "option", id: `p${picture.id}`, tabIndex: -1 },
      el("img", { alt: "", decoding: "async" }),
      el("span", { class: "name" }, picture.name),
    );
    if (!picture.file && !picture.thumbnail) tile.classList.add("bare");
    tile.setAttribute("aria-selected", "false");
    tile.setAttribute("aria-label", picture.name);
    tile.picture = picture;
    this.#tiles.set(picture.id, tile);
    this.node.append(tile);
    if (!this.#current) this.#reach(tile);
  }

  #show(picture) {
    const tile = this.#tiles.get(picture.id);
    const address = this.thumbnails.address(picture);
    if (!tile) return;
    tile.classList.toggle("bare", !address);
    if (address) tile.firstElementChild.src = address;
    else tile.firstElementChild.hidden = true;
  }

  #remove(picture) {
    const tile = this.#tiles.get(picture.id);
    this.#tiles.delete(picture.id);
    tile?.remove();
    if (tile === this.#current) this.#reach(this.node.firstElementChild);
  }

  #arrange(order, withBoxes) {
    this.node.classList.toggle("whole", withBoxes);
    const tiles = order.map(({ picture, score, box }) => {
      const tile = this.#tiles.get(picture.id);
      tile.querySelectorAll(".score, .found").forEach((old) => old.remove());
      const isScored = score !== undefined;
      const said = isScored ? `${picture.name}, ${withBoxes ? "score" : "similarity"} ` : picture.name;
      tile.setAttribute("aria-label", isScored ? said + score.toFixed(2) : said);
      if (box) tile.append(foundBox(picture, box));
      if (isScored) tile.append(el("span", { class: "score" }, score.toFixed(2)));
      return tile;
    });
    const focused = this.node.contains(document.activeElement) ? document.activeElement : null;
    this.node.replaceChildren(...tiles);
    focused?.focus({ preventScroll: true }); // moving it took the focus away
    if (tiles.length && !tiles.includes(this.#current)) this.#reach(tiles[0]);
  }

  #reach(tile) {
    if (this.#current) this.#current.tabIndex = -1;
    this.#current = tile;
    if (tile) tile.tabIndex = 0;
  }

  #act(target, compare) {
    const tile = target.closest(".tile");
    if (!tile || tile.classList.contains("pending")) return;
    this.#reach(tile);
    this.choose(tile.picture, { compare });
  }

  #key(event) {
    const tile = event.target.closest(".tile");
    if (!tile || event.ctrlKey || event.metaKey || event.altKey) return;
    const tiles = this.node.children;
    const columns = getComputedStyle(this.node).gridTemplateColumns.split(" ").length;
    const steps = {
      ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns,
      Home: -Infinity, End: Infinity, PageDown: 4 * columns, PageUp: -4 * columns,
    };
    if (event.key === "Enter" || event.key === " ") this.#act(tile, event.shiftKey);
    else if (event.key === "c" || event.key === "C") this.#act(tile, true);
    else if (event.key in steps) {
      const at = Array.prototype.indexOf.call(tiles, tile) + steps[event.key];
      const next = tiles[Math.max(0, Math.min(tiles.length - 1, at))];
      this.#reach(next);
      next.focus();
    } else return;
    event.preventDefault();
  }
}

/** The box that matched, on a square tile that shows the whole picture. */
function foundBox({ width, height }, [x0, y0, x1, y1]) {
  const longest = Math.max(width, height) || 1;
  const [w, h] = [(width || 1) / longest, (height || 1) / longest];
  const [left, top] = [(1 - w) / 2, (1 - h) / 2];
  const node = el("span", { class: "found" });
  place(node, [left + x0 * w, top + y0 * h, left + x1 * w, top + y1 * h]);
  return node;
}
