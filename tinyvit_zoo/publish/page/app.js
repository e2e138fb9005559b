// The page: images from files, the clipboard, the webcam or a drawing; classes of several models side by side.
import {asDigit, preprocess} from './preprocess.js';

/** @typedef {import('./preprocess.js').Pixels} Pixels */
/** @typedef {{title: string, pixels: Pixels, drawn?: boolean, button?: HTMLButtonElement}} Item */
/**
 * @typedef {import('./preprocess.js').Transform & {title: string, file: string, integrity: string, megabytes: number,
 *   parameters: number, labels: string[], temperature: number | null, multi_label: boolean, looks: string,
 *   stride: number[], digit: {side: number, margin: number} | null}} Model
 */
/** @typedef {Model & {on: boolean, session?: Promise<any>, card?: HTMLElement}} Entry */

const SHOWN = 5, ACTIVE = 3;    // classes of a model; models that are on at first
const HEAT = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];     // inferno

/** @template {HTMLElement} T @param {string} id @param {new () => T} type @returns {T} */
function element(id, type) {
  const found = document.getElementById(id);
  if (!(found instanceof type)) throw new Error(`The page has no ${id}.`);
  return found;
}

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag @param {Partial<HTMLElementTagNameMap[K]>} [properties] @param {(Node | string)[]} children
 * @returns {HTMLElementTagNameMap[K]}
 */
function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/** @param {HTMLCanvasElement} canvas */
function pencil(canvas) {
  return /** @type {CanvasRenderingContext2D} */ (canvas.getContext('2d', {willReadFrequently: true}));
}

const files = element('files', HTMLInputElement), camera = element('camera', HTMLButtonElement);
const draw = element('draw', HTMLButtonElement), paper = element('paper', HTMLCanvasElement);
const video = element('video', HTMLVideoElement), looks = element('looks', HTMLInputElement);
const ink = pencil(paper);
/** @type {any} */ let ort;
/** @type {Entry[]} */ let models = [];
/** @type {Item[]} */ const items = [];
/** @type {Item | null} */ let waiting = null;
/** @type {Item | null} */ let chosen = null;
let busy = false;

/** @param {string} text @param {boolean} [bad] */
function say(text, bad = false) {
  const status = element('status', HTMLParagraphElement);
  status.textContent = text;
  status.classList.toggle('bad', bad);
}

/** @param {string} url @param {string} integrity */
async function fetched(url, integrity) {
  const response = await fetch(url, {integrity});
  if (!response.ok) throw new Error(`${url} cannot be loaded (${response.status}).`);
  return response;
}

/** @param {{module: string, wasm: string, integrity: Record<string, string>}} runtime */
async function startRuntime({module, wasm, integrity}) {
  const [code, binary] = await Promise.all([module, wasm].map(
    async url => (await fetched(url, integrity[url])).arrayBuffer()));
  const address = URL.createObjectURL(new Blob([code], {type: 'text/javascript'}));
  ort = await import(address);
  ort.env.wasm.wasmBinary = binary;
}

/** @param {Entry} model @returns {Promise<any>} its session, loaded once */
function session(model) {
  model.session ??= (async () => {
    const bytes = await (await fetched(model.file, model.integrity)).arrayBuffer();
    const made = await ort.InferenceSession.create(bytes, {executionProviders: ['wasm']});
    const size = model.input_size.reduce((a, b) => a * b);
    await made.run({images: new ort.Tensor('float32', new Float32Array(size), [1, ...model.input_size])});  // warm
    return made;
  })();
  return model.session;
}

/** @param {Float32Array} logits @param {Model} model @returns {number[]} */
function probabilities(logits, model) {
  const scaled = Array.from(logits, value => value / (model.temperature ?? 1));
  if (model.multi_label) return scaled.map(value => 1 / (1 + Math.exp(-value)));
  const top = scaled.reduce((a, b) => Math.max(a, b)), powers = scaled.map(value => Math.exp(value - top));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map(value => value / sum);
}

/** @param {Item} item @param {Entry} model */
async function classify(item, model) {
  const pixels = item.drawn && model.digit ? asDigit(item.pixels, model.digit) : item.pixels;
  if (!pixels) return null;
  const running = await session(model), {seen, tensor} = preprocess(pixels, model);
  const begun = performance.now();
  const outputs = await running.run({images: new ort.Tensor('float32', tensor, [1, ...model.input_size])});
  const milliseconds = performance.now() - begun;
  return {model: model.title, seen, milliseconds, probabilities: probabilities(outputs.logits.data, model),
    look: outputs.looks ? {values: Array.from(outputs.looks.data), dims: outputs.looks.dims.slice(1)} : null};
}

