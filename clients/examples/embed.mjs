// Pictures to vectors with nothing but fetch: Node 18 or newer, Deno, Bun, and the same in a page.
//
//   amdim serve &
//   node clients/examples/embed.mjs cat.jpg dog.jpg
//   AMDIM_URL=http://host:8000 node clients/examples/embed.mjs cat.jpg dog.jpg

import { readFile } from "node:fs/promises";

const url = process.env.AMDIM_URL ?? "http://127.0.0.1:8000";

/** Unit vectors of files, in their order; throws where one has none. */
export async function embed(files) {
  const form = new FormData();
  for (const bytes of files) form.append("images", new Blob([bytes]), "picture");
  const response = await fetch(`${url}/embed?encoding_format=base64`, { method: "POST", body: form });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error.message);
  return answer.data.map(({ index, embedding, error }) => {
    if (error) throw new Error(`picture ${index}: ${error.message}`);
    return new Float32Array(Uint8Array.from(atob(embedding.data), (c) => c.charCodeAt(0)).buffer);
  });
}

const paths = process.argv.slice(2);
const vectors = await embed(await Promise.all(paths.map((path) => readFile(path))));
vectors.forEach((vector, at) => {
  const cosine = vector.reduce((sum, value, i) => sum + value * vectors[0][i], 0);
  console.log(`${cosine.toFixed(4)}  ${paths[at]}`);
});
