/* A model that answers in the page: its files, its tokenizer, the images that it is asked about.

   Everything comes as script files, because a page opened from disk may not fetch: `model.js` says what there is,
   `part-0.js` and so on hold the weights (echovlsm/explorer/export.py). Each registers itself here. */
(() => {
  "use strict";
  const own = (globalThis.echovlsm = globalThis.echovlsm || {});
  const told = new Map();
  own.register = (id, part, content) => told.set(`${id} ${part}`, content);

  const run = (address) =>
    new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = address;
      script.onload = resolve;
      script.onerror = () => reject(new Error(`${address} cannot be read`));
      document.head.append(script);
    });

  const pause = () => new Promise((resolve) => { setTimeout(resolve); });

  const bytes = (text) => {
    const letters = atob(text), found = new Uint8Array(letters.length);
    for (let i = 0; i < found.length; i += 1) found[i] = letters.charCodeAt(i);
    return found;
  };

  /* Numbers of 16 bits (IEEE 754) as ordinary ones: a table of all there are. */
  const halves = () => {
    const table = new Float32Array(65536);
    for (let i = 0; i < 65536; i += 1) {
      const sign = i & 0x8000 ? -1 : 1, exponent = (i >> 10) & 31, fraction = i & 1023;
      const size = exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction;
      table[i] = sign * (exponent === 31 ? (fraction ? NaN : Infinity) : size);
    }
    return table;
  };

  /* Resize grey values as `cohort.resize_image` does: a triangle filter as wide as a pixel of the result. */
  const resize = ({ grey, width, height }, newWidth, newHeight) => {
    const taps = (from, to) =>
      Array.from({ length: to }, (_, i) => {
        const scale = from / to, support = Math.max(1, scale), middle = (i + 0.5) * scale;
        const first = Math.max(0, Math.floor(middle - support + 0.5));
        const last = Math.min(from, Math.floor(middle + support + 0.5));
        const weights = Float64Array.from({ length: last - first }, (_n, j) =>
          Math.max(0, 1 - Math.abs((first + j + 0.5 - middle) / support)));
        const total = weights.reduce((sum, weight) => sum + weight, 0);
        return { first, weights: weights.map((weight) => weight / total) };
      });
    const along = new Float32Array(newWidth * height);
    taps(width, newWidth).forEach(({ first, weights }, x) => {
      for (let y = 0; y < height; y += 1) {
        let sum = 0;
        for (let j = 0; j < weights.length; j += 1) sum += weights[j] * grey[y * width + first + j];
        along[y * newWidth + x] = sum;
      }
    });
    const out = new Uint8ClampedArray(newWidth * newHeight); // rounds halves to even, as PyTorch does
    taps(height, newHeight).forEach(({ first, weights }, y) => {
      for (let x = 0; x < newWidth; x += 1) {
        let sum = 0;
        for (let j = 0; j < weights.length; j += 1) sum += weights[j] * along[(first + j) * newWidth + x];
        out[y * newWidth + x] = sum;
      }
    });
    return { grey: out, width: newWidth, height: newHeight };
  };

  const MAX_SIDE = 256; // of an own image as it is shown

  /* Grey values of an image file of the reader's own. */
  own.readImage = async (file) => {
    if (!["image/png", "image/jpeg"].includes(file.type)) throw new Error(`${file.name} is no PNG or JPEG`);
    const bitmap = await createImageBitmap(file).catch(() => {
      throw new Error(`${file.name} cannot be read as an image`);
    });
    const { width, height } = bitmap;
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.fillRect(0, 0, width, height); // black behind what is transparent
    context.drawImage(bitmap, 0, 0);
    const { data } = context.getImageData(0, 0, width, height);
    const grey = new Uint8ClampedArray(width * height);
    for (let i = 0; i < grey.length; i += 1) {
      grey[i] = 0.299 * data[4 * i] + 0.587 * data[4 * i + 1] + 0.114 * data[4 * i + 2];
    }
    return { grey, width, height };
  };

  /* The square that the model needs, of at most MAX_SIDE: `crop` the middle, `pad` with black, or `stretch`. */
  own.square = (image, fit) => {
    const { grey, width, height } = image;
    let found = image;
    if (fit !== "stretch" && width !== height) {
      const side = (fit === "crop" ? Math.min : Math.max)(width, height);
      const left = Math.trunc((width - side) / 2), top = Math.trunc((height - side) / 2);
      found = { grey: new Uint8ClampedArray(side * side), width: side, height: side };
      for (let y = Math.max(0, -top); y < Math.min(side, height - top); y += 1) {
        const from = (y + top) * width + Math.max(0, left);
        found.grey.set(grey.subarray(from, from + Math.min(side, width)), y * side + Math.max(0, -left));
      }
    }
    const side = Math.min(MAX_SIDE, Math.max(found.width, found.height));
    return found.width === side && found.height === side ? found : resize(found, side, side);
  };

  /* Load the model in a folder; `say` is told how far it is. Everything below `base` lies where the book has it. */
  own.load = async (base, { folder, id }, say) => {
    say("Loading the model …");
    await Promise.all([
      own.CLIPSeg || run(`${base}explorer/clipseg.js`),
      own.tokenizers || run(`${base}vendor/tokenizers.js`),
      told.get(`${id} model`) || run(`${base}${folder}/model.js`),
    ]);
    const model = told.get(`${id} model`);
    if (!model) throw new Error(`${folder}/model.js holds another model than this page is for`);
    const stored = new Uint8Array(model.bytes);
    for (let part = 0, at = 0; part < model.parts; part += 1) {
      say(`Loading the model: ${(at / 1e6).toFixed(1)} of ${(model.bytes / 1e6).toFixed(1)} MB`);
      await run(`${base}${folder}/part-${part}.js`);
      const piece = bytes(told.get(`${id} ${part}`));
      told.delete(`${id} ${part}`);
      stored.set(piece, at);
      at += piece.length;
    }
    const table = halves(), words = new Uint16Array(stored.buffer), values = new Float32Array(words.length);
    for (let i = 0; i < values.length; i += 1) values[i] = table[words[i]];
    const tensors = Object.fromEntries(Object.entries(model.tensors)
      .map(([name, { start, length }]) => [name, values.subarray(start, start + length)]));
    const net = own.CLIPSeg(model.config, tensors);
    const tokenizer = new own.tokenizers.Tokenizer(model.tokenizer, model.tokenizer_config);
    const { size } = model.config, limit = model.config.text.places;
    const images = new WeakMap(), texts = new Map();

    const read = (text) => {
      if (!texts.has(text)) {
        const { ids } = tokenizer.encode(text);
        if (ids.length > limit) throw new Error(`This is longer than the ${limit} tokens that the model reads.`);
        if (texts.size > 500) texts.clear();
        texts.set(text, net.encodeText(ids));
      }
      return texts.get(text);
    };
    const encode = (image) => {
      if (!images.has(image)) images.set(image, net.encodeImage(resize(image, size, size).grey, pause));
      return images.get(image);
    };
    /* Logits (size, size) of an image under a sentence; an image object is encoded once. */
    const logits = async (image, text) => net.decode(await encode(image), read(text));

    say("Trying the model …");
    const { probe } = model, expected = new Float32Array(bytes(probe.logits).buffer);
    const found = await logits({ grey: bytes(probe.image), width: size, height: size }, probe.text);
    const differing = found.filter((value, i) => value >= 0 !== expected[i] >= 0).length;
    return { size, encode, logits, check: { differing, of: found.length } };
  };
})();
