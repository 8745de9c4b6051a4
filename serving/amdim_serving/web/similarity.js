// Cosines of unit vectors, and the order they give. Plain loops over typed arrays.

const FEW = 50; // pictures, whose mean holds too much of each

/**
 * The cosine of one vector with every row.
 *
 * @param {Float32Array} matrix - rows of `query.length`, unit length
 * @param {Float32Array} query - unit length
 * @param {number} rows
 * @returns {Float32Array}
 */
export function cosines(matrix, query, rows) {
  const dim = query.length;
  const found = new Float32Array(rows);
  for (let row = 0, at = 0; row < rows; row++) {
    let sum = 0;
    for (let i = 0; i < dim; i++) sum += matrix[at++] * query[i];
    found[row] = sum;
  }
  return found;
}

/**
 * How alike one vector and every row are, less what all rows have in common: cosines of what is
 * left when their mean, the nearer to zero the fewer there are, is taken off, as
 * amdim_clients.searching does.
 *
 * @param {Float32Array} matrix - rows of `query.length`, unit length
 * @param {Float32Array} query - unit length
 * @param {number} rows
 * @returns {Float32Array}
 */
export function likeness(matrix, query, rows) {
  const dim = query.length;
  const common = new Float32Array(dim);
  for (let row = 0, at = 0; row < rows; row++) {
    for (let i = 0; i < dim; i++) common[i] += matrix[at++] / (rows + FEW);
  }
  const rest = query.map((value, i) => value - common[i]);
  const ofRest = cosines(matrix, rest, rows);
  const ofCommon = cosines(matrix, common, rows);
  const [inCommon] = cosines(common, rest, 1);
  const [square] = cosines(common, common, 1);
  const length = Math.hypot(...rest);
  return ofRest.map((product, row) => {
    const left = Math.sqrt(Math.max(1e-12, 1 - 2 * ofCommon[row] + square));
    return (product - inCommon) / (left * length);
  });
}

/** Row numbers, highest score first; equal ones in their order. */
export function ranked(scores) {
  return Array.from(scores.keys()).sort((a, b) => scores[b] - scores[a] || a - b);
}

/**
 * The best window of a grid for a query.
 *
 * @param {Float32Array} query - (E) unit length
 * @param {Uint16Array} windows - (h * w * E) bits of float16
 * @param {Float32Array} halves - value by bits
 * @returns {{score: number, index: number}}
 */
export function bestWindow(query, windows, halves) {
  const dim = query.length;
  let score = -Infinity;
  let index = 0;
  for (let at = 0, window = 0; at < windows.length; window++) {
    let sum = 0;
    for (let i = 0; i < dim; i++) sum += halves[windows[at++]] * query[i];
    if (sum > score) [score, index] = [sum, window];
  }
  return { score, index };
}

/**
 * The mean of unit vectors, at unit length.
 *
 * @param {Float32Array[]} vectors - at least one
 * @returns {Float32Array}
 */
export function meanDirection(vectors) {
  const sum = Float32Array.from(vectors[0], (_, i) => vectors.reduce((to, v) => to + v[i], 0));
  const length = Math.hypot(...sum);
  return sum.map((value) => value / length);
}
