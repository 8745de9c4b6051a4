// Two pictures side by side: how alike they are, and where each holds what the other is about.

import { $, el, place } from "./dom.js";
import { heatCanvas, legend } from "./heat.js";
import { cosines } from "./similarity.js";

/**
 * Opens the comparison.
 *
 * @param {import("./api.js").Server} server
 * @param {import("./collection.js").Collection} collection
 * @param {object} a - a picture
 * @param {object} b - another
 * @param {number[]|null} region - of `a`; sought in `b` instead of all of `a`
 */
export async function openComparison(server, collection, a, b, region) {
  const dialog = $("comparison");
  const [cosine] = cosines(collection.vector(b), collection.vector(a), 1);
  const pair = el("div", { class: "pair" }, el("p", { class: "quiet" }, "Asking where…"));
  const close = el("button", { type: "button", onclick: () => dialog.close() }, "Close");
  dialog.replaceChildren(
    el("header", {}, el("h2", { id: "comparison-title" }, "How alike, and where"), close),
    el("p", {}, el("span", { class: "cosine" }, cosine.toFixed(3)), " cosine of the two vectors"),
    pair,
  );
  const abort = new AbortController();
  dialog.addEventListener("close", () => abort.abort(), { once: true });
  if (!dialog.open) dialog.showModal();
  try {
    pair.replaceChildren(...(await figures(server, a, b, region, abort.signal)));
    dialog.append(el("div", { class: "row quiet" }, "little", legend(), "much, by the trained score"));
  } catch (error) {
    if (error.name !== "AbortError") pair.replaceChildren(el("p", {}, error.message));
  }
}

async function figures(server, a, b, region, signal) {
  if (!a.file || !b.file) {
    const sentence = "Where they are alike needs both originals. Drop their folder again.";
    return [el("p", { class: "quiet" }, sentence)];
  }
  const [there, back] = await Promise.all([
    server.match(a.file, [b.file], { region, signal }),
    server.match(b.file, [a.file], { signal }),
  ]);
  const [inB, inA] = [there.data[0], back.data[0]];
  for (const entry of [inA, inB]) if (entry.error) throw new Error(entry.error.message);
  const { spec } = server.model;
  const what = region ? `the box of ${lastPart(a)}` : `what ${lastPart(a)} shows`;
  const mapB = region ? inB.region_map : inB.map;
  const boxB = region ? inB.region_box : inB.box;
  return Promise.all([
    region
      ? figure(a, null, region, `The box of ${lastPart(a)}`, spec)
      : figure(a, inA.map, inA.box, `Where ${lastPart(a)} holds what ${lastPart(b)} shows`, spec),
    figure(b, mapB, boxB, `Where ${lastPart(b)} holds ${what}`, spec),
  ]);
}

const lastPart = ({ name }) => name.slice(name.lastIndexOf("/") + 1);

async function figure(picture, map, box, caption, spec) {
  const image = await createImageBitmap(picture.file).catch(() => null);
  if (!image) return el("p", { class: "quiet" }, `${picture.name} cannot be shown by this browser.`);
  const canvas = heatCanvas(image, map, spec, caption);
  image.close();
  const frame = el("span", { class: "found" });
  place(frame, box);
  return el("figure", {},
    el("div", { class: "sheet" }, canvas, frame),
    el("figcaption", {}, caption, map && el("br"), map && el("span", { class: "quiet" }, extent(map))),
  );
}

function extent(map) {
  const scores = map.flat();
  return `best ${Math.max(...scores).toFixed(1)}, least ${Math.min(...scores).toFixed(1)}`;
}
