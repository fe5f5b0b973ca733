// The panel beside the map: a point with its neighbours, or a list of points.

const PAGE = 100;  // points that are listed at once

const panel = { set: null, title: '', listed: 0, from: null, lowered: null };

const say = (text) => { $('#said').textContent = text; };

/** What is said of a point beside its key: the split, and the value by which it is coloured. */
function aboutOf(point) {
  const split = points.splitNames[points.splits[point]] ?? '', value = valueOf(point), { title } = chosen();
  if (title === 'split' || !value) return [foreign(split)];
  return [foreign(split), ' · ', foreign(chosen().names ? value : `${title} ${value}`)];
}

function select(point) {
  paint.selected = point;
  if (point >= 0) {
    const outside = view.left(points.x[point]) < 10 || view.left(points.x[point]) > view.width - 10
      || view.top(points.y[point]) < 10 || view.top(points.y[point]) > view.height - 10;
    if (outside) moveTo([point]);
  }
  repaint();
}

function showPoint(point, centred = false) {
  if (centred) moveTo([point]);
  select(point);
  const found = new Map([['split', points.splitNames[points.splits[point]] ?? '']]);
  const add = (title, value) => { if (value && !found.has(title)) found.set(title, value); };
  const whole = new Map(points.metadata.map(({ title, values }) => [title, values[point]]));
  for (const column of points.colours) add(column.title, whole.get(column.title) || valueOf(point, column));
  for (const [title, value] of whole) add(title, value);
  const facts = make('dl', {}, ...[...found].flatMap(
    ([title, value]) => [make('dt', {}, title), make('dd', {}, foreign(value))]));
  const near = neighboursOf(point).map(({ point: other, similarity }) => make('li', {},
    pictureOf(other),
    keyButton(other, () => showPoint(other)),
    make('span', { class: 'about' }, make('b', {}, similarity.toFixed(3)), ' ', ...aboutOf(other))));
  const back = panel.set ? make('button', { type: 'button', onclick: showSet }, '← the list')
    : panel.from !== null ? make('button', { type: 'button', onclick: goBack }, '← back to where you were') : null;
  fill(
    make('div', { class: 'actions' }, back,
      make('button', { type: 'button', onclick: () => moveTo([point]) }, 'Centre'),
      make('button', { type: 'button', onclick: (event) => copy(points.keys[point], event.target) }, 'Copy key'),
      make('button', { type: 'button', onclick: clearPanel }, 'Close')),
    make('div', { class: 'subject' }, pictureOf(point), make('h3', { class: 'whole', dir: 'auto' }, points.keys[point])),
    facts,
    make('h4', {}, !near.length ? 'No neighbours: the row is zero or not finite'
      : `Nearest ${points.isSample ? 'among the points on the map' : 'neighbours'}, by cosine similarity`),
    make('ol', { class: 'cards' }, ...near));
  say(`Selected: ${points.keys[point].slice(0, 200)}`);
  revealPanel();
}

/** Lists points, and makes the others faint. */
function showPoints(found, title) {
  Object.assign(panel, { set: found, title, listed: PAGE, from: null });
  legend.only = -1;
  paint.strong = new Uint8Array(points.count);
  for (const point of found) paint.strong[point] = 1;
  showSet();
  drawLegend();
  say(`${title}: ${thousands(found.length)} points`);
}

function showSet() {
  select(-1);
  const { set, title, listed } = panel;
  fill(
    make('h3', {}, `${title}: ${thousands(set.length)} ${set.length === 1 ? 'point' : 'points'}`),
    make('div', { class: 'actions' },
      make('button', { type: 'button', onclick: (event) => copy(set.map((each) => points.keys[each]).join('\n'), event.target) }, 'Copy keys'),
      make('button', { type: 'button', onclick: download }, 'Download'),
      make('button', { type: 'button', onclick: () => moveTo(set) }, 'Zoom to them'),
      make('button', { type: 'button', onclick: clearPanel }, 'Close')),
    counts(set),
    make('ol', { class: 'keys' }, ...set.slice(0, listed).map((point) => make('li', {},
      keyButton(point, () => showPoint(point)),
      make('span', { class: 'about' }, ...aboutOf(point))))),
    set.length > listed
      ? make('button', { type: 'button', onclick: () => { panel.listed += PAGE; showSet(); } },
        `${thousands(Math.min(PAGE, set.length - listed))} more of ${thousands(set.length - listed)}`)
      : null);
  repaint();
}

