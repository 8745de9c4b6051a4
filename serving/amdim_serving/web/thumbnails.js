// Gives every picture of the collection its thumbnail, two at a time, and keeps the addresses under
// which the page shows them.

export class Thumbnails {
  #waiting = [];
  #addresses = new Map();
  #files = new Map(); // what each worker is at, or null
  #awaited = [];

  constructor(collection, workers = 2) {
    this.collection = collection;
    for (let n = 0; n < workers; n++) this.#start();
    collection.addEventListener("added", ({ detail }) => this.#want(detail));
    collection.addEventListener("removed", ({ detail }) => this.#forget(detail.id));
    collection.addEventListener("cleared", () => {
      this.#waiting.length = 0;
      for (const id of [...this.#addresses.keys()]) this.#forget(id);
    });
  }

  /** The address of a picture's thumbnail, or null where there is none (yet). */
  address(picture) {
    if (!picture.thumbnail) return null;
    if (!this.#addresses.has(picture.id)) {
      this.#addresses.set(picture.id, URL.createObjectURL(picture.thumbnail));
    }
    return this.#addresses.get(picture.id);
  }

  /** Resolves once every picture has its thumbnail, or is known to have none. */
  finished() {
    return new Promise((resolve) => {
      this.#awaited.push(resolve);
      this.#tellWhenDone();
    });
  }

  #tellWhenDone() {
    const isBusy = this.#waiting.length || [...this.#files.values()].some(Boolean);
    if (!isBusy) for (const resolve of this.#awaited.splice(0)) resolve();
  }

  #forget(id) {
    if (this.#addresses.has(id)) URL.revokeObjectURL(this.#addresses.get(id));
    this.#addresses.delete(id);
  }

  #want(picture) {
    if (picture.file || picture.thumbnail) this.#waiting.push(picture);
    for (const worker of this.#files.keys()) if (!this.#files.get(worker)) this.#feed(worker);
  }

  #start() {
    const worker = new Worker("/web/thumbnail_worker.js", { type: "module" });
    this.#files.set(worker, null);
    worker.addEventListener("message", ({ data }) => {
      const picture = this.#files.get(worker);
      this.#files.set(worker, null);
      // A loaded collection brings its thumbnails, and knows the size of the original.
      const { thumbnail, width, height } = picture.thumbnail ? picture : data;
      this.collection.setThumbnail(picture, { thumbnail, icon: data.icon, width, height });
      this.#feed(worker);
    });
  }

  #feed(worker) {
    const picture = this.#waiting.shift();
    if (!picture) return this.#tellWhenDone();
    this.#files.set(worker, picture);
    const isSmall = Boolean(picture.thumbnail); // it came with its vector
    worker.postMessage({ id: picture.id, file: picture.thumbnail ?? picture.file, isSmall });
  }
}
