// The beginning: the lists are on the page already; pictures and the map come after the first paint.

function buildMap() {
  document.documentElement.classList.add('mapped');  // what is hidden has no size
  paint.canvas = $('#canvas');
  paint.context = paint.canvas.getContext('2d', { alpha: false });
  fillGrid();
  Object.assign(bounds, boundsOf(grid.members));
  mixOrder();
  const by = $('#by');
  for (const [number, { title }] of points.colours.entries()) by.append(make('option', { value: number }, title));
  by.addEventListener('change', () => colourBy(Number(by.value)));
  colourBy(0);
  new ResizeObserver(resizeCanvas).observe(paint.canvas);
  resizeCanvas();
  fit();
  listen();
  let pause = 0;
  $('#search').addEventListener('input', () => { clearTimeout(pause); pause = setTimeout(search, 120); });
  $('#search').addEventListener('keydown', (event) => {
    if (event.key === 'Escape') clearPanel();
    if (event.key !== 'Enter') return;
    clearTimeout(pause);
    search();
    if (panel.set?.length === 1) showPoint(panel.set[0], true);
    else if (panel.set?.length) moveTo(panel.set);
  });
  $('#filter').addEventListener('input', drawLegend);
  $('#every').addEventListener('click', showEvery);
  $('#lasso').addEventListener('click', () => setLassoMode(!hand.lassoMode));
  $('#seen').addEventListener('click', () => {
    const [west, east] = [view.xAt(0), view.xAt(view.width)], [north, south] = [view.yAt(0), view.yAt(view.height)];
    showPoints(pointsWithin([[west, north], [east, north], [east, south], [west, south]]), 'In view');
  });
  $('#in').addEventListener('click', () => zoom(1.6));
  $('#out').addEventListener('click', () => zoom(1 / 1.6));
  $('#fit').addEventListener('click', fit);
  $('#chosen').addEventListener('keydown', (event) => { if (event.key === 'Escape') clearPanel(); });
  paint.canvas.setAttribute('aria-label', `Map of ${thousands(points.count)} rows`);
  $('#map').setAttribute('aria-busy', 'false');
  clearPanel();
}

function begin() {
  try {
    const stored = localStorage.getItem('embedx-theme');
    if (stored === 'light' || stored === 'dark') document.documentElement.dataset.theme = stored;
  } catch { /* a page from mail may read nothing */ }
  document.documentElement.classList.add('js');
  readTheme();
  $('#theme').addEventListener('click', switchTheme);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', readTheme);
  document.addEventListener('click', (event) => {
    const button = event.target.closest('button.key');
    if (!button || button.closest('#map')) return;
    if (button.dataset.point && paint.context) showFromList(button);
    else button.classList.toggle('whole');
  });
  requestAnimationFrame(() => setTimeout(async () => {
    openAlbum();
    if (!points.count && !json('directory').count) return;
    try {
      await unpack();
    } catch (error) {
      $('#loading').textContent = typeof DecompressionStream === 'undefined'
        ? 'This browser is too old for the map; all else is shown.' : `The map can’t be shown: ${error.message}`;
      return;
    }
    buildMap();
  }));
}

begin();
