// Sends pictures to be embedded: a few requests at a time, each a few pictures. One picture's
// failure is its own; a failure of the server stops the run and leaves the rest to be tried again.
// Knows no page: it reports to `progress` and `failed`.

const REQUESTS = 3; // on their way at a time: enough that the engine never waits for us
const PICTURES = 16; // in one request
const BYTES = 6 * 2 ** 20; // in one request, but for a single larger picture

const OTHER_ENCODER =
  "The server has begun to serve another encoder, whose vectors do not fit those here. " +
  "Save or clear this collection, then add the pictures again.";

/** Takes the next few pictures off a list, within what one request may hold. */
export function nextBatch(waiting, size = (picture) => picture.file.size) {
  const batch = [];
  let bytes = 0;
  while (waiting.length && batch.length < PICTURES) {
    bytes += size(waiting[0]);
    if (batch.length && bytes > BYTES) break;
    batch.push(waiting.shift());
  }
  return batch;
}

export class Embedder {
  #waiting = [];
  #running = null;
  #stop = null;

  /**
   * @param {import("./api.js").Server} server
   * @param {import("./collection.js").Collection} collection
   * @param {{progress: Function, failed: Function, ended: Function}} report
   */
  constructor(server, collection, report) {
    Object.assign(this, { server, collection, report });
  }

  /** Adds pictures of the collection to what is to be embedded. */
  add(pictures) {
    const limit = this.server.model?.limits.max_body_bytes ?? Infinity;
    for (const picture of pictures) {
      if (picture.file.size < limit - 1024) this.#waiting.push(picture);
      else this.#fail(picture, "The file is larger than this server takes.");
    }
    if (this.#running) this.total += pictures.length;
    else if (this.#waiting.length) this.#running = this.#run(pictures.length);
    return this.#running;
  }

  /** Ends the run; what has no vector yet is dropped from the collection. */
  stop() {
    this.#stop?.abort();
  }

  async #run(total) {
    this.total = total;
    this.done = total - this.#waiting.length;
    this.#stop = new AbortController();
    this.began = performance.now();
    const { signal } = this.#stop;
    let reason = null;
    const work = async () => {
      while (this.#waiting.length && !signal.aborted) {
        const batch = nextBatch(this.#waiting);
        try {
          await this.#send(batch, signal);
        } catch (error) {
          this.#waiting.unshift(...batch);
          if (!signal.aborted) {
            reason = error;
            this.#stop.abort();
          }
        }
      }
    };
    this.#tell();
    await Promise.all(Array.from({ length: REQUESTS }, work));
    const left = this.#waiting.splice(0);
    this.#running = null;
    for (const picture of left) {
      if (reason) this.#fail(picture, reason.message, true);
      else this.collection.remove(picture);
    }
    this.report.ended({ reason, left: left.length, ...this.#rate() });
  }

  async #send(batch, signal) {
    let answer;
    try {
      answer = await this.server.embed(batch.map((picture) => picture.file), { signal });
    } catch (error) {
      if (error.name === "NotReadableError" || error.name === "NotFoundError") {
        throw new Error("A file can no longer be read from the disk.");
      }
      if (signal.aborted || error.isTransient !== false) throw error;
      if (batch.length > 1) {
        for (const picture of batch) await this.#send([picture], signal); // find the one at fault
      } else {
        this.#fail(batch[0], error.message);
        this.#step();
      }
      return;
    }
    if (!this.collection.accepts(answer)) throw new Error(OTHER_ENCODER);
    for (const { index, error, ...outputs } of answer.data) {
      if (error) this.#fail(batch[index], error.message);
      else this.collection.setVector(batch[index], Object.values(outputs).find((o) => o?.data).data);
      this.#step();
    }
  }

  #fail(picture, sentence, canRetry = false) {
    this.collection.remove(picture);
    this.report.failed({ picture, sentence, canRetry });
  }

  #step() {
    this.done += 1;
    this.#tell();
  }

  #rate() {
    const seconds = (performance.now() - this.began) / 1000;
    return { done: this.done, total: this.total, seconds, perSecond: this.done / seconds };
  }

  #tell() {
    this.report.progress(this.#rate());
  }
}
