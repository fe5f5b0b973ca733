// The view: which part of the map is seen, and which point is where.

const EXTENT = 65536;  // the points' places are whole numbers below it
const CELLS = 128;     // the grid by which points are found has so many cells a side

const view = {
  x: EXTENT / 2, y: EXTENT / 2,  // what is in the middle
  scale: 0.01,                   // CSS pixels per unit
  width: 0, height: 0,           // of the canvas, in CSS pixels
  left: (x) => (x - view.x) * view.scale + view.width / 2,
  top: (y) => (y - view.y) * view.scale + view.height / 2,
  xAt: (left) => (left - view.width / 2) / view.scale + view.x,
  yAt: (top) => (top - view.height / 2) / view.scale + view.y,
};

const bounds = { west: 0, east: EXTENT, north: 0, south: EXTENT };  // of all points

/** The scale at which all points are seen. */
const smallest = () => 0.93 * Math.min(
  view.width / Math.max(bounds.east - bounds.west, 1), view.height / Math.max(bounds.south - bounds.north, 1));
const zoomed = () => view.scale / smallest();

function boundsOf(chosen) {
  const found = { west: EXTENT, east: 0, north: EXTENT, south: 0 };
  for (const point of chosen) {
    found.west = Math.min(found.west, points.x[point]); found.east = Math.max(found.east, points.x[point]);
    found.north = Math.min(found.north, points.y[point]); found.south = Math.max(found.south, points.y[point]);
  }
  return found;
}

function fit() {
  const { west, east, north, south } = bounds;
  Object.assign(view, { x: (west + east) / 2, y: (north + south) / 2, scale: smallest() });
  repaint();
}

/** Zooms, and keeps what is at a place of the canvas there. */
function zoom(factor, left = view.width / 2, top = view.height / 2) {
  const x = view.xAt(left), y = view.yAt(top);
  view.scale = Math.min(Math.max(view.scale * factor, smallest() * 0.8), smallest() * 500);
  view.x = x - (left - view.width / 2) / view.scale;
  view.y = y - (top - view.height / 2) / view.scale;
  hold();
}

function pan(right, down) {
  view.x -= right / view.scale;
  view.y -= down / view.scale;
  hold();
}

/** Keeps the middle of the view on the map. */
function hold() {
  view.x = Math.min(Math.max(view.x, bounds.west), bounds.east);
  view.y = Math.min(Math.max(view.y, bounds.north), bounds.south);
  repaint();
}

/** Moves the view to points: to one of them as near as it is, to more so that all are seen. */
function moveTo(chosen) {
  if (!chosen.length) return;
  const { west, east, north, south } = boundsOf(chosen);
  view.x = (west + east) / 2;
  view.y = (north + south) / 2;
  const room = Math.min(view.width / (east - west + 1), view.height / (south - north + 1)) * 0.8;
  if (chosen.length > 1) view.scale = Math.min(Math.max(room, smallest()), smallest() * 12);
  else view.scale = Math.max(view.scale, smallest() * 3);
  hold();
}

// The grid: the points of a cell stand in a row in `members`, from `begins` of the cell on.
const grid = { begins: new Uint32Array(CELLS * CELLS + 1), members: new Uint32Array(0) };
const cellOf = (place) => Math.min(Math.max(Math.floor(place / EXTENT * CELLS), 0), CELLS - 1);

function fillGrid() {
  const cells = new Uint16Array(points.count);
  grid.members = new Uint32Array(points.count);
  for (let i = 0; i < points.count; i++) {
    cells[i] = cellOf(points.y[i]) * CELLS + cellOf(points.x[i]);
    grid.begins[cells[i] + 1]++;
  }
  for (let cell = 0; cell < CELLS * CELLS; cell++) grid.begins[cell + 1] += grid.begins[cell];
  const next = grid.begins.slice();
  for (let i = 0; i < points.count; i++) grid.members[next[cells[i]]++] = i;
}

/** Calls a function with every point of the cells that a box touches. */
function eachWithin(west, north, east, south, visit) {
  for (let row = cellOf(north); row <= cellOf(south); row++) {
    const from = grid.begins[row * CELLS + cellOf(west)], to = grid.begins[row * CELLS + cellOf(east) + 1];
    for (let at = from; at < to; at++) visit(grid.members[at]);
  }
}

/** The visible point nearest to a place of the canvas, or -1 if there is none within a distance in pixels. */
function pointAt(left, top, distance) {
  const x = view.xAt(left), y = view.yAt(top), reach = distance / view.scale;
  let best = -1, least = reach * reach;
  eachWithin(x - reach, y - reach, x + reach, y + reach, (point) => {
    const squared = (points.x[point] - x) ** 2 + (points.y[point] - y) ** 2;
    if (squared <= least && paint.tints[point]) { least = squared; best = point; }
  });
  return best;
}

/** The visible points within a polygon, whose corners are pairs of the map's own x and y. */
function pointsWithin(polygon) {
  const xs = polygon.map(([x]) => x), ys = polygon.map(([, y]) => y);
  const found = [];
  eachWithin(Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys), (point) => {
    if (!paint.tints[point]) return;
    const x = points.x[point], y = points.y[point];
    let inside = false;
    for (let i = 0, j = xs.length - 1; i < xs.length; j = i++) {
      if (ys[i] > y !== ys[j] > y && x < (xs[j] - xs[i]) * (y - ys[i]) / (ys[j] - ys[i]) + xs[i]) inside = !inside;
    }
    if (inside) found.push(point);
  });
  return found.sort((a, b) => a - b);
}
