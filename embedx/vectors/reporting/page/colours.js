// Colours: the column by which points are coloured, its legend, and light or dark.

// Those of Okabe and Ito for eight; the others as far from all as can be, also for the colour-blind.
const PALETTES = {
  light: [
    '#0072b2', '#e08a00', '#009e73', '#d55e00', '#56b4e9', '#cc79a7', '#7a1433', '#47298f', '#855270', '#8f7af5',
    '#ad2900', '#7ad670', '#5c3d66', '#7ab885', '#3347b8', '#f5ad00', '#3d663d', '#00a3c2', '#ad3d99', '#5c7a52'],
  dark: [
    '#4c8fe8', '#e69f00', '#3fc48f', '#e8663c', '#8fd0f5', '#d58cb8', '#f0e442', '#5cffc2', '#9970a3', '#c23d29',
    '#70997a', '#ada3ff', '#705ccc', '#add67a', '#adf5ff', '#ffa3c2', '#338570', '#ebc229', '#c266cc', '#b8f58f'],
};
const MOST = 20;  // categories with a colour of their own
const LISTED = 300;  // categories in the legend at once, once more are asked for
// Viridis, which is as even to the colour-blind; on either ground without the end that would vanish in it.
const RAMPS = {
  light: ['#c7d92b', '#5ec962', '#21918c', '#3b528b', '#440154'],
  dark: ['#5a4a9c', '#3e78a8', '#21a585', '#7ad151', '#fde725'],
};

const legend = { by: 0, hidden: new Set(), only: -1, counts: [], low: 0, high: 1, listed: MOST };
const theme = { name: 'light', values: {} };

const chosen = () => points.colours[legend.by];
const colourOf = (variable) => (theme.values[variable] ??=
  getComputedStyle(document.documentElement).getPropertyValue(variable).trim());
const pixelOf = (colour) => {
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return (0xff000000 | blue << 16 | green << 8 | red) >>> 0;
};

function readTheme() {
  const set = document.documentElement.dataset.theme;
  theme.name = set ?? (matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light');
  theme.values = {};
  const other = theme.name === 'dark' ? 'Light' : 'Dark';
  $('#theme').textContent = other;
  $('#theme').setAttribute('aria-label', `${other} colours`);
  if (paint.context) { tint(); drawLegend(); }
}

function ramp(share) {
  const stops = RAMPS[theme.name], at = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2), rest = at - low;
  const part = (from) => Math.round(
    parseInt(stops[low].slice(from, from + 2), 16) * (1 - rest) + parseInt(stops[low + 1].slice(from, from + 2), 16) * rest);
  return '#' + [1, 3, 5].map((from) => part(from).toString(16).padStart(2, '0')).join('');
}

const categoryColour = (code) => (code < MOST ? PALETTES[theme.name][code] : colourOf('--other'));

/** Gives every point its pixel: 0 hides it. */
function tint() {
  const { names, values } = chosen();
  paint.ground = pixelOf(colourOf('--map'));
  paint.faint = pixelOf(colourOf('--faint'));
  if (paint.tints.length !== points.count) paint.tints = new Uint32Array(points.count);
  if (names) {
    const tints = names.map((_, code) => (legend.hidden.has(code) ? 0 : pixelOf(categoryColour(code))));
    for (let i = 0; i < points.count; i++) paint.tints[i] = tints[values[i]] ?? pixelOf(colourOf('--other'));
  } else {
    const steps = Array.from({ length: 256 }, (_, step) => pixelOf(ramp(step / 255)));
    const width = legend.high - legend.low || 1, none = pixelOf(colourOf('--other'));
    for (let i = 0; i < points.count; i++) {
      const step = Math.round((values[i] - legend.low) / width * 255);
      paint.tints[i] = Number.isNaN(step) ? none : steps[Math.min(Math.max(step, 0), 255)];
    }
  }
  repaint();
}

