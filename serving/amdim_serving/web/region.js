// Search for a part of a picture in all the others, with the place that matched.
//
// Where the server offers windows, those of every picture are kept here, and a box is one vector
// that is compared with them. Where it does not, the trained score's 7x7 maps of the nearest
// pictures are asked of /match. Knows no page.

import { squareAround } from "./boxes.js";
import { halfValues } from "./codec.js";
import { bestWindow, likeness, meanDirection, ranked } from "./similarity.js";

const WINDOWS = { outputs: "windows", dtype: "float16", scales: "1,1.5,2" };
const CONTEXTS = [1.2, 1.7]; // cut out, over the box: as amdim_clients.regions does
const PICTURES = 4; // in one request: each answer is some 100 kB
const CANDIDATES = 96; // that /match is asked about, nearest first
const REQUESTS = 2;

/**
 * Pictures by how well some part of them fits a box of the query.
 *
 * @param {import("./api.js").Server} server
 * @param {import("./collection.js").Collection} collection
 * @param {object} query - the picture
 * @param {number[]} box - in 0..1
 * @param {{signal: AbortSignal, progress: (done: number, total: number) => void}} options
 * @returns {Promise<{picture: object, score: number, box: number[]}[]>} best first
 */
export async function searchRegion(server, collection, query, box, options) {
  let found;
  try {
    if (server.model.windows) found = await byWindows(server, collection, query, box, options);
  } catch (error) {
    if (error.code !== "unknown_output") throw error;
    server.model.windows = false; // it could, but has no model for it
  }
  found ??= await byMaps(server, collection, query, box, options);
  return found.sort((a, b) => b.score - a.score);
}

async function byWindows(server, collection, query, box, { signal, progress }) {
  const [vector] = await Promise.all([
    embedBox(server, query.file, box, signal),
    fetchWindows(server, collection, { signal, progress }),
  ]);
  const found = [];
  let rested = performance.now();
  for (const picture of collection.ready) {
    if (!picture.windows) continue;
    found.push({ picture, ...bestOf(picture.windows, vector) });
    if (performance.now() - rested > 24) {
      await new Promise((resolve) => setTimeout(resolve)); // let the page breathe
      rested = performance.now();
    }
  }
  return found;
}

/** The vector of a box: the mean of squares with a little and with more around it, at full size. */
async function embedBox(server, file, box, signal) {
  const full = await createImageBitmap(file);
  const cuts = await Promise.all(CONTEXTS.map((context) => cutSquare(full, box, context)));
  full.close();
  const { data } = await server.embed(cuts, { signal });
  const failed = data.find(({ error }) => error);
  if (failed) throw new Error(`The box cannot be embedded: ${failed.error.message}`);
  return meanDirection(data.map((entry) => Object.values(entry).find((it) => it?.data).data));
}

function cutSquare(full, box, context) {
  const square = squareAround(box, full.width, full.height, context);
  const [x, y] = [square[0] * full.width, square[1] * full.height].map(Math.round);
  const width = Math.max(2, Math.round((square[2] - square[0]) * full.width));
  const height = Math.max(2, Math.round((square[3] - square[1]) * full.height));
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").drawImage(full, -x, -y);
  return canvas.convertToBlob({ type: "image/png" }); // no loss
}

/** Asks for the windows of every picture that has none yet; kept for the next box. */
async function fetchWindows(server, collection, { signal, progress }) {
  const wanted = collection.ready.filter(({ file, windows }) => file && !windows);
  const total = wanted.length;
  let done = 0;
  const work = async () => {
    while (wanted.length) {
      const batch = wanted.splice(0, PICTURES);
      await fetchSome(server, batch, signal);
      progress((done += batch.length), total);
    }
  };
  if (total) progress(0, total);
  await Promise.all(Array.from({ length: REQUESTS }, work));
}

async function fetchSome(server, pictures, signal) {
  const files = pictures.map(({ file }) => file);
  try {
    const answer = await server.embed(files, { signal, query: WINDOWS });
    for (const { index, windows } of answer.data) if (windows) pictures[index].windows = windows;
  } catch (error) {
    if (error.code !== "too_many_windows") throw error;
    if (pictures.length === 1) return; // a panorama: it takes no part
    for (const picture of pictures) await fetchSome(server, [picture], signal);
  }
}

/** The best window at any scale, and its box. */
export function bestOf(scales, vector) {
  let best = { score: -Infinity, box: null };
  for (const { shape, data, first_box: first, step } of scales) {
    const { score, index } = bestWindow(vector, data, halfValues);
    if (score <= best.score) continue;
    const [dx, dy] = [(index % shape[1]) * step[0], Math.floor(index / shape[1]) * step[1]];
    const box = [first[0] + dx, first[1] + dy, first[2] + dx, first[3] + dy];
    best = { score, box };
  }
  return best;
}

async function byMaps(server, collection, query, box, { signal, progress }) {
  const scores = likeness(collection.matrix, collection.vector(query), collection.rows.length);
  const { ready } = collection;
  const nearest = ranked(scores).map((row) => ready[row]).filter(({ file }) => file);
  const candidates = nearest.slice(0, CANDIDATES);
  const total = candidates.length;
  const found = [];
  for (let done = 0; done < total; done += 16) {
    progress(done, total);
    const some = candidates.slice(done, done + 16);
    const files = some.map(({ file }) => file);
    const answer = await server.match(query.file, files, { region: box, signal });
    for (const entry of answer.data) {
      if (entry.error) continue;
      found.push({ picture: some[entry.index], score: entry.region_score, box: entry.region_box });
    }
  }
  return found;
}
