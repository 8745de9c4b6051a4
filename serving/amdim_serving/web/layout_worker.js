// Computes the map off the page's thread. One layout at a time; the page ends the worker to stop it.

import { nearestRows, principalPlane, settle, spread } from "./layout_math.js";

const NEIGHBOURS = 10;
const MOST = 6000; // comparing all pairs of more would take too long; these get their main axes

addEventListener("message", ({ data: { matrix, n, dim, byNeighbours } }) => {
  const plane = principalPlane(matrix, n, dim);
  const k = Math.min(NEIGHBOURS, n - 1);
  const settles = byNeighbours && n > 3 && n <= MOST;
  postMessage({ plane: spread(plane, n), isDone: !settles, isSettled: false });
  if (!settles) return;
  const nearest = nearestRows(matrix, n, dim, k);
  let last = plane;
  settle(plane, nearest, n, k, (points) => {
    last = spread(points, n);
    postMessage({ plane: last, isDone: false, isSettled: false });
  });
  postMessage({ plane: last, isDone: true, isSettled: true });
});