function colourBy(number) {
  Object.assign(legend, { by: number, only: -1, listed: MOST });
  legend.hidden.clear();
  const { names, values } = chosen();
  if (names) {
    legend.counts = new Uint32Array(names.length);
    for (const code of values) legend.counts[code]++;
  } else {
    const sorted = values.filter(Number.isFinite).sort();
    const at = (share) => sorted[Math.round(share * (sorted.length - 1))] ?? 0;
    // Few extreme values would leave the others one colour: those beyond get the end's.
    [legend.low, legend.middle, legend.high] = [at(0.01), at(0.5), at(0.99)];
    [legend.least, legend.most, legend.none] = [at(0), at(1), values.length - sorted.length];
  }
  if (!panel.set) paint.strong = null;
  $('#filter').value = '';
  tint();
  drawLegend();
}

/** The value of a point in the column by which points are coloured, as text. */
function valueOf(point, column = chosen()) {
  if (column.names) return column.names[column.values[point]] ?? '';
  const value = column.values[point];
  return Number.isNaN(value) ? '' : brief(value);
}

const brief = (value) => (Number.isInteger(value) ? thousands(value) : String(Number(value.toPrecision(4))));

function drawLegend() {
  const { names } = chosen();
  $('#filter').hidden = !names || names.length <= MOST;
  $('#every').hidden = !names || names.length < 2;
  if (!names) return $('#legend').replaceChildren(scale());
  const wanted = $('#filter').value.toLowerCase();
  const codes = [...names.keys()].filter((code) => names[code].toLowerCase().includes(wanted));
  const rest = codes.length - legend.listed, text = `${thousands(rest)} more`;
  const more = legend.listed < LISTED
    ? make('button', { type: 'button', onclick: listMore }, text)
    : make('span', { class: 'quiet' }, `and ${text}: filter by name`);
  $('#legend').replaceChildren(
    ...codes.slice(0, legend.listed).map(legendLine), ...(rest > 0 ? [make('li', {}, more)] : []));
}

function listMore() {
  legend.listed = LISTED;
  drawLegend();
  $$('#legend input')[MOST].focus();
}

function legendLine(code) {
  const name = chosen().names[code], shown = !legend.hidden.has(code);
  const box = make('input', { type: 'checkbox', 'aria-label': `show ${name}`,
    onchange: () => { toggle(code); } });
  box.checked = shown;
  const swatch = make('span', { class: 'swatch' });
  swatch.style.background = categoryColour(code);
  return make('li', { class: shown ? '' : 'off' }, box, make('button', {
    type: 'button', 'aria-pressed': String(legend.only === code), title: 'Show this one before all others',
    onclick: () => emphasise(code),
  }, swatch, foreign(name || '(none)'), make('span', { class: 'n' }, thousands(legend.counts[code]))));
}

function toggle(code) {
  if (!legend.hidden.delete(code)) legend.hidden.add(code);
  tint();
  for (const box of $$('#legend input')) box.closest('li').classList.toggle('off', !box.checked);
}

function showEvery() {
  const all = legend.hidden.size === 0;
  legend.hidden = new Set(all ? chosen().names.keys() : []);
  tint();
  drawLegend();
}

/** Shows the points of one category before the others, which become faint; once more, all as before. */
function emphasise(code) {
  legend.only = legend.only === code ? -1 : code;
  clearPanel();
  paint.strong = legend.only < 0 ? null : Uint8Array.from(chosen().values, (each) => Number(each === code));
  const lines = $$('#legend button');
  drawLegend();
  const at = lines.indexOf(document.activeElement);
  if (at >= 0) $$('#legend button')[at]?.focus();
  repaint();
}

function scale() {
  const bar = make('span', { class: 'ramp', role: 'img', 'aria-label': 'colours from the lowest to the highest value' });
  bar.style.background = `linear-gradient(90deg, ${[0, 0.25, 0.5, 0.75, 1].map(ramp).join(', ')})`;
  const { low, middle, high, least, most, none } = legend;
  return make('li', { class: 'scale' }, bar,
    make('span', { class: 'ends' }, ...[low, middle, high].map((value) => make('span', {}, brief(value)))),
    make('span', { class: 'quiet' },
      `1st percentile, median, 99th; all from ${brief(least)} to ${brief(most)}`
      + (none ? `; ${thousands(none)} without a value, grey` : '')));
}

function switchTheme() {
  const name = theme.name === 'dark' ? 'light' : 'dark';
  document.documentElement.dataset.theme = name;
  try { localStorage.setItem('embedx-theme', name); } catch { /* a page from mail may store nothing */ }
  readTheme();
}