/** Classify the last item that was asked for, by every model that is on. @param {Item} item */
async function show(item) {
  waiting = chosen = item;
  for (const each of items) each.button?.setAttribute('aria-pressed', String(each === item));
  if (busy) return;
  busy = true;
  while (waiting) {
    const current = waiting, found = [];
    waiting = null;
    for (const model of models.filter(each => each.on)) {
      try {
        const result = await classify(current, model);
        if (result) found.push(result);
        if (result) render(model, result);
      } catch (error) {
        say(`${model.title} cannot run here: ${error instanceof Error ? error.message : error}`, true);
      }
    }
    if (!video.srcObject && found.length) {
      const said = found.map(each => `${best(each)} by ${each.model}`).join(', ');
      say(`${current.title}: ${said}.`);
    }
    document.dispatchEvent(new CustomEvent('classified', {detail: {title: current.title, results: found}}));
  }
  busy = false;
}

/** @param {{model: string, probabilities: number[]}} result */
function best({model, probabilities: shares}) {
  const entry = /** @type {Entry} */ (models.find(each => each.title === model));
  const place = shares.indexOf(shares.reduce((a, b) => Math.max(a, b)));
  return entry.multi_label && shares[place] <= 0.5 ? 'none above 50 %' : entry.labels[place];
}

/** @param {Entry} model @param {NonNullable<Awaited<ReturnType<typeof classify>>>} result */
function render(model, result) {
  const ranked = result.probabilities.map((share, place) => ({share, label: model.labels[place]}))
    .sort((a, b) => b.share - a.share);
  const rows = model.multi_label ? ranked.filter(({share}) => share > 0.5) : ranked.slice(0, SHOWN);
  const list = make('ol', {}, ...rows.map(({share, label}) => {
    const bar = make('i');
    bar.style.width = `${100 * share}%`;
    return make('li', {}, bar, make('span', {textContent: label}),
      make('span', {textContent: `${(100 * share).toFixed(2)} %`}));
  }));
  if (!rows.length) list.append(make('li', {textContent: 'none above 50 %'}));
  const canvas = make('canvas', {className: 'seen'});
  canvas.setAttribute('role', 'img');
  const seen = picture(canvas, result, model);
  canvas.setAttribute('aria-label', `The image as ${model.title} sees it${seen ? ', with where it looks' : ''}`);
  const facts = `${(model.parameters / 1e6).toFixed(2)} M parameters, ${model.input_size.slice(1).join(' × ')} pixels, ` +
    `${result.milliseconds.toFixed(1)} ms`;
  const card = model.card ??= element('results', HTMLDivElement).appendChild(make('article'));
  card.replaceChildren(make('h2', {textContent: model.title}), make('p', {className: 'faint', textContent: facts}),
    canvas, make('p', {className: 'faint', textContent: seen || (looks.checked ? model.looks : '')}), list);
}

/**
 * Draw what the model sees and, where it is wanted and known, how much each part counts; return a caption.
 * @param {HTMLCanvasElement} canvas @param {{seen: Pixels, look: any}} result @param {Model} model
 */
function picture(canvas, {seen, look}, model) {
  const grey = looks.checked && look, size = Math.max(1, Math.round(256 / seen.width));
  const pixels = new ImageData(seen.width, seen.height);
  for (let i = 0; i < seen.width * seen.height; i++) {
    let rgb = [0, 1, 2].map(c => seen.data[i * seen.channels + c % seen.channels]);
    if (grey) rgb = rgb.map(() => (rgb[0] + rgb[1] + rgb[2]) / 3 * 0.8 + 25);
    pixels.data.set([...rgb, 255], 4 * i);
  }
  const small = make('canvas', {width: seen.width, height: seen.height});
  pencil(small).putImageData(pixels, 0, 0);
  Object.assign(canvas, {width: size * seen.width, height: size * seen.height});
  const pen = pencil(canvas);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(small, 0, 0, canvas.width, canvas.height);
  if (!grey) return '';
  const [rows, cols] = look.dims, [down, right] = model.stride, most = Math.max(...look.values);
  for (let i = 0; i < rows * cols; i++) {     // at least twice a uniform share is full: uniform looks uniform
    const heat = look.values[i] / Math.max(most, 2 / (rows * cols)), place = heat * (HEAT.length - 1);
    const low = Math.min(Math.floor(place), HEAT.length - 2);
    const rgb = HEAT[low].map((value, c) => value + (HEAT[low + 1][c] - value) * (place - low));
    pen.fillStyle = `rgb(${rgb.join()}, ${0.2 + 0.45 * heat})`;
    pen.fillRect(i % cols * right * size, Math.floor(i / cols) * down * size, right * size, down * size);
  }
  return `Where it looks: ${model.looks}, at most ${(most * rows * cols).toFixed(1)} times a uniform share`;
}

/** Return pixels as they are in the file, upright, at most 16 million. @param {ImageBitmap | HTMLVideoElement} image */
function pixelsOf(image) {
  const [w, h] = 'videoWidth' in image ? [image.videoWidth, image.videoHeight] : [image.width, image.height];
  const scale = Math.min(1, Math.sqrt(16e6 / (w * h)));
  const canvas = make('canvas', {width: Math.max(1, w * scale), height: Math.max(1, h * scale)});
  const pen = pencil(canvas);
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  const {data} = pen.getImageData(0, 0, canvas.width, canvas.height);
  return {data, width: canvas.width, height: canvas.height, channels: 4};
}

