// Puts the parts together: what came in goes to the embedder, what is clicked goes to the views.

import { Server } from "./api.js";
import { Collection } from "./collection.js";
import { openComparison } from "./compare.js";
import { $, announce, count } from "./dom.js";
import { Embedder } from "./embedder.js";
import { Grid } from "./grid.js";
import { Inspector } from "./inspector.js";
import { fromInput, sorted, watchIntake } from "./intake.js";
import { PictureMap } from "./map.js";
import { searchRegion } from "./region.js";
import { likeness, ranked } from "./similarity.js";
import { Status } from "./status.js";
import { Thumbnails } from "./thumbnails.js";
import { fromFile, toFile } from "./vector_file.js";
import { askKey } from "./key.js";

const server = new Server(askKey);
const collection = new Collection();
const thumbnails = new Thumbnails(collection);
const status = new Status({ retry: (pictures) => take(pictures) });
const embedder = new Embedder(server, collection, {
  progress: showProgress,
  failed: (failure) => status.failed(failure),
  ended: showEnd,
});
const grid = new Grid(collection, thumbnails, choose);
const map = new PictureMap(collection, (picture) => choose(picture, { compare: false }));
const inspector = new Inspector(thumbnails, {
  region: findRegion,
  compare: (picture) => awaitOther(comparing ? null : picture),
  close: leave,
});

let chosen = null; // the picture whose neighbours are shown
let comparing = null; // the picture that waits for another to be compared with
let searching = null; // ends the search that is on its way

/** Takes in what was dropped, chosen or pasted: {file, name} each. */
async function take(found) {
  const { pictures, vectors, others } = sorted(found);
  if (pictures.length + vectors.length === 0) {
    status.say(others ? "None of these files is a picture." : "There were no files in it.");
    return;
  }
  if (!(await connect())) return;
  for (const file of vectors) await openVectors(file);
  const added = pictures.map(({ file, name }) => collection.add(file, name)).filter(Boolean);
  if (added.length) embedder.add(added);
  else if (pictures.length) status.say("These pictures are here already.", "note");
  if (others) status.say(`Passed over: ${count(others, "file")} that ${others === 1 ? "is no picture" : "are no pictures"}.`, "note");
  refresh();
}

/** Learns what is served, once; says so where that fails. */
async function connect() {
  if (server.model) return true;
  try {
    const { name, precision, spec } = await server.describe();
    $("model").textContent = `${name}, ${precision}, ${spec.embedding_dim ?? spec.embed_dim} values a picture`;
    return true;
  } catch (error) {
    $("model").textContent = "Not connected";
    status.say(error.message);
    return false;
  }
}

async function openVectors(file) {
  try {
    const { added, before } = await fromFile(file, collection, server.model);
    const more = before ? `, ${count(before, "picture")} were here already` : "";
    status.say(`${count(added, "vector")} opened${more}.`, "note");
  } catch (error) {
    status.say(`${file.name}: ${error.message}`);
  }
}

