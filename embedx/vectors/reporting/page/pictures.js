// Pictures: cut from one long string of base64 when they come into view.

const album = { base64: '', starts: [0], faults: {}, none: '' };

/** Fills a box: with its picture, or with the reason why there is none. */
function develop(box) {
  if (box.childNodes.length) return;
  const number = Number(box.dataset.picture);
  const base64 = album.base64.slice(album.starts[number], album.starts[number + 1]);
  if (!base64) return blank(box, album.faults[number] ?? album.none);
  const address = URL.createObjectURL(new Blob([bytesOf(base64)]));
  const image = make('img', { alt: '', decoding: 'async' });
  image.addEventListener('load', () => URL.revokeObjectURL(address));
  image.addEventListener('error', () => { URL.revokeObjectURL(address); blank(box, 'can’t be shown'); });
  image.src = address;
  box.replaceChildren(image);
}

function blank(box, reason) {
  box.classList.add('blank');
  box.replaceChildren(make('span', {}, reason));
}

const inView = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    inView.unobserve(entry.target);
    develop(entry.target);
  }
}, { rootMargin: '400px' });

/** Makes the box of a point's picture. */
function pictureOf(point) {
  const box = make('span', { class: 'picture', 'data-picture': points.picture[point] });
  inView.observe(box);
  return box;
}

function openAlbum() {
  album.base64 = $('#pictures').textContent;
  Object.assign(album, json('album'));
  for (const box of $$('.picture[data-picture]')) inView.observe(box);
  addEventListener('beforeprint', () => $$('.picture[data-picture]').forEach(develop));
}
