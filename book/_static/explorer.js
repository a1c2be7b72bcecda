/* The explorer of the published book, without a kernel or a network: answers computed beforehand, which are JSON
   inside the page (echovlsm/explorer/static.py), and any sentence and image by a model that lies beside it and is
   loaded when a reader first asks (explorer/live.js). Plain controls, so that a keyboard reaches all of them. */
(() => {
  "use strict";
  const base = new URL(".", document.currentScript.src).href;
  const OWN = "your own words";

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

  /* Grey values of an image given by its data address. */
  const pixels = (address) =>
    new Promise((resolve, reject) => {
      const image = new Image();
      image.onerror = () => reject(new Error("an image in the page cannot be read"));
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

  /* Bilinear enlargement with pixel centres as in PyTorch (align_corners=False), from 0 to `whole` to
     0 to 1. */
  const enlarge = (grey, side, width, height, whole) => {
    const places = (count) => {
      const low = new Int32Array(count), share = new Float64Array(count);
      for (let i = 0; i < count; i += 1) {
        const x = Math.max(0, ((i + 0.5) * side) / count - 0.5);
        low[i] = Math.min(side - 1, Math.floor(x));
        share[i] = x - low[i];
      }
      return { low, high: low.map((place) => Math.min(side - 1, place + 1)), share };
    };
    const columns = places(width), rows = places(height), large = new Float32Array(width * height);
    for (let y = 0; y < height; y += 1) {
      const top = rows.low[y] * side, bottom = rows.high[y] * side, down = rows.share[y];
      for (let x = 0; x < width; x += 1) {
        const left = columns.low[x], right = columns.high[x], across = columns.share[x];
        const above = grey[top + left] * (1 - across) + grey[top + right] * across;
        const below = grey[bottom + left] * (1 - across) + grey[bottom + right] * across;
        large[y * width + x] = (above * (1 - down) + below * down) / whole;
      }
    }
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

  /* Share of the sector that a mask outlines, as `explorer.share_outlined`: rows from the first to the last pixel
     that is not dark, as cavities inside are dark as well. */
  const shareOf = (mask, { grey, width, height }) => {
    let outlined = 0, seen = 0;
    for (let y = 0; y < height; y += 1) {
      const row = grey.subarray(y * width, (y + 1) * width);
      const first = row.findIndex((value) => value > 8), last = row.findLastIndex((value) => value > 8);
      for (let x = first; first >= 0 && x <= last; x += 1) outlined += mask[y * width + x];
      seen += first < 0 ? 0 : last - first + 1;
    }
    return seen ? outlined / seen : mask.reduce((sum, value) => sum + value, 0) / mask.length;
  };

  const LAYERS = ["outline", "overlay", "probability", "image only"];

  /* An image at twice its size, so that outlines are fine: probability or mask in the structure's colour. */
  const draw = (canvas, image, colour, layer, probability, mask, truth) => {
    const { width, height, grey } = image;
    const ink = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
    canvas.width = 2 * width;
    canvas.height = 2 * height;
    const context = canvas.getContext("2d");
    const out = context.createImageData(canvas.width, canvas.height);
    const pixel = new DataView(out.data.buffer);
    const whole = ([red, green, blue]) => ((red << 24) | (green << 16) | (blue << 8) | 255) >>> 0;
    const put = (x, y, value) => pixel.setUint32(4 * (y * canvas.width + x), value);
    /* Of the four pixels that one becomes, those at the border of an area. */
    const outline = (area, x, y, value) => {
      const at = y * width + x;
      if (!area[at]) return;
      const sides = [x > 0 && area[at - 1], x + 1 < width && area[at + 1]];
      const ends = [y > 0 && area[at - width], y + 1 < height && area[at + width]];
      if (sides[0] && sides[1] && ends[0] && ends[1]) return;
      for (let corner = 0; corner < 4; corner += 1) {
        const right = corner & 1, down = corner >> 1;
        if (!(sides[right] && ends[down])) put(2 * x + right, 2 * y + down, value);
      }
    };
    for (let y = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1) {
        const here = y * width + x, value = grey[here];
        const share = layer === 2 ? 0.75 * probability[here] : layer === 1 && mask[here] ? 0.45 : 0;
        const shade = whole(share ? ink.map((c) => Math.round(value + share * (c - value))) : [value, value, value]);
        for (let corner = 0; corner < 4; corner += 1) put(2 * x + (corner & 1), 2 * y + (corner >> 1), shade);
        if (truth) outline(truth, x, y, 0xffffffff);
        if (layer !== 3) outline(mask, x, y, whole(ink));
      }
    }
    context.putImageData(out, 0, 0);
  };

  /* The model beside the page, loaded once; after a failure the next question tries again. */
  const loader = (live, say) => {
    let loading = null;
    return () => {
      loading = loading || (async () => {
        if (!(globalThis.echovlsm && globalThis.echovlsm.load)) {
          await new Promise((resolve, reject) => {
            const onerror = () => reject(new Error("explorer/live.js cannot be read"));
            document.head.append(make("script", { src: `${base}explorer/live.js`, onload: resolve, onerror }));
          });
        }
        const model = await globalThis.echovlsm.load(base, live, say);
        const { differing, of } = model.check;
        say(`The model runs in your browser. Tried against PyTorch: ${differing} of ${of} mask pixels differ.`);
        return model;
      })().catch((error) => {
        loading = null;
        say(`The model cannot be loaded: ${error.message}`);
        throw error;
      });
      return loading;
    };
  };

  const start = (root) => {
    const data = JSON.parse(root.querySelector("script").textContent);
    const { live } = data;
    const state = { image: 0, structure: 0, layer: 0, threshold: 0.5, reference: true, own: null, fit: "pad" };
    const ready = new Map();
    const status = make("p", { className: "explorer-status" });
    const spoken = make("p", { className: "explorer-spoken" });
    [status, spoken].forEach((line) => line.setAttribute("role", "status"));
    const say = (text) => { status.textContent = text; };
    const unsaid = new Map();
    let speaking = 0;
    const speak = (name, told) => { // once the reader has stopped typing
      unsaid.set(name, told);
      clearTimeout(speaking);
      speaking = setTimeout(() => {
        spoken.textContent = [...unsaid].map((pair) => pair.join(": ")).join(". ");
        unsaid.clear();
      }, 800);
    };
    const model = live && loader(live, say);

    const load = (number) => {
      if (!ready.has(number)) {
        const one = data.images[number];
        const parts = [one.pixels, one.labels, ...one.maps].map(pixels);
        ready.set(number, Promise.all(parts).then(([image, labels, ...maps]) => ({ image, labels, maps })));
      }
      return ready.get(number);
    };
    const shownImage = async () => {
      if (state.own) return { image: state.own.image };
      return data.images.length ? load(state.image) : null;
    };
    const titleOf = () => (state.own ? state.own.name : data.images[state.image].title);

    const panel = (name, net, level, firstWords) => {
      const nets = menu(data.nets, net);
      const levels = menu(live ? [...data.levels, OWN] : data.levels, level);
      const words = make("textarea", { rows: 2, maxLength: 1000, spellcheck: false, value: firstWords });
      words.placeholder = "(the empty sentence)";
      words.readOnly = !live;
      const canvas = make("canvas");
      canvas.setAttribute("role", "img");
      const score = make("p", { className: "explorer-dice" });
      const more = make("span", { className: "explorer-more" });
      const box = make("section", { className: "explorer-panel" },
        labelled(`${name}: model`, nets), labelled(`${name}: prompt`, levels),
        labelled(`${name}: sentence`, words), canvas, score);
      box.setAttribute("aria-label", name);
      let turn = 0;
      const typed = () => Number(levels.value) === data.levels.length;

      /* The probabilities of what the panel asks, at the image's size; and how long the model took. */
      const answer = async ({ image, maps }) => {
        const { width, height } = image;
        if (!typed() && !state.own) {
          const map = maps[Number(nets.value)], side = map.width;
          const first = (Number(levels.value) * data.structures.length + state.structure) * side * side;
          return { probability: enlarge(map.grey.subarray(first, first + side * side), side, width, height, 255) };
        }
        if (Number(nets.value) !== 0) {
          nets.value = 0;
          more.textContent = `Only “${data.nets[0]}” reads what is typed. `;
        }
        const { encode, logits, size } = await model();
        await new Promise((resolve) => { setTimeout(resolve); }); // let the page say so before the work begins
        await encode(image); // once per image
        const clock = performance.now();
        const small = (await logits(image, words.value)).map((value) => 1 / (1 + Math.exp(-value)));
        const probability = enlarge(small, size, width, height, 1);
        return { probability, milliseconds: performance.now() - clock };
      };

      const show = (found, { probability, milliseconds }) => {
        const { image, labels } = found, structure = data.structures[state.structure];
        const where = (values, holds) => {
          const area = new Uint8Array(values.length);
          for (let i = 0; i < area.length; i += 1) area[i] = holds(values[i]) ? 1 : 0;
          return area;
        };
        const mask = where(probability, (value) => value >= state.threshold);
        const truth = labels && where(labels.grey, (value) => Math.round(value / 80) === state.structure + 1);
        const share = shareOf(mask, image), nothing = share < data.least;
        const drawn = nothing ? new Uint8Array(mask.length) : mask;
        draw(canvas, image, structure.colour, state.layer, probability, drawn, state.reference ? truth : null);
        canvas.answer = { mask, width: image.width, height: image.height, milliseconds };
        let told = `${(100 * share).toFixed(1)}% of the sector outlined`;
        if (truth) told = `Dice ${diceOf(mask, truth).toFixed(3)} with the ${structure.short}`;
        if (nothing) told = "Nothing here by that name";
        score.textContent = told;
        if (milliseconds !== undefined) more.textContent += `answered in ${milliseconds.toFixed(0)} ms`;
        score.append(more);
        canvas.setAttribute("aria-label", `${titleOf()}: ${structure.name} as outlined by `
          + `${data.nets[Number(nets.value)]} for the sentence “${words.value}”: ${told}`);
        box.dataset.answered = words.value;
        speak(name, told);
        root.dataset.ready = "yes";
      };

      const update = async () => {
        const mine = (turn += 1);
        more.textContent = "";
        if (!typed()) words.value = data.images[state.image].sentences[Number(levels.value)][state.structure];
        try {
          const found = await shownImage();
          if (!found) {
            score.textContent = "Choose an image above, or drop one here.";
            root.dataset.ready = "yes";
            return;
          }
          if (mine !== turn) return;
          const given = await answer(found);
          if (mine === turn) show(found, given);
        } catch (error) {
          if (mine === turn) score.textContent = error.message;
        }
      };
      const type = (text) => {
        words.value = text;
        levels.value = data.levels.length;
      };
      let waiting = 0;
      words.addEventListener("input", () => {
        type(words.value);
        clearTimeout(waiting); // one answer for keys that come faster than answers
        waiting = setTimeout(() => { update(); share(); }, 20);
      });
      nets.addEventListener("change", update);
      levels.addEventListener("change", update);
      return { box, update, type, typed: () => (typed() ? words.value : null) };
    };

    const last = data.nets.length - 1, usual = Math.min(1, data.levels.length - 1), ends = data.levels.length - 1;
    const guess = (number) => {
      const { name } = data.structures[number];
      return data.levels.length ? "" : `${name[0].toUpperCase()}${name.slice(1)} of the heart.`;
    };
    const panels = live
      ? [panel("Left", 0, Math.max(0, usual), guess(0)), panel("Right", 0, Math.max(0, ends), guess(1))]
      : [panel("Left", 0, usual, ""), panel("Right", last, usual, "")];
    const update = () => panels.forEach((one) => one.update());
    const set = (name) => (value) => { state[name] = value; update(); share(); };

    /* The address holds what was typed, so that it can be passed on; an own image is in no address. */
    let sharing = 0;
    const share = () => {
      const [q, q2] = panels.map((one) => one.typed());
      if (!live || (q === null && q2 === null)) return;
      clearTimeout(sharing);
      sharing = setTimeout(() => {
        const values = new URLSearchParams();
        if (q !== null) values.set("q", q);
        if (q2 !== null) values.set("q2", q2);
        if (state.image && !state.own) values.set("image", state.image);
        if (state.structure) values.set("structure", state.structure);
        if (state.threshold !== 0.5) values.set("threshold", state.threshold);
        history.replaceState(null, "", `#${values}`);
      }, 300);
    };

    const images = menu(data.images.map((one) => one.title), 0);
    images.addEventListener("change", () => {
      state.own = images.value === "own" ? own : null;
      fits.hidden = !state.own;
      if (!state.own) state.image = Number(images.value);
      update();
      share();
    });
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

    /* An image of the reader's own. */
    let own = null;
    const FITS = { pad: "pad to a square", crop: "crop to a square", stretch: "stretch, as in training" };
    const fits = choices("your own image", Object.values(FITS), 0, (index) => {
      state.fit = Object.keys(FITS)[index];
      own.image = globalThis.echovlsm.square(own.source, state.fit);
      update();
    });
    fits.hidden = true;
    const take = async (file) => {
      try {
        await model();
        const source = await globalThis.echovlsm.readImage(file);
        own = { name: file.name, source, image: globalThis.echovlsm.square(source, state.fit) };
      } catch (error) {
        say(error.message);
        return;
      }
      choice.hidden = false;
      images.querySelector("[value=own]")?.remove();
      images.append(make("option", { value: "own", textContent: `your own: ${file.name}` }));
      images.value = "own";
      images.dispatchEvent(new Event("change"));
    };
    const file = make("input", { type: "file", accept: "image/png,image/jpeg" });
    file.addEventListener("change", () => file.files[0] && take(file.files[0]));
    if (live) {
      root.addEventListener("dragover", (event) => { event.preventDefault(); root.classList.add("dragging"); });
      root.addEventListener("dragleave", () => root.classList.remove("dragging"));
      root.addEventListener("drop", (event) => {
        event.preventDefault();
        root.classList.remove("dragging");
        if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
      });
    }

    const asked = () => {
      const values = new URLSearchParams(location.hash.slice(1));
      if (!live || !(values.has("q") || values.has("q2"))) return false;
      ["q", "q2"].forEach((name, i) => { if (values.has(name)) panels[i].type(values.get(name).slice(0, 1000)); });
      const within = (name, most) => Math.min(most, Math.max(0, Math.trunc(Number(values.get(name))) || 0));
      images.value = state.image = within("image", Math.max(0, data.images.length - 1));
      state.structure = within("structure", data.structures.length - 1);
      threshold.value = Number(values.get("threshold")) || 0.5;
      state.threshold = Number(threshold.value); // as the slider holds it
      shown.textContent = state.threshold.toFixed(2);
      structures.querySelectorAll("input")[state.structure].checked = true;
      return true;
    };
    const names = data.structures.map((structure) => structure.short);
    const structures = choices("structure", names, 0, set("structure"));

    root.querySelectorAll("p:not(.explorer-note), noscript").forEach((element) => element.remove());
    const controls = make("div", { className: "explorer-controls" });
    const choice = labelled("image", images);
    choice.hidden = !data.images.length;
    controls.append(choice);
    const compared = make("label", {}, reference, make("span", { textContent: "reference (white)" }));
    compared.hidden = !data.images.length;
    controls.append(structures, choices("show", LAYERS, 0, set("layer")), slider, compared);
    if (live) controls.append(labelled("your own image (PNG, JPEG)", file), fits);
    const both = make("div", { className: "explorer-panels" }, ...panels.map((one) => one.box));
    root.prepend(controls, both, status, spoken);
    if (live) {
      root.prepend(make("p", { textContent: "Type any sentence on either side, or drop an image of your own. The "
        + `model (${live.megabytes} MB) is loaded when you first ask and runs in your browser: what you type and `
        + "your image never leave it. The page’s address then holds your sentence, so that you can share it." }));
      window.addEventListener("hashchange", () => asked() && update());
      if (asked()) root.scrollIntoView();
    }
    update();
  };

  /* The landing page's image: a sentence lights up what it names. */
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
