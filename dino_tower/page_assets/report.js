// The report: which layer's scores are shown, and the similarity explorer across towers.
(() => {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const FINE = 180; // pixels along the longer side of a map

  function show(layer) {
    for (const body of document.querySelectorAll("tbody[data-layer]")) body.hidden = body.dataset.layer !== layer;
  }
  const layers = [...document.querySelectorAll("[name=layer]")];
  for (const input of layers) input.addEventListener("change", () => show(input.value));
  show((layers.find(input => input.checked) || { value: "last" }).value);
  document.getElementById("all")?.addEventListener("change", event =>
    document.body.classList.toggle("all", event.target.checked));

  for (const box of document.querySelectorAll("[data-explorer]")) explorer(box, data.explorers[box.dataset.explorer]);

  function explorer(box, { towers, colours }) {
    const palette = maps.palette(colours, t => 0.12 + 0.8 * t);
    const sights = [...box.querySelectorAll(".sight")], picks = [...box.querySelectorAll(".pick")];
    const state = { picture: 0, x: 0.5, y: 0.5 };
    const views = sights.map((sight, i) => {
      const { h, w, scales, features } = towers[i], canvas = sight.querySelector("canvas");
      const grow = maps.enlarger(h, w, Math.max(2, Math.round(FINE / Math.max(h, w))));
      canvas.width = grow.W;
      canvas.height = grow.H;
      const context = canvas.getContext("2d"), image = context.createImageData(grow.W, grow.H);
      const pixels = new Uint32Array(image.data.buffer), cosine = new Float32Array(h * w), unpacked = [];
      return () => {
        const own = unpacked[state.picture] ||= maps.features(features[state.picture], scales);
        const row = Math.min(h - 1, Math.floor(state.y * h)), column = Math.min(w - 1, Math.floor(state.x * w));
        maps.cosines(own, maps.query(own, row * w + column, scales), cosine);
        // towers differ in how alike all their patches are: each is shown over its own range
        const sorted = Float32Array.from(cosine).sort(), low = sorted[Math.floor(0.02 * sorted.length)];
        const smooth = grow.enlarge(cosine), scale = 255 / Math.max(1 - low, 1e-3);
        for (let p = 0; p < pixels.length; p++) pixels[p] = palette[Math.max(0, Math.min(255, (smooth[p] - low) * scale)) | 0];
        context.putImageData(image, 0, 0);
        const cross = sight.querySelector(".cross");
        cross.style.left = `${100 * (column + 0.5) / w}%`;
        cross.style.top = `${100 * (row + 0.5) / h}%`;
      };
    });
    let waiting = 0;
    const draw = () => { waiting = 0; for (const view of views) view(); };
    const update = () => { if (!waiting) waiting = requestAnimationFrame(draw); };

    sights.forEach((sight, i) => {
      sight.addEventListener("pointerdown", event => {
        const area = sight.getBoundingClientRect();
        state.x = Math.min(0.999, Math.max(0, (event.clientX - area.left) / area.width));
        state.y = Math.min(0.999, Math.max(0, (event.clientY - area.top) / area.height));
        update();
      });
      sight.addEventListener("keydown", event => {
        const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
        if (!step) return;
        event.preventDefault();
        const { h, w } = towers[i];
        state.x = Math.min(1 - 0.5 / w, Math.max(0.5 / w, state.x + step[0] / w));
        state.y = Math.min(1 - 0.5 / h, Math.max(0.5 / h, state.y + step[1] / h));
        update();
      });
    });
    picks.forEach((pick, i) => pick.addEventListener("click", () => {
      state.picture = i;
      for (const other of picks) other.setAttribute("aria-pressed", String(other === pick));
      for (const sight of sights) sight.querySelector("img").src = pick.querySelector("img").src;
      update();
    }));
    draw();
  }
})();
