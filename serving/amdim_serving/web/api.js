// Talks to the server: /model, /embed and /match. Asks for a key when told 401, waits when told to,
// and turns every failure into a sentence. Knows no page.

import { decodeVectors } from "./codec.js";

const WAITS = 5; // how often one request is sent again after 429 or 503

/** A request that failed; the message is a sentence for the reader. */
export class ServerError extends Error {
  constructor(code, message, status = 0) {
    super(message);
    this.name = "ServerError";
    this.code = code;
    this.status = status;
  }

  /** Whether trying the same later makes sense, since no picture is at fault. */
  get isTransient() {
    return this.status === 0 || this.status === 401 || this.status === 429 || this.status >= 500;
  }
}

export class Server {
  #key = sessionStorage.getItem("amdim-key") ?? "";
  #asking = null;

  /** @param {(refused: boolean) => Promise<string|null>} askKey gives a key, or null for none. */
  constructor(askKey) {
    this.askKey = askKey;
    this.model = null;
  }

  /** Reads what is served; also kept as `model`. */
  async describe() {
    const answer = await this.#send("/model");
    const model = answer.models[answer.default];
    const windows = Object.values(answer.models).some((each) => each.spec?.outputs?.windows);
    this.model = { ...model, limits: answer.limits, windows };
    return this.model;
  }

  /**
   * Embeds files as they are, byte for byte.
   *
   * @param {Blob[]} files
   * @param {{signal?: AbortSignal, query?: Record<string, string>}} options
   * @returns the answer; each entry of `data` has its vectors as typed arrays, or an `error`.
   */
  async embed(files, { signal, query = {} } = {}) {
    const form = new FormData();
    for (const file of files) form.append("images", file, "picture");
    const options = new URLSearchParams({ encoding_format: "base64", ...query });
    const answer = await this.#send(`/embed?${options}`, { method: "POST", body: form, signal });
    for (const entry of answer.data) decodeVectors(entry);
    return answer;
  }

  /** Maps of a query, or a region [x0, y0, x1, y1] of it, in candidates. */
  async match(query, candidates, { region, signal } = {}) {
    const form = new FormData();
    form.append("query", query, "query");
    for (const file of candidates) form.append("candidates", file, "candidate");
    if (region) form.append("region", region.join(","));
    return this.#send("/match", { method: "POST", body: form, signal });
  }

  async #send(path, init = {}) {
    for (let attempt = 0; ; attempt++) {
      const key = this.#key;
      const response = await this.#fetch(path, init, key);
      if (response.ok) return response.json();
      const error = await readError(response);
      if (response.status === 401) {
        await this.#renewKey(key, error);
      } else if ((response.status === 429 || response.status === 503) && attempt < WAITS) {
        await pause(Number(response.headers.get("Retry-After")) || 2 ** attempt / 2, init.signal);
      } else {
        throw error;
      }
    }
  }

  async #fetch(path, init, key) {
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    try {
      return await fetch(path, { ...init, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      const sentence = "The server cannot be reached. Is it running? Then try again.";
      throw new ServerError("unreachable", sentence);
    }
  }

  /** One dialog at a time, however many requests were refused. */
  async #renewKey(refused, error) {
    if (this.#key !== refused) return; // another request has brought a new one
    this.#asking ??= this.askKey(refused !== "").finally(() => (this.#asking = null));
    const key = await this.#asking;
    if (key === null) throw error;
    this.#key = key;
    sessionStorage.setItem("amdim-key", key);
  }
}

async function readError(response) {
  try {
    const { error } = await response.json();
    return new ServerError(error.code, error.message, response.status);
  } catch {
    const sentence = `The server answered ${response.status} without saying why.`;
    return new ServerError("unknown", sentence, response.status);
  }
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
