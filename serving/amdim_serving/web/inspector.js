// The panel of the chosen picture: the original, a box on it, and what can be done with them.

import { makeDrawable } from "./boxes.js";
import { $, el } from "./dom.js";

export class Inspector {
  #address = null;
  #drawn = null;

  /**
   * @param {import("./thumbnails.js").Thumbnails} thumbnails
   * @param {{region: Function, compare: Function, close: Function}} on
   */
  constructor(thumbnails, on) {
    Object.assign(this, { thumbnails, on, node: $("inspector"), picture: null });
    this.node.addEventListener("keydown", (event) => {
      if (event.key === "Escape") on.close();
    });
  }

  /** The box that is drawn, or null. */
  get box() {
    return this.#drawn?.box ?? null;
  }

  /** Shows a picture, or nothing. */
  show(picture) {
    if (picture === this.picture) return;
    this.picture = picture;
    this.#drawn = null;
    if (this.#address) URL.revokeObjectURL(this.#address);
    this.#address = picture?.file ? URL.createObjectURL(picture.file) : null;
    this.node.hidden = !picture;
    this.node.replaceChildren(...(picture ? this.#parts(picture) : []));
  }

  #parts(picture) {
    const search = el("button", { type: "button", class: "main", disabled: true, id: "search-box",
      onclick: () => this.on.region(picture, this.box) }, "Search this box");
    const clear = el("button", { type: "button", disabled: true,
      onclick: () => this.#drawn.set(null) }, "Clear box");
    const compare = el("button", { type: "button", id: "compare", "aria-pressed": "false",
      onclick: () => this.on.compare(picture) }, "Compare with…");
    const close = el("button", { type: "button", "aria-label": "Close this picture",
      onclick: this.on.close }, "✕");
    const slash = picture.name.lastIndexOf("/");
    const size = picture.width ? `${picture.width} × ${picture.height} pixels` : "";
    const folder = slash > 0 ? `in ${picture.name.slice(0, slash)}` : "";
    return [
      el("header", {},
        el("div", {},
          el("h2", { id: "inspector-title" }, picture.name.slice(slash + 1)),
          el("p", { class: "quiet" }, [size, folder].filter(Boolean).join(", ")),
        ),
        close,
      ),
      el("div", { class: "canvas" }, this.#sheet(picture, search, clear)),
      el("p", { class: "quiet" }, picture.file
        ? "Draw a box on the picture to find what is inside it in the others."
        : "Only the vector is here. Drop the original folder again to search for a part of it."),
      el("div", { class: "row" }, ...(picture.file ? [search, clear] : []), compare),
    ];
  }

  #sheet(picture, search, clear) {
    const image = el("img", { alt: picture.name, draggable: false });
    const thumbnail = this.thumbnails.address(picture);
    image.addEventListener("error", () => {
      if (thumbnail && image.src !== thumbnail) image.src = thumbnail;
      else image.hidden = true; // a format that browsers do not show
    });
    const address = this.#address ?? thumbnail;
    if (address) image.src = address;
    const sheet = el("div", { class: "sheet" }, image);
    if (picture.file) {
      this.#drawn = makeDrawable(sheet, {
        change: (box) => (search.disabled = clear.disabled = !box),
        search: () => this.on.region(picture, this.box),
      });
    }
    return sheet;
  }
}