/** @param {Blob} blob @param {string} title @returns {Promise<Item | null>} */
async function add(blob, title) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, {premultiplyAlpha: 'none', colorSpaceConversion: 'none'});
  } catch {
    say(`${title} is no image that this browser reads: take a PNG, JPEG or WebP file.`, true);
    return null;
  }
  /** @type {Item} */ const item = {title, pixels: pixelsOf(bitmap)};
  const picture = make('img', {src: URL.createObjectURL(blob), alt: title, title,
    className: bitmap.width < 56 ? 'small' : ''});
  item.button = make('button', {type: 'button', onclick: () => { stop(); show(item); }}, picture);
  element('images', HTMLUListElement).append(make('li', {}, item.button));
  items.push(item);
  return item;
}

/** @param {Iterable<File>} given */
async function addAll(given) {
  stop();
  let last = null;
  for (const file of given) last = await add(file, file.name || 'pasted image') ?? last;
  if (last) await show(last);
}

function stop() {
  if (video.srcObject instanceof MediaStream) video.srcObject.getTracks().forEach(track => track.stop());
  video.srcObject = null;
  video.hidden = true;
  camera.setAttribute('aria-pressed', 'false');
}

async function watch() {
  if (video.srcObject) return stop();
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({video: {facingMode: 'environment'}});
  } catch {
    return say('The webcam cannot be used: allow it in the browser, or choose images.', true);
  }
  camera.setAttribute('aria-pressed', 'true');
  video.hidden = false;
  await video.play();
  say('Classifying what the webcam sees.');
  while (video.srcObject) {
    if (video.videoWidth) await show({title: 'webcam', pixels: pixelsOf(video)});
    await new Promise(resolve => setTimeout(resolve, 100));
  }
}

function drawing() {
  const {data, width, height} = ink.getImageData(0, 0, paper.width, paper.height);
  show({title: 'drawing', pixels: {data, width, height, channels: 4}, drawn: true});
}

function listenToPen() {
  Object.assign(ink, {lineWidth: 30, lineCap: 'round', lineJoin: 'round', strokeStyle: '#fff'});
  /** @param {PointerEvent} event */
  const point = event => /** @type {[number, number]} */ ([event.offsetX, event.offsetY].map(
    value => value * paper.width / paper.clientWidth));
  paper.onpointerdown = event => {
    paper.setPointerCapture(event.pointerId);
    stop();
    ink.beginPath();
    ink.moveTo(...point(event));
    paper.onpointermove = moved => {
      ink.lineTo(...point(moved));
      ink.stroke();
    };
  };
  paper.onpointerup = paper.onpointercancel = () => {
    if (paper.onpointermove) drawing();
    paper.onpointermove = null;
  };
  element('clear', HTMLButtonElement).onclick = () => ink.clearRect(0, 0, paper.width, paper.height);
  draw.onclick = () => {
    const board = element('board', HTMLDivElement);
    board.hidden = !board.hidden;
    draw.setAttribute('aria-pressed', String(!board.hidden));
  };
}

function listen() {
  const inputs = element('inputs', HTMLElement);
  const again = () => chosen && !video.srcObject && show(chosen);
  files.onchange = () => addAll(files.files ?? []).then(() => { files.value = ''; });
  camera.onclick = watch;
  looks.onchange = again;
  document.ondragover = event => { event.preventDefault(); inputs.classList.add('over'); };
  document.ondragleave = () => inputs.classList.remove('over');
  document.ondrop = event => {
    event.preventDefault();
    inputs.classList.remove('over');
    addAll(event.dataTransfer?.files ?? []);
  };
  document.onpaste = event => addAll(event.clipboardData?.files ?? []);
  listenToPen();
  const fieldset = element('models', HTMLFieldSetElement);
  for (const model of models) {
    const box = make('input', {type: 'checkbox', checked: model.on, onchange: () => {
      model.on = box.checked;
      if (!model.on) model.card = void model.card?.remove();
      again();
    }});
    fieldset.append(make('label', {}, box, ` ${model.title} (${model.megabytes.toFixed(1)} MB)`));
  }
  fieldset.hidden = models.length < 2;
  draw.hidden = !models.some(model => model.digit);
  element('looking', HTMLLabelElement).hidden = !models.some(model => model.stride.length);
}

async function start() {
  const page = await (await fetched('models.json', '')).json();
  models = page.models.map((/** @type {Model} */ model, /** @type {number} */ i) => ({...model, on: i < ACTIVE}));
  element('footer', HTMLElement).textContent = page.about;
  listen();
  await startRuntime(page.runtime);
  for (const {file, title} of page.examples) await add(await (await fetched(file, '')).blob(), title);
  say('Choose an image.');
  if (items.length) await show(items[0]);
  document.body.dataset.ready = 'true';
}

start().catch(error => say(`The page cannot start: ${error.message}`, true));