/** Counts points by the categories of the chosen column, or of the first that has some. */
function counts(set) {
  const column = chosen().names ? chosen() : points.colours.find(({ names }) => names);
  if (!column) return null;
  const found = new Map();
  for (const point of set) found.set(column.values[point], (found.get(column.values[point]) ?? 0) + 1);
  const sorted = [...found].sort((a, b) => b[1] - a[1] || a[0] - b[0]), rest = sorted.slice(12);
  const line = (name, count) => make('tr', {}, make('td', {}, name), make('td', { class: 'n' }, thousands(count)),
    make('td', { class: 'n' }, `${(100 * count / set.length).toFixed(1)} %`));
  const more = rest.length ? line(`${thousands(rest.length)} others`, rest.reduce((sum, [, count]) => sum + count, 0)) : null;
  return make('table', { class: 'counts' }, make('tbody', {},
    ...sorted.slice(0, 12).map(([code, count]) => line(foreign(column.names[code] || '(none)'), count)),
    ...(more ? [more] : [])));
}

function fill(...contents) {
  const box = $('#chosen');
  const inside = box.contains(document.activeElement);
  box.replaceChildren(...contents.filter((each) => each !== null));
  box.scrollTop = 0;
  if (inside) box.focus({ preventScroll: true });  // else the button that is gone would take the focus with it
  $('#map').classList.add('chosen');
}

/** Scrolls to the panel where it is below the map, as on a telephone. */
function revealPanel() {
  if (matchMedia('(max-width: 52rem)').matches) $('#chosen').scrollIntoView({ block: 'nearest' });
}

function clearPanel() {
  Object.assign(panel, { set: null, from: null });
  paint.lasso = [];
  if (legend.only < 0) paint.strong = null;
  walked.clear();
  select(-1);
  $('#search').value = '';
  $('#map').classList.remove('chosen');
  $('#chosen').replaceChildren(make('p', { class: 'quiet' }, 'Click a point to see its picture and its neighbours.'));
}

function search() {
  const wanted = $('#search').value.toLowerCase();
  if (!wanted) return clearPanel();
  panel.lowered ??= points.keys.map((key) => key.toLowerCase());
  const found = [];
  for (let i = 0; i < points.count; i++) if (panel.lowered[i].includes(wanted)) found.push(i);
  paint.lasso = [];
  showPoints(found, 'Keys that match');
}

/** Shows the point of a list elsewhere on the page. */
function showFromList(button) {
  panel.set = null;
  paint.strong = null;
  paint.lasso = [];
  legend.only = -1;
  panel.from = { top: scrollY, button };
  showPoint(Number(button.dataset.point), true);
  drawLegend();
  $('#map').scrollIntoView();
  $('#chosen').focus({ preventScroll: true });
}

function goBack() {
  const { top, button } = panel.from;
  clearPanel();
  scrollTo(0, top);
  button.focus({ preventScroll: true });
}

async function copy(text, button) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = 'Copied';
  } catch {
    const area = make('textarea', { class: 'away' });
    area.value = text;
    document.body.append(area);
    area.select();
    button.textContent = document.execCommand('copy') ? 'Copied' : 'Not copied';
    area.remove();
  }
  setTimeout(() => { button.textContent = label; }, 1500);
}

/** Saves the listed points as JSON lines, in which every key is exact. */
function download() {
  const lines = panel.set.map((point) => JSON.stringify({
    split: points.splitNames[points.splits[point]] ?? '', key: points.keys[point] }));
  const address = URL.createObjectURL(new Blob([lines.join('\n') + '\n'], { type: 'application/jsonl' }));
  make('a', { href: address, download: 'keys.jsonl' }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
