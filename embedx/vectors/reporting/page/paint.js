// Painting: every point is a small disc, set pixel by pixel, as drawing 50,000 paths would take too long.

const MARGIN = 24;  // pixels beside the canvas into which discs at its edge reach

const paint = {
  canvas: null, context: null,
  tints: new Uint32Array(0),   // the colour of each point as a pixel; 0 if it is hidden
  faint: 0, ground: 0,         // pixels of points that are not meant, and of the ground
  strong: null,                // a Uint8Array with 1 for the points that are meant; null if all are
  order: new Uint32Array(0),   // the order in which points are drawn: mixed, so that no class covers another
  image: null, pixels: null, ratio: 1,
  hovered: -1, selected: -1, lasso: [], cross: false,
  waiting: false, frames: 0,
};

/** Paints anew, once, before the next frame. */
function repaint() {
  if (paint.waiting || !paint.context) return;
  paint.waiting = true;
  requestAnimationFrame(() => { paint.waiting = false; paint.frames++; paintAll(); });
}

function mixOrder() {
  paint.order = Uint32Array.from({ length: points.count }, (_, i) => i);
  let seed = 1;
  for (let i = points.count - 1; i > 0; i--) {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    const j = seed % (i + 1), kept = paint.order[i];
    paint.order[i] = paint.order[j];
    paint.order[j] = kept;
  }
}

function resizeCanvas() {
  const box = paint.canvas.getBoundingClientRect();
  if (!box.width || !box.height) return;
  const relative = view.width ? zoomed() : 1;
  paint.ratio = Math.min(devicePixelRatio || 1, 2);
  Object.assign(view, { width: box.width, height: box.height });
  paint.canvas.width = Math.round(box.width * paint.ratio);
  paint.canvas.height = Math.round(box.height * paint.ratio);
  paint.image = new ImageData(paint.canvas.width + 2 * MARGIN, paint.canvas.height + 2 * MARGIN);
  paint.pixels = new Uint32Array(paint.image.data.buffer);
  view.scale = smallest() * relative;
  repaint();
}

/** The radius of a point in CSS pixels: smaller the more there are, larger the nearer they are. */
function radius() {
  const base = points.count > 20000 ? 1.7 : points.count > 4000 ? 2.3 : points.count > 600 ? 3.2 : 4.5;
  return base * Math.min(zoomed() ** 0.3, 2.6);
}

/** The pixels of a disc, as offsets in the image: the whole ones, and those of the edge with their cover, of 256. */
function disc(size, stride) {
  const reach = Math.min(Math.ceil(size), MARGIN - 2), whole = [], edge = [], covers = [];
  for (let dy = -reach; dy <= reach; dy++) {
    for (let dx = -reach; dx <= reach; dx++) {
      const cover = Math.min(Math.max(size + 0.5 - Math.hypot(dx, dy), 0), 1);
      if (cover > 0.9) whole.push(dy * stride + dx);
      else if (cover > 0.06) { edge.push(dy * stride + dx); covers.push(Math.round(cover * 240)); }
    }
  }
  return [whole, edge, covers].map((each) => Int32Array.from(each));
}

function paintAll() {
  if (!paint.image) return;
  paint.pixels.fill(paint.ground);
  const size = radius() * paint.ratio;
  if (paint.strong) {
    paintPoints(size * 0.9, 0);
    paintPoints(size * 1.15, 1);
  } else paintPoints(size, -1);
  paint.context.setTransform(1, 0, 0, 1, 0, 0);
  paint.context.putImageData(paint.image, -MARGIN, -MARGIN);
  paint.context.setTransform(paint.ratio, 0, 0, paint.ratio, 0, 0);
  paintMarks();
}

/** Paints the points that are meant (1), those that aren't, faintly (0), or all (-1). */
function paintPoints(size, which) {
  const { pixels, image, order, tints, strong, ratio, faint } = paint;
  const stride = image.width, { x: xs, y: ys } = points;
  const [whole, edge, covers] = disc(size, stride), wholes = whole.length, edges = edge.length;
  const scale = view.scale * ratio;
  const shiftX = (view.width / 2 - view.x * view.scale) * ratio + MARGIN + 0.5;
  const shiftY = (view.height / 2 - view.y * view.scale) * ratio + MARGIN + 0.5;
  const reach = Math.min(Math.ceil(size), MARGIN - 2);
  const right = image.width - reach, bottom = image.height - reach;
  for (let i = 0; i < order.length; i++) {
    const point = order[i];
    let tint = tints[point];
    if (tint === 0 || (which >= 0 && strong[point] !== which)) continue;
    const left = xs[point] * scale + shiftX | 0, top = ys[point] * scale + shiftY | 0;
    if (left < reach || top < reach || left >= right || top >= bottom) continue;
    if (which === 0) tint = faint;
    const redBlue = tint & 0xff00ff, green = tint & 0x00ff00, middle = top * stride + left;
    for (let k = 0; k < wholes; k++) pixels[middle + whole[k]] = tint;
    for (let k = 0; k < edges; k++) {
      const at = middle + edge[k], cover = covers[k], rest = 256 - cover, below = pixels[at];
      pixels[at] = 0xff000000
        | ((Math.imul(below & 0xff00ff, rest) + Math.imul(redBlue, cover)) >>> 8 & 0xff00ff)
        | ((Math.imul(below & 0x00ff00, rest) + Math.imul(green, cover)) >>> 8 & 0x00ff00);
    }
  }
}

/** Paints what is above the points: the selected one and its neighbours, the one under the pointer, the lasso. */
function paintMarks() {
  const pen = paint.context, ink = colourOf('--text'), accent = colourOf('--accent');
  const place = (point) => [view.left(points.x[point]), view.top(points.y[point])];
  const ring = (point, size, colour, width) => {
    pen.beginPath();
    pen.arc(...place(point), size, 0, 2 * Math.PI);
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.stroke();
  };
  const size = radius();
  if (paint.selected >= 0) {
    pen.strokeStyle = ink;
    pen.lineWidth = 1;
    pen.globalAlpha = 0.55;
    for (const { point } of neighboursOf(paint.selected)) {
      pen.beginPath();
      pen.moveTo(...place(paint.selected));
      pen.lineTo(...place(point));
      pen.stroke();
    }
    pen.globalAlpha = 1;
    for (const { point } of neighboursOf(paint.selected)) ring(point, size + 2.5, ink, 1.2);
    ring(paint.selected, size + 4, colourOf('--ground'), 6);
    ring(paint.selected, size + 4, accent, 3);
  }
  if (paint.hovered >= 0) ring(paint.hovered, size + 2.5, ink, 1.6);
  if (paint.lasso.length > 1) paintLasso(pen, accent);
  if (paint.cross) {
    const x = view.width / 2, y = view.height / 2;
    pen.beginPath();
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      pen.moveTo(x + 4 * dx, y + 4 * dy);
      pen.lineTo(x + 12 * dx, y + 12 * dy);
    }
    pen.strokeStyle = ink;
    pen.lineWidth = 1.5;
    pen.stroke();
  }
}

function paintLasso(pen, accent) {
  pen.beginPath();
  for (const [x, y] of paint.lasso) pen.lineTo(view.left(x), view.top(y));
  pen.closePath();
  pen.strokeStyle = pen.fillStyle = accent;
  pen.globalAlpha = 0.12;
  pen.fill();
  pen.globalAlpha = 1;
  pen.lineWidth = 1.5;
  pen.stroke();
}
