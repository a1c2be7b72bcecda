/* CLIPSeg's forward pass in plain JavaScript, for models of a few million parameters.

   The same steps as echovlsm/models/clipseg.py, named as there; tensors keep the names of Transformers. A matrix
   is a Float32Array of rows; sums are taken in double precision. One image and one sentence at a time, so there
   is no padding and no mask but the text encoder's causal one. */
(() => {
  "use strict";

  /* x (rows, inner) times the transpose of w (outer, inner), plus bias. Two rows by four columns at a time:
     each value that is read serves several sums, three times as fast as the plain loop. */
  const linear = (x, inner, w, bias) => {
    const outer = w.length / inner, rows = x.length / inner, y = new Float32Array(rows * outer);
    for (let j = 0; j < outer; j += 4) {
      const last = outer - 1;
      const j1 = Math.min(j + 1, last), j2 = Math.min(j + 2, last), j3 = Math.min(j + 3, last);
      const w0 = j * inner, w1 = j1 * inner, w2 = j2 * inner, w3 = j3 * inner;
      for (let i = 0; i < rows; i += 2) {
        const i1 = Math.min(i + 1, rows - 1), x0 = i * inner, x1 = i1 * inner;
        let a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0;
        for (let k = 0; k < inner; k += 1) {
          const u = x[x0 + k], v = x[x1 + k], p = w[w0 + k], q = w[w1 + k], r = w[w2 + k], s = w[w3 + k];
          a += u * p; b += u * q; c += u * r; d += u * s;
          e += v * p; f += v * q; g += v * r; h += v * s;
        }
        const y0 = i * outer, y1 = i1 * outer;
        y[y0 + j] = a; y[y0 + j1] = b; y[y0 + j2] = c; y[y0 + j3] = d;
        y[y1 + j] = e; y[y1 + j1] = f; y[y1 + j2] = g; y[y1 + j3] = h;
      }
    }
    for (let row = 0; bias && row < y.length; row += outer) {
      for (let j = 0; j < outer; j += 1) y[row + j] += bias[j];
    }
    return y;
  };

  const add = (x, y) => {
    const sum = new Float32Array(x.length);
    for (let i = 0; i < sum.length; i += 1) sum[i] = x[i] + y[i];
    return sum;
  };

  const layerNorm = (x, weight, bias, eps) => {
    const width = weight.length, y = new Float32Array(x.length);
    for (let start = 0; start < x.length; start += width) {
      let mean = 0, variance = 0;
      for (let k = 0; k < width; k += 1) mean += x[start + k] / width;
      for (let k = 0; k < width; k += 1) variance += (x[start + k] - mean) ** 2 / width;
      const scale = 1 / Math.sqrt(variance + eps);
      for (let k = 0; k < width; k += 1) y[start + k] = (x[start + k] - mean) * scale * weight[k] + bias[k];
    }
    return y;
  };

  const ACTIVATIONS = {
    quick_gelu: (x) => x / (1 + Math.exp(-1.702 * x)),
    relu: (x) => Math.max(0, x),
  };

  /* Softmax attention of `heads` heads over q, k, v (rows, width); a causal row sees itself and those before. */
  const attend = (q, k, v, width, heads, causal) => {
    const rows = q.length / width, size = width / heads, scale = size ** -0.5;
    const y = new Float32Array(q.length), scores = new Float64Array(rows);
    for (let start = 0; start < width; start += size) {
      for (let i = 0; i < rows; i += 1) {
        const seen = causal ? i + 1 : rows, at = i * width + start;
        let top = -Infinity, total = 0;
        for (let j = 0; j < seen; j += 1) {
          let sum = 0;
          for (let c = 0, other = j * width + start; c < size; c += 1) sum += q[at + c] * k[other + c];
          scores[j] = sum * scale;
          top = Math.max(top, scores[j]);
        }
        for (let j = 0; j < seen; j += 1) total += scores[j] = Math.exp(scores[j] - top);
        for (let j = 0; j < seen; j += 1) {
          const share = scores[j] / total;
          for (let c = 0, other = j * width + start; c < size; c += 1) y[at + c] += share * v[other + c];
        }
      }
    }
    return y;
  };

  /* The model of an exported folder: `config` as explorer/export.py writes it, `tensors` name to Float32Array. */
  const CLIPSeg = (config, tensors) => {
    const of = (name) => {
      if (!tensors[name]) throw new Error(`the model lacks ${name}`);
      return tensors[name];
    };
    const dense = (x, name) => {
      const bias = tensors[`${name}.bias`], weight = of(`${name}.weight`);
      return linear(x, weight.length / bias.length, weight, bias);
    };
    const norm = (x, name, eps) => layerNorm(x, of(`${name}.weight`), of(`${name}.bias`), eps);
    const attention = (x, name, heads, causal) => {
      const [q, k, v] = ["q", "k", "v"].map((part) => dense(x, `${name}.${part}_proj`));
      const width = of(`${name}.q_proj.bias`).length;
      return dense(attend(q, k, v, width, heads, causal), `${name}.out_proj`);
    };
    const mlp = (x, name, act) => dense(dense(x, `${name}.fc1`).map(ACTIVATIONS[act]), `${name}.fc2`);

    /* CLIP's encoders normalise before each part, CLIPSeg's decoder after it. */
    const encoderLayer = (x, name, { heads, act, eps, causal }) => {
      const y = add(x, attention(norm(x, `${name}.layer_norm1`, eps), `${name}.self_attn`, heads, causal));
      return add(y, mlp(norm(y, `${name}.layer_norm2`, eps), `${name}.mlp`, act));
    };
    const decoderLayer = (x, name, { heads, act, eps }) => {
      const y = norm(add(x, attention(x, `${name}.self_attn`, heads, false)), `${name}.layer_norm1`, eps);
      return norm(add(y, mlp(y, `${name}.mlp`, act)), `${name}.layer_norm2`, eps);
    };

    /* Grey values 0 to 255 (size, size) to the class token and one row per patch, with positions. */
    const embedImage = (grey) => {
      const { size, patch, mean, std } = config, side = size / patch;
      const patches = new Float32Array(side * side * mean.length * patch * patch);
      let at = 0;
      for (let place = 0; place < side * side; place += 1) {
        const top = Math.floor(place / side) * patch, left = (place % side) * patch;
        for (let channel = 0; channel < mean.length; channel += 1) {
          for (let y = top; y < top + patch; y += 1) {
            for (let x = left; x < left + patch; x += 1) {
              patches[at] = (grey[y * size + x] / 255 - mean[channel]) / std[channel];
              at += 1;
            }
          }
        }
      }
      const own = "clip.vision_model.embeddings", token = of(`${own}.class_embedding`);
      const rows = linear(patches, patches.length / (side * side), of(`${own}.patch_embedding.weight`), null);
      const all = new Float32Array(token.length + rows.length);
      all.set(token);
      all.set(rows, token.length);
      return add(all, of(`${own}.position_embedding.weight`));
    };

    /* What the decoder reads of an image, and its state up to where the sentence enters: once per image.
       `pause` is awaited between layers, so that a page stays alive. */
    const encodeImage = async (grey, pause = () => {}) => {
      const { vision, extract, decoder, conditional } = config;
      let x = norm(embedImage(grey), "clip.vision_model.pre_layrnorm", vision.eps);
      const kept = [];
      for (let layer = 0; layer <= Math.max(...extract); layer += 1) {
        x = encoderLayer(x, `clip.vision_model.encoder.layers.${layer}`, vision);
        kept.push(x);
        await pause();
      }
      const reduced = extract.map((layer) => kept[layer]).reverse()
        .map((activation, step) => dense(activation, `decoder.reduces.${step}`));
      let state = null;
      reduced.slice(0, conditional + 1).forEach((part, step) => {
        state = state ? add(part, state) : part;
        if (step < conditional) state = decoderLayer(state, `decoder.layers.${step}`, decoder);
      });
      return { state, rest: reduced.slice(conditional + 1) };
    };

    /* The conditional embedding (projection) of a sentence given by its token ids. */
    const encodeText = (ids) => {
      const { text } = config, own = "clip.text_model";
      const words = of(`${own}.embeddings.token_embedding.weight`);
      const places = of(`${own}.embeddings.position_embedding.weight`);
      let x = new Float32Array(ids.length * text.width);
      ids.forEach((id, i) => {
        for (let k = 0; k < text.width; k += 1) {
          x[i * text.width + k] = words[id * text.width + k] + places[i * text.width + k];
        }
      });
      for (let layer = 0; layer < text.layers; layer += 1) {
        x = encoderLayer(x, `${own}.encoder.layers.${layer}`, { ...text, causal: true });
      }
      // id 2 is the mistake of old configurations: there the highest id ends the sentence, as in Transformers
      const end = text.eos === 2 ? ids.indexOf(Math.max(...ids)) : Math.max(0, ids.indexOf(text.eos));
      const last = norm(x.slice(end * text.width, (end + 1) * text.width), `${own}.final_layer_norm`, text.eps);
      return linear(last, text.width, of("clip.text_projection.weight"), null);
    };

    /* Logits (size, size) of an encoded image under a sentence's embedding. */
    const decode = ({ state, rest }, condition) => {
      const { decoder, conditional, patch, size } = config;
      const factor = dense(condition, "decoder.film_mul"), shift = dense(condition, "decoder.film_add");
      const width = factor.length;
      let x = state.map((value, i) => factor[i % width] * value + shift[i % width]);
      x = decoderLayer(x, `decoder.layers.${conditional}`, decoder);
      rest.forEach((part, i) => {
        x = decoderLayer(add(part, x), `decoder.layers.${conditional + 1 + i}`, decoder);
      });
      // a transposed convolution whose stride is its kernel gives each patch a square of its own
      const squares = linear(x.subarray(width), width, of("decoder.transposed_convolution.weight"), null);
      const bias = of("decoder.transposed_convolution.bias")[0], side = size / patch;
      const logits = new Float32Array(size * size);
      squares.forEach((value, i) => {
        const place = Math.floor(i / (patch * patch)), within = i % (patch * patch);
        const row = Math.floor(place / side) * patch + Math.floor(within / patch);
        logits[row * size + (place % side) * patch + (within % patch)] = value + bias;
      });
      return logits;
    };

    return { config, encodeImage, encodeText, decode };
  };

  globalThis.echovlsm = Object.assign(globalThis.echovlsm || {}, { CLIPSeg });
})();
