// A contact sheet of a dream: its frames in rows, each with its number and the action that led to it.

const COLUMNS = 8;
const LEAST_WIDTH = 96; // of a frame on the sheet, in pixels
const MOST_FRAMES = 400;
const LINE = 16; // height of the label
const GAP = 4;

// frames: [{pixels, label}] → the bytes of a PNG; of a long dream, its last frames.
export async function contactSheet(frames, [, height, width]) {
  const shown = frames.slice(-MOST_FRAMES);
  const scale = Math.ceil(LEAST_WIDTH / width);
  const [cellWidth, cellHeight] = [width * scale + GAP, height * scale + LINE + GAP];
  const columns = Math.min(COLUMNS, shown.length);
  const sheet = new OffscreenCanvas(columns * cellWidth + GAP, Math.ceil(shown.length / columns) * cellHeight + GAP);
  const frame = new OffscreenCanvas(width, height);
  const context = sheet.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, sheet.width, sheet.height);
  context.fillStyle = "#000";
  context.font = `${LINE - 4}px sans-serif`;
  context.imageSmoothingEnabled = false;
  shown.forEach(({ pixels, label }, index) => {
    const x = GAP + (index % columns) * cellWidth;
    const y = GAP + Math.floor(index / columns) * cellHeight;
    frame.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
    context.drawImage(frame, x, y, width * scale, height * scale);
    context.fillText(label, x, y + height * scale + LINE - 4, width * scale);
  });
  const blob = await sheet.convertToBlob({ type: "image/png" });
  return new Uint8Array(await blob.arrayBuffer());
}
