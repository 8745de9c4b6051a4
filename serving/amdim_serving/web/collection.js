// The pictures of this tab and their vectors, in one matrix. Knows no server and no page: who shows
// it listens for `added`, `ready`, `removed`, `thumbnail` and `cleared`.

/**
 * @typedef {object} Picture
 * @property {number} id
 * @property {string} name - the path below what was dropped
 * @property {File|null} file - the original, where it is at hand
 * @property {number} row - in the matrix, -1 until there is a vector
 * @property {Blob|null} thumbnail
 * @property {ImageBitmap|null} icon
 * @property {number} width - of the upright picture, 0 until known
 * @property {number} height
 * @property {Array|null} windows - of each scale, for region search
 */

export class Collection extends EventTarget {
  #next = 0;
  #byKey = new Map();

  constructor() {
    super();
    this.clear();
  }

  get size() {
    return this.pictures.size;
  }

  /** All with a vector, by row. */
  get ready() {
    return this.rows.map((id) => this.pictures.get(id));
  }

  /**
   * All with a vector in the order in which they are shown, which is not that of the rows: answers
   * come as they come.
   *
   * @returns {{pictures: Picture[], matrix: Float32Array}} a copy of the vectors
   */
  inOrder() {
    const pictures = [...this.pictures.values()].filter(({ row }) => row >= 0);
    const matrix = new Float32Array(pictures.length * this.dim);
    pictures.forEach((picture, at) => matrix.set(this.vector(picture), at * this.dim));
    return { pictures, matrix };
  }

  clear() {
    /** @type {Map<number, Picture>} */
    this.pictures = new Map();
    this.#byKey.clear();
    this.rows = []; // picture ids by row
    this.dim = 0;
    this.matrix = new Float32Array(0);
    this.digests = null;
    this.#tell("cleared", null);
  }

  /**
   * Adds a picture without a vector; one that is here already (same path and size) only gets its
   * file back, and is not returned.
   */
  add(file, name, known = {}) {
    const key = `${name}\n${file ? file.size : known.bytes}`;
    const before = this.pictures.get(this.#byKey.get(key));
    if (before) {
      before.file ??= file;
      return null;
    }
    const id = this.#next++;
    const picture = {
      id, name, file, row: -1, thumbnail: null, icon: null, width: 0, height: 0, windows: null,
      ...known, key,
    };
    picture.bytes = file ? file.size : known.bytes;
    this.pictures.set(id, picture);
    this.#byKey.set(key, id);
    this.#tell("added", picture);
    return picture;
  }

  /**
   * Gives a picture its vector.
   *
   * @param {Float32Array} vector - of unit length
   */
  setVector(picture, vector) {
    if (!this.pictures.has(picture.id)) return; // cleared meanwhile
    this.dim ||= vector.length;
    const row = this.rows.length;
    if ((row + 1) * this.dim > this.matrix.length) {
      const larger = new Float32Array(Math.max(64, 2 * row) * this.dim);
      larger.set(this.matrix);
      this.matrix = larger;
    }
    this.matrix.set(vector, row * this.dim);
    picture.row = row;
    this.rows.push(picture.id);
    this.#tell("ready", picture);
  }

  /** The picture's row of the matrix. */
  vector(picture) {
    return this.matrix.subarray(picture.row * this.dim, (picture.row + 1) * this.dim);
  }

  /** Removes a picture that has no vector. */
  remove(picture) {
    this.pictures.delete(picture.id);
    this.#byKey.delete(picture.key);
    this.#tell("removed", picture);
  }

  setThumbnail(picture, { thumbnail, icon, width, height }) {
    if (!this.pictures.has(picture.id)) return;
    Object.assign(picture, { thumbnail, icon, width, height });
    this.#tell("thumbnail", picture);
  }

  /**
   * Whether vectors of these digests may join; remembers the first.
   *
   * @param {{encoder_digest: string, preprocess_digest: string}} answer
   */
  accepts(answer) {
    const { model, version, encoder_digest, preprocess_digest, artifact_digest } = answer;
    this.digests ??= { model, version, encoder_digest, preprocess_digest, artifact_digest };
    return sameSpace(this.digests, answer);
  }

  #tell(type, picture) {
    this.dispatchEvent(new CustomEvent(type, { detail: picture }));
  }
}

/** Whether vectors with these digests can be compared; artifacts of one encoder may differ. */
export const sameSpace = (a, b) =>
  a.encoder_digest === b.encoder_digest && a.preprocess_digest === b.preprocess_digest;
