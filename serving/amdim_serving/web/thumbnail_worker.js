// Makes a small picture of a large one, off the page's thread: a JPEG for the tile and a bitmap for
// the map. Exif orientation is followed, as by the server.

const TILE = 320; // longer side of the JPEG: twice a tile, for fine screens
const ICON = 72; // longer side of the bitmap

addEventListener("message", async ({ data: { id, file, isSmall } }) => {
  try {
    const full = await createImageBitmap(file);
    const { width, height } = full;
    const small = isSmall ? full : draw(full, TILE);
    const icon = draw(small, ICON).transferToImageBitmap();
    const thumbnail = isSmall
      ? file
      : await small.convertToBlob({ type: "image/jpeg", quality: 0.82 });
    full.close();
    postMessage({ id, thumbnail, icon, width, height }, [icon]);
  } catch {
    postMessage({ id, thumbnail: null, icon: null, width: 0, height: 0 });
  }
});

function draw(source, longest) {
  const scale = Math.min(1, longest / Math.max(source.width, source.height));
  const width = Math.max(1, Math.round(source.width * scale));
  const height = Math.max(1, Math.round(source.height * scale));
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { alpha: false });
  context.fillStyle = "#fff"; // what is transparent is white, as the encoder sees it
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, width, height);
  return canvas;
}