async function saveVectors() {
  await thumbnails.finished(); // they are saved too
  const address = URL.createObjectURL(await toFile(collection));
  const link = Object.assign(document.createElement("a"), {
    href: address,
    download: `pictures-${collection.rows.length}.safetensors`,
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
  announce(`${count(collection.rows.length, "vector")} saved.`);
}

function showProgress({ done, total, perSecond }) {
  const rate = done > 2 ? `, ${perSecond.toFixed(perSecond < 10 ? 1 : 0)} a second` : "";
  status.progress({ done, total, text: `${done} of ${count(total, "picture")}${rate}` }, () => embedder.stop());
}

function showEnd({ reason, done, seconds, left }) {
  const took = `${count(done, "picture")} in ${seconds.toFixed(1)} s`;
  status.endProgress(reason ? "" : left ? `Stopped after ${took}.` : `${took}: ready.`);
  if (reason) status.say(reason.message);
  refresh();
  if (map.isShown) map.lay();
  if (chosen) choose(chosen, { compare: false });
}

/** A picture was clicked: show its neighbours, or compare it. */
function choose(picture, { compare }) {
  const other = comparing ?? (compare && chosen);
  if (other && other !== picture) {
    const region = other === inspector.picture ? inspector.box : null;
    awaitOther(null);
    openComparison(server, collection, other, picture, region);
    return;
  }
  if (compare) return announce("Choose a picture first, then one to compare with.");
  searching?.abort();
  chosen = picture;
  inspector.show(picture);
  map.mark(picture);
  const { ready } = collection;
  const scores = likeness(collection.matrix, collection.vector(picture), ready.length);
  grid.showRanked(ranked(scores).map((row) => ({ picture: ready[row], score: scores[row] })));
  grid.mark(picture);
  title("Alike", `by what they share with ${picture.name} beyond what all share, most alike first`);
  announce(`${count(ready.length, "picture")}, most like ${picture.name} first.`);
}

async function findRegion(picture, box) {
  if (!box) return;
  searching?.abort();
  const search = (searching = new AbortController());
  const { signal } = search;
  const progress = (done, total) => {
    const text = `Looking into ${done} of ${count(total, "picture")}`;
    if (!signal.aborted) status.progress({ done, total, text }, () => search.abort());
  };
  try {
    const found = await searchRegion(server, collection, picture, box, { signal, progress });
    if (signal.aborted || chosen !== picture) return;
    showView("grid");
    grid.showRanked(found);
    grid.mark(picture);
    const how = server.model.windows ? "the nearest window of each" : "the trained score of the nearest pictures";
    title("Holding this part", `by ${how}, best first; the frame shows where`);
    announce(`${count(found.length, "picture")} searched for the box, best first.`);
  } catch (error) {
    if (error.name !== "AbortError") status.say(error.message);
  } finally {
    search.abort(); // what else is on its way for it
    if (searching === search) status.endProgress();
  }
}

/** The next picture that is clicked is compared with this one; null ends the wait. */
function awaitOther(picture) {
  comparing = picture;
  const button = $("compare");
  button?.setAttribute("aria-pressed", String(Boolean(picture)));
  if (button) button.textContent = picture ? "Now choose the other" : "Compare with…";
  if (picture) announce("Choose the picture to compare with.");
}

/** Back to the whole collection in its own order. */
function leave() {
  searching?.abort();
  const before = chosen;
  chosen = null;
  awaitOther(null);
  inspector.show(null);
  map.mark(null);
  grid.showAll();
  grid.mark(null);
  refresh();
  if (before && !map.isShown) grid.focus(before);
}

function title(heading, note) {
  $("gallery-title").textContent = heading;
  $("gallery-note").textContent = note;
  $("back").hidden = !chosen;
}

function refresh() {
  const { size } = collection;
  document.body.dataset.state = size ? "some" : "empty";
  $("save").disabled = collection.rows.length === 0;
  if (!size) showView("grid");
  if (!chosen) title("Pictures", size ? `${count(size, "picture")}; choose one to see what is like it` : "");
}

function showView(view) {
  $("gallery").hidden = view !== "grid";
  $("map").hidden = view !== "map";
  for (const button of $("views").children) {
    button.setAttribute("aria-pressed", String(button.dataset.view === view));
  }
  if (view === "map") map.lay();
}

function clear() {
  embedder.stop();
  leave();
  collection.clear();
  status.clear();
  refresh();
  $("empty-add").focus();
}

for (const [button, input] of [
  ["add", "pick-files"], ["empty-add", "pick-files"],
  ["add-folder", "pick-folder"], ["empty-folder", "pick-folder"],
  ["open", "pick-vectors"], ["empty-open", "pick-vectors"],
]) {
  $(button).addEventListener("click", () => $(input).click());
}
for (const input of ["pick-files", "pick-folder", "pick-vectors"]) {
  $(input).addEventListener("change", ({ currentTarget }) => {
    const found = fromInput(currentTarget);
    currentTarget.value = ""; // the same files may be chosen again
    take(found);
  });
}
$("save").addEventListener("click", saveVectors);
$("clear").addEventListener("click", clear);
$("back").addEventListener("click", leave);
$("views").addEventListener("click", ({ target }) => target.dataset.view && showView(target.dataset.view));
collection.addEventListener("removed", refresh);
addEventListener("keydown", (event) => {
  const isElsewhere = event.defaultPrevented || document.querySelector("dialog[open]");
  if (event.key === "Escape" && chosen && !isElsewhere) leave();
});
watchIntake($("drop"), take);
refresh();
connect();
