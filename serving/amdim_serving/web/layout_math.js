// Puts vectors on a plane: their two main axes, and from there by neighbourhood. Plain loops over
// typed arrays; runs in a worker. The same vectors always give the same plane.

const GRAVITY = 0.02; // how far all points are drawn to the middle each round, lest islands drift off
const EVEN = 0.6; // how far a coordinate goes from its own value to its rank

/** Uniform numbers in 0..1 from a seed. Source: the public-domain mulberry32. */
function randomFrom(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let bits = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    bits = (bits + Math.imul(bits ^ (bits >>> 7), 61 | bits)) ^ bits;
    return ((bits ^ (bits >>> 14)) >>> 0) / 4294967296;
  };
}

/**
 * The two principal axes, by power iteration on the centred vectors.
 *
 * @param {Float32Array} matrix - n rows of dim
 * @returns {Float32Array} n pairs x, y; the longer axis spans about -1 to 1
 */
export function principalPlane(matrix, n, dim, rounds = 40) {
  const mean = new Float64Array(dim);
  for (let row = 0, at = 0; row < n; row++) for (let i = 0; i < dim; i++) mean[i] += matrix[at++] / n;
  const random = randomFrom(7);
  const axes = [0, 1].map(() => Float64Array.from({ length: dim }, () => random() - 0.5));
  const plane = new Float32Array(n * 2);
  for (let round = 0; ; round++) {
    for (const [which, axis] of axes.entries()) {
      for (const before of axes.slice(0, which)) removeFrom(axis, before);
      scaleToUnit(axis);
      project(matrix, n, dim, mean, axis, plane, which);
    }
    if (round === rounds) break;
    for (const [which, axis] of axes.entries()) {
      axis.fill(0);
      for (let row = 0, at = 0; row < n; row++) {
        const weight = plane[2 * row + which];
        for (let i = 0; i < dim; i++) axis[i] += weight * (matrix[at++] - mean[i]);
      }
    }
  }
  const longest = plane.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-9);
  return plane.map((value) => value / longest);
}

function removeFrom(axis, unit) {
  let along = 0;
  for (let i = 0; i < axis.length; i++) along += axis[i] * unit[i];
  for (let i = 0; i < axis.length; i++) axis[i] -= along * unit[i];
}

function scaleToUnit(axis) {
  const length = Math.hypot(...axis) || 1;
  for (let i = 0; i < axis.length; i++) axis[i] /= length;
}

function project(matrix, n, dim, mean, axis, plane, which) {
  for (let row = 0, at = 0; row < n; row++) {
    let sum = 0;
    for (let i = 0; i < dim; i++) sum += (matrix[at++] - mean[i]) * axis[i];
    plane[2 * row + which] = sum;
  }
}

/** The k nearest other rows of every row, by cosine; (n * k) row numbers. */
export function nearestRows(matrix, n, dim, k) {
  const nearest = new Int32Array(n * k);
  const scores = new Float32Array(n);
  for (let row = 0; row < n; row++) {
    for (let other = 0, at = 0; other < n; other++) {
      let sum = 0;
      for (let i = 0, mine = row * dim; i < dim; i++) sum += matrix[at++] * matrix[mine++];
      scores[other] = sum;
    }
    scores[row] = -Infinity;
    for (let place = 0; place < k; place++) {
      let best = 0;
      for (let other = 1; other < n; other++) if (scores[other] > scores[best]) best = other;
      nearest[row * k + place] = best;
      scores[best] = -Infinity;
    }
  }
  return nearest;
}

/**
 * Moves points so that neighbours in the vectors' space are neighbours on the plane: each is drawn
 * to its nearest and pushed from a few others taken at random.
 *
 * Source: the idea and forces of UMAP (arXiv:1802.03426) with a = b = 1.
 *
 * @param {Float32Array} plane - n pairs, where to begin
 * @param {Int32Array} nearest - (n * k)
 * @param {(plane: Float32Array) => void} show - called now and then
 */
export function settle(plane, nearest, n, k, show, rounds = 240) {
  const random = randomFrom(11);
  const points = plane.map((value) => value * 10);
  const pushes = Math.min(5, n - 1);
  for (let round = 0; round < rounds; round++) {
    const rate = 1 - round / rounds;
    for (let row = 0; row < n; row++) {
      for (let place = 0; place < k; place++) {
        const other = nearest[row * k + place];
        pull(points, row, other, rate);
        for (let push = 0; push < pushes; push++) {
          const far = Math.floor(random() * n);
          if (far !== row) repel(points, row, far, rate);
        }
      }
    }
    for (let i = 0; i < points.length; i++) points[i] *= 1 - GRAVITY * rate;
    if (round % 12 === 11) show(points);
  }
}

/**
 * Spreads points over the square -1 to 1: each coordinate is moved most of the way to its rank, so
 * that crowds get room and the order along both axes stays.
 */
export function spread(points, n) {
  const even = new Float32Array(points.length);
  for (const axis of [0, 1]) {
    const order = Array.from({ length: n }, (_, row) => row);
    order.sort((a, b) => points[2 * a + axis] - points[2 * b + axis]);
    const [low, high] = [points[2 * order[0] + axis], points[2 * order[n - 1] + axis]];
    order.forEach((row, rank) => {
      const where = (points[2 * row + axis] - low) / (high - low || 1);
      const mixed = (1 - EVEN) * where + (EVEN * rank) / (n - 1 || 1);
      even[2 * row + axis] = 2 * mixed - 1;
    });
  }
  return even;
}

const bounded = (value) => Math.max(-4, Math.min(4, value));

function pull(points, a, b, rate) {
  const dx = points[2 * a] - points[2 * b];
  const dy = points[2 * a + 1] - points[2 * b + 1];
  const force = (-2 * rate) / (1 + dx * dx + dy * dy);
  points[2 * a] += bounded(force * dx);
  points[2 * a + 1] += bounded(force * dy);
  points[2 * b] -= bounded(force * dx);
  points[2 * b + 1] -= bounded(force * dy);
}

function repel(points, a, b, rate) {
  const dx = points[2 * a] - points[2 * b];
  const dy = points[2 * a + 1] - points[2 * b + 1];
  const squared = dx * dx + dy * dy;
  const force = (2 * rate) / ((0.001 + squared) * (1 + squared));
  points[2 * a] += bounded(force * dx) * rate;
  points[2 * a + 1] += bounded(force * dy) * rate;
}
