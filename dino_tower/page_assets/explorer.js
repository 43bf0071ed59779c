// The explorer: one patch is chosen, every picture answers.
const explorer = (() => {
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  const CUT = 128, ZOOMS = [0.55, 0.75, 1, 1.35, 1.8, 2.5];
  const find = id => document.getElementById(id);
  const palettes = Object.fromEntries(
    Object.entries(data.colours).map(([name, anchors]) => [name, maps.palette(anchors, draw.cover[name])]));
  const pictures = [...document.querySelectorAll(".sight")].map((box, i) =>
    draw.make(box, data.pictures[i], data, palettes));
  const views = [...document.querySelectorAll("[name=view]")], heads = [...document.querySelectorAll("[name=head]")];
  const strength = { similarity: 85, attention: 85, pca: 85, foreground: 92 };
  const state = { view: "similarity", head: 0, picture: 0, patch: 0, stretch: false, zoom: 2 };
  const place = (picture, row, column) => row * pictures[picture].w + column;
  const number = value => (Math.abs(value) < 0.005 ? 0 : value).toFixed(2).replace("-", "−");
  let range = [0, 1], waiting = 0, remembering = 0, saying = 0, hovered;

  // --- what is shown

  function legend() {
    const names = {
      similarity: "cosine to the chosen patch", attention: "60 % of the attention is outlined; below, the area it takes",
      pca: "patches of one colour have like features", foreground: "first main direction, cut in two; below, the area kept",
    };
    const heat = state.view === "similarity" || state.view === "attention";
    const box = find("legend");
    box.classList.toggle("bare", !heat);
    box.querySelector(".meaning").textContent = names[state.view];
    find("fit").hidden = state.view !== "similarity";
    find("heads").hidden = state.view !== "attention";
    if (!heat) return;
    const ramp = box.querySelector("canvas").getContext("2d"), image = ramp.createImageData(256, 1);
    new Uint32Array(image.data.buffer).set(palettes[state.view === "similarity" ? "viridis" : "inferno"]);
    for (let i = 3; i < image.data.length; i += 4) image.data[i] = 255;
    ramp.putImageData(image, 0, 0);
    const [low, high] = range, at = i => number(low + (high - low) * i / 4);
    const texts = state.view === "attention" ? ["none", "most"]
      : [0, 1, 2, 3, 4].map(i => (i || state.stretch ? at(i) : "≤ 0"));
    box.querySelector(".numbers").replaceChildren(...texts.map(text => {
      const part = document.createElement("span");
      part.textContent = text;
      return part;
    }));
  }

  function compare() {
    const asked = maps.query(pictures[state.picture].features, state.patch, data.scales);
    for (const picture of pictures) maps.cosines(picture.features, asked, picture.cosine);
    range = [0, 1];
    if (!state.stretch) return;
    const some = pictures.flatMap(p => Array.from(p.cosine).filter((_, i) => i % 5 === 0)).sort((a, b) => a - b);
    range = [some[Math.floor(0.02 * some.length)], some[Math.floor(0.995 * (some.length - 1))]];
    if (range[1] - range[0] < 0.02) range[0] = range[1] - 0.02;
  }

  function caption(picture, text) {
    picture.box.parentElement.querySelector(".value").textContent = text;
  }

  function render() {
    waiting = 0;
    compare();
    document.body.dataset.view = state.view;
    const paper = state.view === "foreground" ? rgb(getComputedStyle(document.body).backgroundColor) : [];
    const percent = share => `${share && share < 0.005 ? "< 1" : Math.round(100 * share)} %`;
    pictures.forEach((picture, i) => {
      const own = i === state.picture, similar = state.view === "similarity";
      picture.box.classList.toggle("active", own && similar);
      const best = similar && !own ? picture.best() : undefined;
      draw.mark(picture.box.querySelector(".cross"), picture, own && similar ? state.patch : undefined);
      draw.mark(picture.box.querySelector(".best"), picture, best);
      if (similar) {
        picture.similarity(...range);
        caption(picture, own ? "chosen" : number(picture.cosine[best]));
      } else if (state.view === "attention") {
        caption(picture, percent(picture.attention(state.head)));
      } else if (state.view === "foreground") {
        caption(picture, percent(picture.foreground(CUT, paper)));
      } else {
        picture.pca();
        caption(picture, "");
      }
    });
    legend();
    point();
  }

  function rgb(text) {
    return text.match(/\d+/g).slice(0, 3).map(Number);
  }

  // The hovered patch on the scale.
  function point(event) {
    const tick = find("tick"), tip = find("tip"), on = hovered && state.view === "similarity";
    tick.hidden = !on;
    tip.hidden = !on || !event;
    if (!on) return;
    const value = pictures[hovered.picture].cosine[hovered.patch], share = (value - range[0]) / (range[1] - range[0]);
    tick.style.left = `${100 * Math.min(1, Math.max(0, share))}%`;
    if (!event) return;
    tip.textContent = number(value);
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - 60)}px`;
    tip.style.top = `${event.clientY - 34 < 4 ? event.clientY + 18 : event.clientY - 34}px`;
  }

  function update() {
    if (!waiting) waiting = requestAnimationFrame(render);
    clearTimeout(remembering);
    remembering = setTimeout(remember, 250); // browsers refuse addresses that change with every move
    clearTimeout(saying);
    saying = setTimeout(say, 500);
  }

  // Whoever picks a patch wants to see what is like it, whatever was shown before.
  function pick(picture, patch) {
    Object.assign(state, { picture, patch });
    if (state.view === "similarity") return update();
    state.view = "similarity";
    settle();
  }

  function say() {
    const { name, w } = pictures[state.picture];
    const others = pictures.map((p, i) => [p.name, p.cosine[p.best()], i]).filter(([, , i]) => i !== state.picture);
    others.sort((a, b) => b[1] - a[1]);
    const like = others.slice(0, 3).map(([other, cosine]) => `${other} ${number(cosine)}`).join(", ");
    find("said").textContent = `Row ${Math.floor(state.patch / w) + 1}, column ${state.patch % w + 1} of ${name}.`
      + (like ? ` Most similar: ${like}.` : "");
  }

  // --- the address remembers it

  function remember() {
    const { w } = pictures[state.picture];
    const at = [state.picture + 1, Math.floor(state.patch / w) + 1, state.patch % w + 1].join(",");
    const words = { view: state.view, patch: at, head: state.head || "", opacity: strength[state.view],
      stretch: state.stretch ? 1 : "", zoom: state.zoom };
    const text = Object.entries(words).filter(([, value]) => value !== "").map(([key, v]) => `${key}=${v}`).join("&");
    history.replaceState(null, "", `#${text}`);
  }

  function recall() {
    const given = new URLSearchParams(location.hash.slice(1)), change = {};
    const whole = (text, low, high) => (/^\d+$/.test(text) && +text >= low && +text <= high ? +text : undefined);
    const [picture, row, column] = (given.get("patch") || "").split(",");
    const i = whole(picture, 1, pictures.length);
    if (i && whole(row, 1, pictures[i - 1].h) && whole(column, 1, pictures[i - 1].w))
      Object.assign(change, { picture: i - 1, patch: place(i - 1, row - 1, column - 1) });
    if (views.some(input => input.value === given.get("view"))) change.view = given.get("view");
    change.head = whole(given.get("head") || "0", 0, data.heads) || 0;
    change.stretch = given.get("stretch") === "1";
    change.zoom = whole(given.get("zoom"), 0, ZOOMS.length - 1) ?? state.zoom;
    const opacity = whole(given.get("opacity"), 0, 100);
    if (opacity !== undefined) strength[change.view || state.view] = opacity;
    Object.assign(state, change);
    settle();
  }

  // The controls show the state, and the state is shown.
  function settle() {
    for (const input of views) input.checked = input.value === state.view;
    for (const input of heads) input.checked = +input.value === state.head;
    find("fit").setAttribute("aria-pressed", state.stretch);
    find("opacity").value = strength[state.view];
    document.documentElement.style.setProperty("--strength", strength[state.view] / 100);
    layOut();
    find("smaller").disabled = state.zoom === 0;
    find("larger").disabled = state.zoom === ZOOMS.length - 1;
    update();
  }

  function layOut() {
    const gallery = document.querySelector(".gallery"), style = getComputedStyle(gallery);
    const wanted = ZOOMS[state.zoom] * parseFloat(style.getPropertyValue("--row"));
    draw.justify(gallery, [...gallery.children], wanted, parseFloat(style.columnGap));
  }
  let wide = 0; // laying out changes the height, which is no reason to do it again
  new ResizeObserver(([entry]) => {
    if (entry.contentRect.width !== wide) layOut();
    wide = entry.contentRect.width;
  }).observe(document.querySelector(".gallery"));

  for (const input of views) input.addEventListener("change", () => { state.view = input.value; settle(); });
  for (const input of heads) input.addEventListener("change", () => { state.head = +input.value; settle(); });
  find("fit").addEventListener("click", () => { state.stretch = !state.stretch; settle(); });
  find("opacity").addEventListener("input", event => { strength[state.view] = +event.target.value; settle(); });
  const zoom = by => {
    state.zoom += by;
    settle();
    pictures[state.picture].box.scrollIntoView({ block: "nearest" });
  };
  find("more").addEventListener("click", event => {
    const open = event.currentTarget.getAttribute("aria-expanded") !== "true";
    event.currentTarget.setAttribute("aria-expanded", open);
  });
  find("smaller").addEventListener("click", () => zoom(-1));
  find("larger").addEventListener("click", () => zoom(1));
  addEventListener("hashchange", recall);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => update());

  // --- mouse, finger, keys

  function under(event, i) {
    const { box, h, w } = pictures[i], frame = box.getBoundingClientRect();
    const cell = (at, size, n) => Math.min(n - 1, Math.max(0, Math.floor(at / size * n)));
    return cell(event.clientY - frame.top, frame.height, h) * w + cell(event.clientX - frame.left, frame.width, w);
  }

  // A finger covers what it points at: show it above the finger.
  function magnify(event, i) {
    const loupe = find("loupe"), { box, w } = pictures[i], frame = box.getBoundingClientRect();
    const zoom = 18 / (frame.width / w);
    loupe.hidden = event.pointerType !== "touch" || zoom < 1.3;
    if (loupe.hidden) return;
    const photo = `url(${box.querySelector("img").src})`, half = 58;
    if (loupe.dataset.picture !== String(i)) loupe.style.backgroundImage = photo;
    loupe.dataset.picture = i;
    loupe.style.backgroundSize = `${frame.width * zoom}px ${frame.height * zoom}px`;
    const x = Math.min(frame.width, Math.max(0, event.clientX - frame.left));
    const y = Math.min(frame.height, Math.max(0, event.clientY - frame.top));
    loupe.style.backgroundPosition = `${half - x * zoom}px ${half - y * zoom}px`;
    loupe.style.left = `${Math.min(innerWidth - 2 * half - 6, Math.max(6, event.clientX - half))}px`;
    loupe.style.top = `${event.clientY > 190 ? event.clientY - 170 : event.clientY + 54}px`;
  }

  pictures.forEach(({ box }, i) => {
    let pressed = null; // where the pointer went down, and whether it chooses as it moves
    const choose = event => {
      pick(i, under(event, i));
      magnify(event, i);
    };
    box.addEventListener("pointerdown", event => {
      if (event.button) return;
      // A finger on another picture may be about to scroll the page; on the chosen one it moves the patch.
      const live = event.pointerType === "mouse" || (i === state.picture && state.view === "similarity");
      pressed = { x: event.clientX, y: event.clientY, live };
      box.setPointerCapture(event.pointerId);
      box.focus({ preventScroll: true });
      if (live) choose(event);
    });
    box.addEventListener("pointermove", event => {
      if (event.pointerType === "mouse") {
        hovered = { picture: i, patch: under(event, i) };
        point(event);
      }
      if (!pressed) return;
      if (!pressed.live && Math.abs(event.clientX - pressed.x) > 8) pressed.live = true;
      if (pressed.live) choose(event);
    });
    box.addEventListener("pointerup", event => {
      if (pressed && !pressed.live) choose(event);
      pressed = null;
      find("loupe").hidden = true;
    });
    box.addEventListener("pointercancel", () => {
      pressed = null;
      find("loupe").hidden = true;
    });
    box.addEventListener("pointerleave", () => { hovered = undefined; point(); });
  });

  // A picture that was clicked has the focus, but only who uses the keys needs to see that.
  for (const kind of ["keydown", "pointerdown"])
    document.addEventListener(kind, () => { document.body.dataset.input = kind; }, true);

  const MOVES = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Enter: [0, 0], " ": [0, 0] };
  document.addEventListener("keydown", event => {
    const move = MOVES[event.key], box = event.target.closest(".sight");
    if (!move || event.ctrlKey || event.metaKey || event.altKey || (!box && event.target !== document.body)) return;
    if (!box && (event.key === "Enter" || event.key === " ")) return; // a space scrolls the page, as everywhere
    event.preventDefault();
    const i = box ? +box.dataset.picture : state.picture, { h, w } = pictures[i];
    if (i !== state.picture) return pick(i, pictures[i].best());
    const step = event.shiftKey ? 5 : 1, bound = (at, n) => Math.min(n - 1, Math.max(0, at));
    const row = bound(Math.floor(state.patch / w) + step * move[0], h);
    pick(i, place(i, row, bound(state.patch % w + step * move[1], w)));
  });

  state.picture = data.start[0];
  state.patch = place(...data.start);
  recall();
  render();
  return { state, pictures, data, compare, render };
})();
