// Draws a picture with a 7x7 map over it. Knows no server.

import { el } from "./dom.js";

const LONGEST = 720; // pixels of the drawing's longer side
const CELLS = 7;

/** The ramp from nothing to much: [red, green, blue, opacity] at 0..1. */
function colour(value) {
  const warmth = Math.min(1, Math.max(0, value));
  return [255, 214 - 150 * warmth, 90 - 60 * warmth, 225 * warmth ** 1.4];
}

/**
 * A canvas of a picture with a map over the part that the encoder has seen.
 *
 * @param {ImageBitmap} image
 * @param {number[][]|null} map - 7 rows of 7 scores; drawn from their mean, as nothing, to their best
 * @param {{image_size: number, resize: number}} spec
 * @param {string} label
 */
export function heatCanvas(image, map, spec, label) {
  const scale = Math.min(1, LONGEST / Math.max(image.width, image.height));
  const [width, height] = [image.width * scale, image.height * scale].map(Math.round);
  const canvas = el("canvas", { width, height, role: "img", "aria-label": label });
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, width, height);
  if (!map) return canvas;
  context.fillStyle = "rgb(16 20 24 / 42%)";
  context.fillRect(0, 0, width, height);

  const grid = CELLS + 2; // the outer cells once more around, up to the crop's border and past it
  const cells = new OffscreenCanvas(grid, grid);
  const pixels = new ImageData(grid, grid);
  const scores = map.flat();
  const low = scores.reduce((sum, score) => sum + score, 0) / scores.length;
  const high = Math.max(...scores);
  const inside = (at) => Math.min(CELLS - 1, Math.max(0, at - 1));
  for (let at = 0; at < grid * grid; at++) {
    const score = map[inside(Math.floor(at / grid))][inside(at % grid)];
    pixels.data.set(colour((score - low) / (high - low || 1)), at * 4);
  }
  cells.getContext("2d").putImageData(pixels, 0, 0);
  // The crop is in the middle; cell centres lie at 1/8 to 7/8 of it, so each cell is 1/8 wide.
  const crop = (Math.min(width, height) * spec.image_size) / spec.resize;
  const side = (crop * grid) / (CELLS + 1);
  context.strokeStyle = "rgb(255 255 255 / 45%)";
  context.beginPath();
  context.rect((width - crop) / 2, (height - crop) / 2, crop, crop);
  context.stroke();
  context.clip();
  context.imageSmoothingQuality = "high";
  context.drawImage(cells, (width - side) / 2, (height - side) / 2, side, side);
  return canvas;
}

/** A strip of the ramp's colours. */
export function legend() {
  const canvas = el("canvas", { class: "scale", width: 144, height: 1, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  for (let x = 0; x < 144; x++) {
    const [red, green, blue, opacity] = colour(x / 143);
    context.fillStyle = `rgb(${red} ${green} ${blue} / ${opacity / 255})`;
    context.fillRect(x, 0, 1, 1);
  }
  return canvas;
}
