// The contents of the page: unpacked from the strings that stand in it.

const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const json = (id) => JSON.parse($('#' + id).textContent);

/** Makes an element. Texts become its text, never HTML. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Makes the text of a key, class or other value of the store: it keeps its own direction of writing. */
const foreign = (text, className = 'foreign') => make('bdi', { class: className, dir: 'auto' }, text);

/** Makes a button with a key: of a long one, the folder is cut before the last part is. */
function keyButton(point, onclick) {
  const key = points.keys[point], place = key.lastIndexOf('/', key.length - 2) + 1;
  return make('button', { type: 'button', class: 'key', dir: 'auto', onclick },
    ...[key.slice(0, place), key.slice(place)].filter(Boolean).map((part) => make('span', {}, part)));
}

const thousands = (number) => number.toLocaleString('en');

function bytesOf(base64) {
  const letters = atob(base64);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes;
}

/** The points: their number, and by name an array with a value for each. */
const points = { count: 0 };

async function unpack() {
  const directory = json('directory');
  const packed = new Blob([bytesOf($('#packed').textContent)]);
  const stream = packed.stream().pipeThrough(new DecompressionStream('deflate'));
  const buffer = await new Response(stream).arrayBuffer();
  const column = ({ kind, begin, bytes }) => {
    if (kind === 'texts') return JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, begin, bytes)));
    const Kind = { Uint16: Uint16Array, Int16: Int16Array, Int32: Int32Array, Float32: Float32Array }[kind];
    return new Kind(buffer, begin, bytes / Kind.BYTES_PER_ELEMENT);
  };
  points.count = directory.count;
  points.isSample = directory.is_sample;
  for (const [name, place] of Object.entries(directory.columns)) points[name] = column(place);
  points.colours = directory.colours.map((each) => ({ ...each, values: column(each.column) }));
  points.metadata = directory.metadata.map((each) => ({ title: each.title, values: column(each.column) }));
  points.splitNames = json('splits');
}

/** The nearest points of one, with their similarities. */
function neighboursOf(point) {
  const found = [];
  for (let at = point; at < points.neighbours.length; at += points.count) {
    const other = points.neighbours[at];
    if (other >= 0 && other < points.count) found.push({ point: other, similarity: points.similarities[at] / 1000 });
  }
  return found;
}
