/* The explorer of the published book: answers computed beforehand, shown without a kernel or a network.
   The data are JSON inside the page (echovlsm/explorer_static.py). Plain controls, so that a keyboard reaches
   all of them. */
(() => {
  "use strict";

  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  let made = 0;

  const labelled = (text, control) => {
    control.id = `explorer-${(made += 1)}`;
    return make("label", { htmlFor: control.id }, make("span", { textContent: text }), control);
  };

  const menu = (names, chosen) => {
    const select = make("select");
    names.forEach((name, index) => select.append(make("option", { value: index, textContent: name })));
    select.value = chosen;
    return select;
  };

  const choices = (legend, names, chosen, changed) => {
    const group = make("fieldset", {}, make("legend", { textContent: legend }));
    const name = `explorer-${(made += 1)}`;
    names.forEach((text, index) => {
      const input = make("input", { type: "radio", name, value: index, checked: index === chosen });
      input.addEventListener("change", () => changed(index));
      group.append(make("label", {}, input, make("span", { textContent: text })));
    });
    return group;
  };

  /* Grey values of a picture given by its data address. */
  const pixels = (address) =>
    new Promise((resolve, reject) => {
      const image = new Image();
      image.onerror = () => reject(new Error("a picture in the page cannot be read"));
      image.onload = () => {
        const canvas = make("canvas", { width: image.width, height: image.height });
        const context = canvas.getContext("2d", { willReadFrequently: true });
        context.drawImage(image, 0, 0);
        const all = context.getImageData(0, 0, image.width, image.height).data;
        const grey = new Uint8ClampedArray(image.width * image.height);
        for (let i = 0; i < grey.length; i += 1) grey[i] = all[4 * i];
        resolve({ width: image.width, height: image.height, grey });
      };
      image.src = address;
    });

  /* Bilinear enlargement with pixel centres as in PyTorch (align_corners=False), values 0 to 1. */
  const enlarge = (grey, side, width, height) => {
    const place = (count) =>
      Array.from({ length: count }, (_, i) => {
        const x = Math.max(0, ((i + 0.5) * side) / count - 0.5);
        const low = Math.min(side - 1, Math.floor(x));
        return [low, Math.min(side - 1, low + 1), x - low];
      });
    const columns = place(width);
    const large = new Float32Array(width * height);
    place(height).forEach(([top, bottom, down], y) => {
      for (let x = 0; x < width; x += 1) {
        const [left, right, across] = columns[x];
        const above = grey[top * side + left] * (1 - across) + grey[top * side + right] * across;
        const below = grey[bottom * side + left] * (1 - across) + grey[bottom * side + right] * across;
        large[y * width + x] = (above * (1 - down) + below * down) / 255;
      }
    });
    return large;
  };

  const diceOf = (mask, truth) => {
    let both = 0;
    let total = 0;
    for (let i = 0; i < mask.length; i += 1) {
      both += mask[i] & truth[i];
      total += mask[i] + truth[i];
    }
    return total === 0 ? 1 : (2 * both) / total;
  };

  const draw = (canvas, image, colour, layer, probability, mask, truth) => {
    const { width, height, grey } = image;
    const factor = 2;
    canvas.width = factor * width;
    canvas.height = factor * height;
    const context = canvas.getContext("2d");
    const out = context.createImageData(canvas.width, canvas.height);
    const ink = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
    const inside = (area, x, y) => x >= 0 && y >= 0 && x < canvas.width && y < canvas.height
      && area[Math.floor(y / factor) * width + Math.floor(x / factor)];
    const border = (area, x, y) => inside(area, x, y)
      && !(inside(area, x - 1, y) && inside(area, x + 1, y) && inside(area, x, y - 1) && inside(area, x, y + 1));
    for (let y = 0; y < canvas.height; y += 1) {
      for (let x = 0; x < canvas.width; x += 1) {
        const here = Math.floor(y / factor) * width + Math.floor(x / factor);
        const share = layer === 2 ? 0.75 * probability[here] : layer === 1 && mask[here] ? 0.45 : 0;
        let colours = ink.map((value) => grey[here] + share * (value - grey[here]));
        if (truth && border(truth, x, y)) colours = [255, 255, 255];
        if (layer !== 3 && border(mask, x, y)) colours = ink;
        out.data.set([...colours, 255], 4 * (y * canvas.width + x));
      }
    }
    context.putImageData(out, 0, 0);
  };

  const start = (root) => {
    const data = JSON.parse(root.querySelector("script").textContent);
    const state = { picture: 0, structure: 0, layer: 0, threshold: 0.5, reference: true };
    const ready = new Map();

    const load = (number) => {
      if (!ready.has(number)) {
        const picture = data.pictures[number];
        const parts = [picture.image, picture.labels, ...picture.maps].map(pixels);
        ready.set(number, Promise.all(parts).then(([image, labels, ...maps]) => ({ image, labels, maps })));
      }
      return ready.get(number);
    };

    const panel = (name, net, level) => {
      const nets = menu(data.nets, net);
      const levels = menu(data.levels, level);
      const sentence = make("blockquote", { className: "explorer-sentence" });
      const canvas = make("canvas");
      canvas.setAttribute("role", "img");
      const score = make("output", { className: "explorer-dice" });
      const box = make("section", { className: "explorer-panel" },
        labelled(`${name}: model`, nets), labelled(`${name}: prompt`, levels), sentence, canvas, score);
      box.setAttribute("aria-label", name);
      const update = async () => {
        const shown = { ...state, net: Number(nets.value), level: Number(levels.value) };
        const { image, labels, maps } = await load(shown.picture);
        if (shown.picture !== state.picture) return;
        const structure = data.structures[shown.structure];
        const text = data.pictures[shown.picture].sentences[shown.level][shown.structure];
        const map = maps[shown.net];
        const first = (shown.level * data.structures.length + shown.structure) * map.width * map.width;
        const small = map.grey.subarray(first, first + map.width * map.width);
        const probability = enlarge(small, map.width, image.width, image.height);
        const mask = Uint8Array.from(probability, (value) => (value >= state.threshold ? 1 : 0));
        const truth = Uint8Array.from(labels.grey, (v) => (Math.round(v / 80) === shown.structure + 1 ? 1 : 0));
        draw(canvas, image, structure.colour, state.layer, probability, mask, state.reference ? truth : null);
        const dice = diceOf(mask, truth).toFixed(3);
        sentence.textContent = text === "" ? "(the empty sentence)" : `“${text}”`;
        score.textContent = `Dice ${dice}`;
        canvas.setAttribute("aria-label", `${data.pictures[shown.picture].title}: ${structure.name} as outlined by `
          + `${data.nets[shown.net]} for the sentence “${text}”, Dice ${dice}`);
        root.dataset.ready = "yes";
      };
      nets.addEventListener("change", update);
      levels.addEventListener("change", update);
      return { box, update };
    };

    const last = data.nets.length - 1;
    const panels = [panel("Left", 0, Math.min(1, data.levels.length - 1)), panel("Right", last, Math.min(1, data.levels.length - 1))];
    const update = () => panels.forEach((one) => one.update().catch((error) => { root.dataset.error = error; throw error; }));
    const set = (name) => (value) => { state[name] = value; update(); };

    const pictures = menu(data.pictures.map((picture) => picture.title), 0);
    pictures.addEventListener("change", () => set("picture")(Number(pictures.value)));
    const shown = make("span", { textContent: state.threshold.toFixed(2) });
    const threshold = make("input", { type: "range", min: 0.05, max: 0.95, step: 0.05, value: state.threshold });
    threshold.addEventListener("input", () => {
      shown.textContent = Number(threshold.value).toFixed(2);
      set("threshold")(Number(threshold.value));
    });
    const reference = make("input", { type: "checkbox", checked: true });
    reference.addEventListener("change", () => set("reference")(reference.checked));
    const slider = labelled("threshold", threshold);
    slider.append(shown);

    root.querySelectorAll("p:not(.explorer-note)").forEach((element) => element.remove());
    root.prepend(
      make("div", { className: "explorer-controls" },
        labelled("picture", pictures),
        choices("structure", data.structures.map((structure) => structure.short), 0, set("structure")),
        choices("show", ["outline", "overlay", "probability", "picture"], 0, set("layer")),
        slider,
        make("label", {}, reference, make("span", { textContent: "reference (white)" }))),
      make("div", { className: "explorer-panels" }, ...panels.map((one) => one.box)),
    );
    update();
  };

  /* The landing page's picture: a sentence lights up what it names. */
  const light = (root) => {
    const buttons = [...root.querySelectorAll("button[data-structure]")];
    const choose = (name) => {
      buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.structure === name)));
      root.querySelectorAll("svg [data-structure]").forEach((part) =>
        part.classList.toggle("lit", part.dataset.structure === name));
    };
    buttons.forEach((button) => {
      button.addEventListener("click", () => choose(button.dataset.structure));
      button.addEventListener("mouseenter", () => choose(button.dataset.structure));
      button.addEventListener("focus", () => choose(button.dataset.structure));
    });
  };

  const begin = () => {
    document.querySelectorAll(".echovlsm-explorer").forEach(start);
    document.querySelectorAll(".hero").forEach(light);
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
})();
