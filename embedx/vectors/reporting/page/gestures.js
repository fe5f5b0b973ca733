// Gestures: what pointers, wheel and keys do to the map.

const hand = {
  pointers: new Map(),  // those that are down, by their numbers: where each is
  start: null,          // where the first one went down
  moved: false,
  lassoing: false,      // drawing a lasso now
  lassoMode: false,     // the lasso's button is pressed
  scrolled: -1000,      // when the page was last scrolled
};

const spot = (event) => {
  const box = paint.canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};

function listen() {
  const canvas = paint.canvas;
  canvas.addEventListener('pointerdown', pressed);
  canvas.addEventListener('pointermove', moved);
  canvas.addEventListener('pointerup', released);
  canvas.addEventListener('pointercancel', released);
  canvas.addEventListener('pointerleave', () => hover(-1));
  canvas.addEventListener('wheel', wheeled, { passive: false });
  canvas.addEventListener('keydown', typed);
  canvas.addEventListener('focus', () => { paint.cross = canvas.matches(':focus-visible'); repaint(); });
  canvas.addEventListener('blur', () => { paint.cross = false; repaint(); });
  addEventListener('scroll', () => { hand.scrolled = performance.now(); }, { passive: true });
}

function pressed(event) {
  if (event.button > 0) return;
  paint.canvas.setPointerCapture(event.pointerId);
  hand.pointers.set(event.pointerId, spot(event));
  paint.cross = false;
  if (hand.pointers.size > 1) { hand.moved = true; hand.lassoing = false; paint.lasso = []; return; }
  hand.start = spot(event);
  hand.moved = false;
  hand.lassoing = hand.lassoMode || event.shiftKey;
  if (hand.lassoing) paint.lasso = [[view.xAt(hand.start[0]), view.yAt(hand.start[1])]];
}

function moved(event) {
  const [left, top] = spot(event), before = hand.pointers.get(event.pointerId);
  if (!before) return event.pointerType === 'touch' ? undefined : hover(pointAt(left, top, 9), left, top);
  if (Math.hypot(left - hand.start[0], top - hand.start[1]) > 4) hand.moved = true;
  if (!hand.moved) return;
  hover(-1);
  if (hand.lassoing) drawLasso(left, top);
  else if (hand.pointers.size === 2) pinch(event.pointerId, before, [left, top]);
  else if (hand.pointers.size === 1) pan(left - before[0], top - before[1]);
  hand.pointers.set(event.pointerId, [left, top]);
}

function pinch(number, before, now) {
  const [other] = [...hand.pointers].filter(([each]) => each !== number).map(([, place]) => place);
  const apart = (place) => Math.max(Math.hypot(place[0] - other[0], place[1] - other[1]), 1);
  pan((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
  zoom(apart(now) / apart(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
}

function drawLasso(left, top) {
  const [x, y] = paint.lasso.at(-1);
  if (Math.hypot(view.left(x) - left, view.top(y) - top) < 3) return;
  paint.lasso.push([view.xAt(left), view.yAt(top)]);
  repaint();
}

function released(event) {
  if (!hand.pointers.delete(event.pointerId)) return;
  if (event.type === 'pointercancel') { hand.lassoing = false; paint.lasso = []; repaint(); return; }
  const [left, top] = spot(event);
  if (hand.lassoing && hand.moved) endLasso();
  else if (!hand.moved) {
    const point = pointAt(left, top, event.pointerType === 'touch' ? 20 : 9);
    if (point >= 0) showPoint(point);
    else clearPanel();
  }
  hand.lassoing = false;
  if (!hand.pointers.size) hand.moved = false;
}

function endLasso() {
  const chosen = paint.lasso.length > 2 ? pointsWithin(paint.lasso) : [];
  setLassoMode(false);
  if (chosen.length) showPoints(chosen, 'Inside the lasso');
  else { paint.lasso = []; say('No point is inside the lasso.'); repaint(); }
}

function setLassoMode(on) {
  hand.lassoMode = on;
  $('#lasso').setAttribute('aria-pressed', String(on));
  paint.canvas.classList.toggle('lassoing', on);
}

function wheeled(event) {
  const out = event.deltaY > 0;
  // Who scrolls the page over the map goes on scrolling, and so does who can't zoom out further.
  if (!event.ctrlKey && (performance.now() - hand.scrolled < 300 || (out && zoomed() <= 1.001))) return;
  event.preventDefault();
  const lines = event.deltaMode === 1 ? 16 : 1, speed = event.ctrlKey ? 0.01 : 0.0018;
  const step = Math.exp(-Math.min(Math.max(event.deltaY * lines, -300), 300) * speed);
  const [left, top] = spot(event);
  if (out && zoomed() * step < 1.02) return fit();
  zoom(step, left, top);
}

const KEYS = {
  ArrowLeft: () => pan(60, 0), ArrowRight: () => pan(-60, 0),
  ArrowUp: () => pan(0, 60), ArrowDown: () => pan(0, -60),
  '+': () => zoom(1.4), '=': () => zoom(1.4), '-': () => zoom(1 / 1.4), 0: fit,
  Enter: () => chooseMiddle(), ' ': () => chooseMiddle(),
  n: () => nextNeighbour(), Escape: () => { setLassoMode(false); clearPanel(); },
  '/': () => $('#search').focus(),
};

function typed(event) {
  const action = KEYS[event.key];
  if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  paint.cross = true;
  action();
  repaint();
}

function chooseMiddle() {
  const point = pointAt(view.width / 2, view.height / 2, Math.max(view.width, view.height));
  if (point >= 0) showPoint(point);
}

/** Goes to the nearest neighbour of the selected point that was not selected yet. */
const walked = new Set();
function nextNeighbour() {
  if (paint.selected < 0) return chooseMiddle();
  walked.add(paint.selected);
  const next = neighboursOf(paint.selected).find(({ point }) => !walked.has(point));
  if (next) showPoint(next.point, true);
}

function hover(point, left, top) {
  const tip = $('#tip');
  paint.canvas.classList.toggle('on-point', point >= 0);
  tip.hidden = point < 0;
  if (point >= 0) {
    if (paint.hovered !== point) tip.replaceChildren(foreign(points.keys[point]), make('span', {}, ...aboutOf(point)));
    tip.style.left = `${Math.min(left + 14, Math.max(view.width - tip.offsetWidth - 4, 0))}px`;
    tip.style.top = `${top + 18 + tip.offsetHeight > view.height ? top - tip.offsetHeight - 8 : top + 18}px`;
  }
  if (paint.hovered === point) return;
  paint.hovered = point;
  repaint();
}
