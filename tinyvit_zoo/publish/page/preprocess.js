// The evaluation transform of timm, from 8-bit pixels to a normalised tensor: to the bit what Pillow 13 and torchvision give.

/** @typedef {{data: Uint8Array | Uint8ClampedArray, width: number, height: number, channels: number}} Pixels */
/**
 * @typedef {{input_size: number[], interpolation: string, crop_pct: number, crop_mode: string,
 *   mean: number[], std: number[]}} Transform
 */

const BITS = 22;    // of the fraction of Pillow's weights

/** @type {Record<string, [number, (x: number) => number]>} support and filter, by timm's names */
const FILTERS = {
  box: [0.5, x => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bilinear: [1, x => Math.max(0, 1 - Math.abs(x))],
  bicubic: [2, x => {
    const a = -0.5, t = Math.abs(x);
    if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
    return t < 2 ? (((t - 5) * t + 8) * t - 4) * a : 0;
  }],
  hamming: [1, x => {
    const t = Math.abs(x) * Math.PI;
    return t === 0 ? 1 : t < Math.PI ? (Math.sin(t) / t) * (0.54 + 0.46 * Math.cos(t)) : 0;
  }],
  lanczos: [3, x => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

/** @param {number} x */
function sinc(x) {
  return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
}

/** Round as Python does, halves to the even number. @param {number} x */
function round(x) {
  const low = Math.floor(x), part = x - low;
  return part > 0.5 || (part === 0.5 && low % 2 !== 0) ? low + 1 : low;
}

/**
 * Return, for each of `out` pixels, the first of the `count` source pixels and their weights in fixed point.
 * @param {number} count @param {number} out @param {string} interpolation
 */
function weights(count, out, interpolation) {
  const [reach, filter] = FILTERS[interpolation];
  const scale = count / out, stretch = Math.max(scale, 1), support = reach * stretch;
  return Array.from({length: out}, (_, place) => {
    const centre = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(count, Math.trunc(centre + support + 0.5));
    const values = Array.from({length: end - first}, (_, i) => filter((i + first - centre + 0.5) * (1 / stretch)));
    const sum = values.reduce((total, value) => total + value, 0);
    return {first, taps: values.map(value => {
      const share = sum === 0 ? value : value / sum;
      return Math.trunc(share * 2 ** BITS + (share < 0 ? -0.5 : 0.5));
    })};
  });
}

/**
 * Resize as Pillow 13 does: across, then down, rounded to 8 bits in between; down first where that loses far more.
 * @param {Pixels} image @param {number} width @param {number} height @param {string} interpolation
 * @returns {Pixels}
 */
export function resize(image, width, height, interpolation) {
  const {channels} = image;
  if (!FILTERS[interpolation]) throw new Error(`There is no interpolation ${interpolation}.`);
  /** @param {Pixels} from @param {boolean} across @param {number} size */
  const pass = (from, across, size) => {
    const [w, h] = across ? [size, from.height] : [from.width, size];
    const data = new Uint8ClampedArray(w * h * channels);
    const table = weights(across ? from.width : from.height, size, interpolation);
    const step = across ? channels : from.width * channels;
    for (let y = 0; y < h; y++) {
      for (let x = 0; x < w; x++) {
        const {first, taps} = table[across ? x : y];
        const start = across ? (y * from.width + first) * channels : (first * from.width + x) * channels;
        for (let c = 0; c < channels; c++) {
          let sum = 2 ** (BITS - 1);
          for (let i = 0; i < taps.length; i++) sum += from.data[start + i * step + c] * taps[i];
          data[(y * w + x) * channels + c] = Math.floor(sum / 2 ** BITS);
        }
      }
    }
    return {data, width: w, height: h, channels};
  };
  const downFirst = height < image.height && image.height - height > 2 * (image.width - width);
  return downFirst ? pass(pass(image, false, height), true, width) : pass(pass(image, true, width), false, height);
}

/**
 * Cut out the middle, with `fill` around an image that is smaller.
 * @param {Pixels} image @param {number} width @param {number} height @param {number[]} fill
 * @returns {Pixels}
 */
function crop(image, width, height, fill) {
  /** @param {number} have @param {number} want */
  const offset = (have, want) => (want > have ? -Math.floor((want - have) / 2) : round((have - want) / 2));
  const left = offset(image.width, width), top = offset(image.height, height), {channels} = image;
  const data = new Uint8ClampedArray(width * height * channels);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const inside = x + left >= 0 && x + left < image.width && y + top >= 0 && y + top < image.height;
      for (let c = 0; c < channels; c++) {
        data[(y * width + x) * channels + c] = inside
          ? image.data[((y + top) * image.width + x + left) * channels + c] : fill[c];
      }
    }
  }
  return {data, width, height, channels};
}

/** Return the size of the whole image before the crop. @param {Pixels} image @param {Transform} transform */
function grown({width, height}, {input_size: [, rows, cols], crop_pct, crop_mode}) {
  const [tall, wide] = [rows, cols].map(side => Math.floor(side / crop_pct));
  if (crop_mode === 'squash') return [wide, tall];
  if (crop_mode !== 'border' && tall === wide) {
    const long = Math.trunc(tall * Math.max(width, height) / Math.min(width, height));
    return width <= height ? [tall, long] : [long, tall];
  }
  const ratios = [height / tall, width / wide];
  const ratio = crop_mode === 'border' ? Math.max(...ratios) : Math.min(...ratios);
  return [round(width / ratio), round(height / ratio)];
}

/** Return RGBA of a canvas as RGB or, by ITU-R 601, grey. @param {Pixels} image @param {number} channels */
export function asChannels(image, channels) {
  const count = image.width * image.height, from = image.data, step = image.channels;
  const data = new Uint8ClampedArray(count * channels);
  for (let i = 0, j = 0; i < count * step; i += step, j += channels) {
    if (channels === 1) data[j] = (from[i] * 19595 + from[i + 1] * 38470 + from[i + 2] * 7471 + 0x8000) >> 16;
    else for (let c = 0; c < 3; c++) data[j + c] = from[i + c];
  }
  return {data, width: image.width, height: image.height, channels};
}

/**
 * Resize, crop and normalise RGBA.
 * @param {Pixels} image @param {Transform} transform
 * @returns {{seen: Pixels, tensor: Float32Array}} what the model sees, as pixels and as its input [C, H, W]
 */
export function preprocess(image, transform) {
  const [channels, rows, cols] = transform.input_size;
  const [width, height] = grown(image, transform);
  const fill = transform.crop_mode === 'border' ? transform.mean.map(value => round(255 * value)) : [0, 0, 0];
  const whole = resize(asChannels(image, channels), width, height, transform.interpolation);
  const seen = crop(whole, cols, rows, fill);
  const tensor = new Float32Array(channels * rows * cols), f = Math.fround;
  for (let c = 0; c < channels; c++) {
    const mean = f(transform.mean[c]), std = f(transform.std[c]);
    const values = Float32Array.from({length: 256}, (_, v) => f(f(f(v / 255) - mean) / std));
    for (let i = 0; i < rows * cols; i++) tensor[c * rows * cols + i] = values[seen.data[i * channels + c]];
  }
  return {seen, tensor};
}

/**
 * Return a drawing, light on black, as the data sets of digits have it: `side` pixels, the ink fills all but `margin`.
 * @param {Pixels} image RGBA @param {{side: number, margin: number}} frame
 * @returns {Pixels | null} RGB; null without ink
 */
export function asDigit(image, {side, margin}) {
  let [left, top, right, bottom] = [image.width, image.height, -1, -1];
  for (let y = 0; y < image.height; y++) {
    for (let x = 0; x < image.width; x++) {
      if (image.data[(y * image.width + x) * 4] < 64) continue;
      [left, top, right, bottom] = [Math.min(left, x), Math.min(top, y), Math.max(right, x), Math.max(bottom, y)];
    }
  }
  if (right < 0) return null;
  const tall = bottom - top + 1, wide = right - left + 1, size = Math.round(Math.max(tall, wide) / (1 - 2 * margin));
  const square = {data: new Uint8ClampedArray(size * size * 3), width: size, height: size, channels: 3};
  const x0 = Math.round((size - wide) / 2), y0 = Math.round((size - tall) / 2);
  for (let y = 0; y < tall; y++) {
    for (let x = 0; x < wide; x++) {
      const ink = image.data[((y + top) * image.width + x + left) * 4];
      square.data.fill(ink, ((y + y0) * size + x + x0) * 3, ((y + y0) * size + x + x0) * 3 + 3);
    }
  }
  return resize(square, side, side, 'box');
}
