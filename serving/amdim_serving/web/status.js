// What the page says about its work: the progress bar, sentences, and the pictures that failed.

import { $, announce, count, el } from "./dom.js";

const SPOKEN_EVERY_MS = 5000;

export class Status {
  #failed = [];
  #spokenAt = 0;

  /** @param {{stop: () => void, retry: (pictures: object[]) => void}} on */
  constructor(on) {
    $("stop").addEventListener("click", () => this.stop?.());
    $("retry").addEventListener("click", () => {
      const pictures = this.#failed.map(({ picture }) => picture).filter(({ file }) => file);
      this.clearFailures();
      on.retry(pictures);
    });
    $("dismiss").addEventListener("click", () => this.clearFailures());
  }

  /**
   * Shows how far something is.
   *
   * @param {{done: number, total: number, text: string}} state
   * @param {() => void} stop - what the button does
   */
  progress({ done, total, text }, stop) {
    this.stop = stop;
    $("progress").hidden = false;
    $("progress-bar").max = total;
    $("progress-bar").value = done;
    $("progress-text").textContent = text;
    if (performance.now() - this.#spokenAt > SPOKEN_EVERY_MS) {
      this.#spokenAt = performance.now();
      announce(text);
    }
  }

  /** Hides the bar; the sentence is spoken. */
  endProgress(sentence) {
    $("progress").hidden = true;
    this.#spokenAt = 0;
    if (sentence) announce(sentence);
  }

  /** Shows a sentence until it is dismissed; `kind` is "error" or "note". */
  say(sentence, kind = "error") {
    for (const old of $("notices").children) if (old.firstChild.textContent === sentence) return;
    const notice = el("div", { class: "notice", "data-kind": kind, role: kind === "error" ? "alert" : "status" },
      el("p", {}, sentence),
      el("button", { type: "button", onclick: () => notice.remove() }, "Dismiss"));
    $("notices").append(notice);
    if (kind === "note") setTimeout(() => notice.remove(), 12000);
  }

  /** Lists a picture that could not be embedded, and why. */
  failed({ picture, sentence, canRetry }) {
    this.#failed.push({ picture, canRetry });
    $("failures-list").append(el("li", {}, el("b", {}, picture.name), ` ${sentence}`));
    this.#showFailures();
  }

  /** Takes back everything that was said. */
  clear() {
    $("notices").replaceChildren();
    this.clearFailures();
  }

  clearFailures() {
    this.#failed = [];
    $("failures-list").replaceChildren();
    this.#showFailures();
  }

  #showFailures() {
    const { length } = this.#failed;
    $("failures").hidden = length === 0;
    $("failures-title").textContent = `${count(length, "picture")} could not be embedded`;
    $("retry").hidden = !this.#failed.some(({ canRetry }) => canRetry);
  }
}
