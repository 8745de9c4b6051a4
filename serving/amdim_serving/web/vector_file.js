// A collection as a .safetensors file and back: vectors, names, thumbnails and the digests that say
// which encoder made them. Also opens what `amdim embed -o x.safetensors` and the server write.

import { readSafetensors, writeSafetensors } from "./codec.js";
import { sameSpace } from "./collection.js";

const PREFIX = "amdim.";
const ORIGIN = ["model", "version", "encoder_digest", "preprocess_digest", "artifact_digest"];

/** The file's bytes; every picture that has a vector is in it. */
export async function toFile(collection) {
  const { pictures, matrix } = collection.inOrder();
  const thumbnails = pictures.map(({ thumbnail }) => thumbnail ?? new Blob());
  let end = 0;
  const metadata = { [`${PREFIX}normalized`]: "true" };
  for (const name of ORIGIN) metadata[PREFIX + name] = collection.digests[name];
  metadata[`${PREFIX}pictures`] = JSON.stringify(
    pictures.map(({ name, bytes, width, height }) => ({ name, bytes, width, height })),
  );
  const { dim } = collection;
  const image = new Uint8Array(await new Blob(thumbnails).arrayBuffer());
  const ends = Uint32Array.from(thumbnails, ({ size }) => (end += size));
  return writeSafetensors(
    {
      embedding: { dtype: "F32", shape: [pictures.length, dim], data: matrix },
      thumbnail_ends: { dtype: "U32", shape: [ends.length], data: ends },
      thumbnails: { dtype: "U8", shape: [image.length], data: image },
    },
    metadata,
  );
}

/**
 * Adds a file's pictures to the collection.
 *
 * @param {Blob} file
 * @param {object} served - what the server serves now: its digests must be the file's
 * @returns {Promise<{added: number, before: number}>} how many are new, and how many were here
 * @throws {Error} The file does not fit; the message is a sentence for the reader, and nothing
 *   has been added.
 */
export async function fromFile(file, collection, served) {
  const { tensors, metadata } = readSafetensors(await file.arrayBuffer());
  const told = (name) => metadata[PREFIX + name] ?? metadata[name];
  const origin = Object.fromEntries(ORIGIN.map((name) => [name, told(name)]));
  if (!origin.encoder_digest || !origin.preprocess_digest) {
    throw new Error("The file does not say which encoder made its vectors, so it is not opened.");
  }
  if (!sameSpace(origin, served)) throw new Error(mismatch(origin, served));
  const found = tensors[served.spec.default_output];
  if (!found || found.shape.length !== 2) {
    throw new Error(`The file holds no vectors called ${served.spec.default_output}.`);
  }
  const [n, dim] = found.shape;
  if (dim !== served.spec.outputs[served.spec.default_output].at(-1)) {
    throw new Error(`The file's vectors have ${dim} values; this model's have another number.`);
  }
  const pictures = readPictures(told("pictures"), n, file.name);
  const thumbnails = readThumbnails(tensors, n);
  if (!collection.accepts(origin)) throw new Error(mismatch(origin, collection.digests));
  let added = 0;
  for (let row = 0; row < n; row++) {
    const vector = unit(found.data.slice(row * dim, (row + 1) * dim));
    const { name, ...known } = pictures[row];
    const picture = vector && collection.add(null, name, { ...known, thumbnail: thumbnails[row] });
    if (!picture) continue;
    collection.setVector(picture, vector);
    added += 1;
  }
  return { added, before: n - added };
}

function mismatch(origin, served) {
  const what = origin.encoder_digest === served.encoder_digest ? "preprocess_digest" : "encoder_digest";
  const noun = what === "encoder_digest" ? "another encoder" : "another preparation of pictures";
  const short = (digest) => String(digest).replace("sha256:", "").slice(0, 8);
  return (
    `These vectors come from ${noun} (${short(origin[what])}) than the one here ` +
    `(${short(served[what])}), so they cannot be compared. Add the pictures themselves instead.`
  );
}

function readPictures(text, n, fileName) {
  const byNumber = Array.from({ length: n }, (_, row) => ({
    name: `${fileName} #${row + 1}`, bytes: -1, width: 0, height: 0,
  }));
  if (text === undefined) return byNumber;
  const read = JSON.parse(text);
  if (!Array.isArray(read) || read.length !== n) {
    throw new Error("The file names more or fewer pictures than it has vectors.");
  }
  return byNumber.map((plain, row) => ({
    name: String(read[row].name ?? plain.name),
    bytes: Number(read[row].bytes ?? -1),
    width: Number(read[row].width) || 0,
    height: Number(read[row].height) || 0,
  }));
}

function readThumbnails({ thumbnails, thumbnail_ends: ends }, n) {
  if (!thumbnails || ends?.data.length !== n) return Array(n).fill(null);
  return Array.from(ends.data, (end, row) => {
    const start = row ? ends.data[row - 1] : 0;
    return end > start ? new Blob([thumbnails.data.slice(start, end)], { type: "image/jpeg" }) : null;
  });
}

/** The vector at length 1, or null where it has no length. */
function unit(vector) {
  const length = Math.hypot(...vector);
  return length > 0 && Number.isFinite(length) ? vector.map((value) => value / length) : null;
}
