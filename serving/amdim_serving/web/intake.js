// Files out of a drop, a dialog or the clipboard, as {file, name}. Knows nothing of vectors.

const SUFFIX = /\.(jpe?g|jfif|mpo|png|webp|gif|bmp|tiff?|avif)$/i;
const VECTORS = /\.safetensors$/i;

/** Whether a file looks like a picture; the server decides what it is by its bytes. */
const isPicture = (file) => file.type.startsWith("image/") || SUFFIX.test(file.name);

/**
 * Sorts what came in.
 *
 * @param {{file: File, name: string}[]} found
 * @returns {{pictures: {file: File, name: string}[], vectors: File[], others: number}}
 */
export function sorted(found) {
  const visible = found.filter(({ name }) => !/(^|\/)\./.test(name));
  const byName = new Intl.Collator("en", { numeric: true });
  const pictures = visible
    .filter(({ file }) => isPicture(file))
    .sort((a, b) => byName.compare(a.name, b.name));
  const vectors = visible.filter(({ file }) => VECTORS.test(file.name)).map(({ file }) => file);
  return { pictures, vectors, others: visible.length - pictures.length - vectors.length };
}

/** The files of an <input>, with their path below the chosen folder's parent. */
export const fromInput = (input) =>
  Array.from(input.files, (file) => ({ file, name: file.webkitRelativePath || file.name }));

let pasted = 0;

/** The pictures on the clipboard; these have no names of their own. */
export function fromClipboard(event) {
  const files = Array.from(event.clipboardData?.files ?? []);
  return files.map((file) => {
    const isNameless = /^image\.\w+$/.test(file.name);
    return { file, name: isNameless ? `pasted ${++pasted}${file.name.slice(5)}` : file.name };
  });
}

/**
 * Everything below what was dropped, folders walked to their ends.
 *
 * @param {DataTransfer} transfer
 */
export async function fromDrop(transfer) {
  // Both lists are gone once the event has returned, so entries are taken before any await.
  const entries = Array.from(transfer.items ?? [], (item) => item.webkitGetAsEntry?.());
  if (entries.every((entry) => !entry)) {
    return Array.from(transfer.files, (file) => ({ file, name: file.name }));
  }
  const found = [];
  for (const entry of entries) if (entry) await walk(entry, found);
  return found;
}

async function walk(entry, found) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject)).catch(() => null);
    if (file) found.push({ file, name: entry.fullPath.replace(/^\//, "") });
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    // A reader gives a hundred entries at a time, and none at its end.
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (some.length === 0) return;
    for (const inner of some) await walk(inner, found);
  }
}

/**
 * Watches the page for drops and pastes.
 *
 * @param {HTMLElement} veil - shown while something is held over the page
 * @param {(found: {file: File, name: string}[]) => void} take
 */
export function watchIntake(veil, take) {
  let depth = 0;
  const show = (isOver) => veil.classList.toggle("shown", isOver);
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => {
    if (hasFiles(event)) show(++depth > 0);
  });
  addEventListener("dragleave", (event) => {
    if (hasFiles(event)) show(--depth > 0);
  });
  addEventListener("dragover", (event) => {
    if (hasFiles(event)) event.preventDefault();
  });
  addEventListener("drop", async (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    show((depth = 0) > 0);
    take(await fromDrop(event.dataTransfer));
  });
  addEventListener("paste", (event) => {
    const found = fromClipboard(event);
    if (found.length === 0) return;
    event.preventDefault();
    take(found);
  });
}
