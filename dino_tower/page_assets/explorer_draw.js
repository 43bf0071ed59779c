// Draws the maps of one picture over its photo: a small canvas that the browser stretches, an outline, two marks.
const draw = (() => {
  const FINE = 220; // pixels along the longer side of a map; the browser's own smoothing does the rest
  const EDGE = 10; // grey levels over which the foreground fades out

  // How much of the photo a colour covers: little where there is nothing to see.
  const cover = { viridis: t => 0.1 + 0.8 * t, inferno: t => 0.1 + 0.8 * Math.sqrt(t) };

  function make(box, packed, data, palettes) {
    const { h, w } = packed, n = h * w;
    const canvas = box.querySelector("canvas"), context = canvas.getContext("2d");
    const [halo, line] = box.querySelectorAll("path");
    const grow = maps.enlarger(h, w, Math.max(2, Math.round(FINE / Math.max(h, w))));
    canvas.width = grow.W;
    canvas.height = grow.H;
    const image = context.createImageData(grow.W, grow.H);
    const pixels = new Uint32Array(image.data.buffer), levels = image.data;
    const features = maps.features(packed.features, data.scales);
    const cosine = new Float32Array(n);
    const colours = maps.bytes(packed.colours), front = maps.bytes(packed.foreground);
    const light = packed.light && maps.bytes(packed.light), bits = packed.outlined && maps.bytes(packed.outlined);
    const outlines = [];

    const paint = path => {
      context.putImageData(image, 0, 0);
      halo.setAttribute("d", path);
      line.setAttribute("d", path);
    };
    function heat(values, low, high, palette) {
      const smooth = grow.enlarge(values), scale = 255 / (high - low);
      for (let i = 0; i < pixels.length; i++) {
        const level = (smooth[i] - low) * scale;
        pixels[i] = palette[level <= 0 ? 0 : level >= 255 ? 255 : level | 0];
      }
    }
    const outlined = (head, i) => bits[(head * n + i) >> 3] >> (7 - ((head * n + i) & 7)) & 1;

    return {
      box, h, w, n, name: packed.name, features, cosine,

      similarity(low, high) {
        heat(cosine, low, high, palettes.viridis);
        paint("");
      },
      attention(head) {
        heat(light.subarray(head * n, (head + 1) * n), 0, 255, palettes.inferno);
        if (!outlines[head]) {
          const inside = Uint8Array.from({ length: n }, (_, i) => outlined(head, i));
          outlines[head] = { path: maps.outline(inside, h, w), share: inside.reduce((a, b) => a + b, 0) / n };
        }
        paint(outlines[head].path);
        return outlines[head].share;
      },
      pca() {
        const channel = new Uint8Array(n);
        for (let c = 0; c < 3; c++) {
          for (let i = 0; i < n; i++) channel[i] = colours[3 * i + c];
          const smooth = grow.enlarge(channel);
          for (let i = 0; i < smooth.length; i++) levels[4 * i + c] = smooth[i];
        }
        for (let i = 3; i < levels.length; i += 4) levels[i] = 255;
        paint("");
      },
      // The background fades into the paper of the page. cut: the level between the two.
      foreground(cut, paper) {
        const smooth = grow.enlarge(front), [r, g, b] = paper, ground = (b << 16) | (g << 8) | r;
        let kept = 0;
        for (let i = 0; i < pixels.length; i++) {
          const t = Math.min(1, Math.max(0, (cut + EDGE / 2 - smooth[i]) / EDGE));
          pixels[i] = ((255 * t * t * (3 - 2 * t)) << 24) | ground;
        }
        for (let i = 0; i < n; i++) kept += front[i] > cut;
        paint("");
        return kept / n;
      },
      // The patch with the largest cosine.
      best() {
        let best = 0;
        for (let i = 1; i < n; i++) if (cosine[i] > cosine[best]) best = i;
        return best;
      },
    };
  }

  // Put a mark on a patch; without one it is hidden.
  function mark(element, { h, w }, at) {
    element.hidden = at === undefined;
    if (element.hidden) return;
    element.style.left = `${100 * (at % w) / w}%`;
    element.style.top = `${100 * Math.floor(at / w) / h}%`;
    element.style.width = `${100 / w}%`;
    element.style.height = `${100 / h}%`;
  }

  // Rows of equal height that fill the width. Breaks where the rows come nearest to the wanted height, all rows counted.
  function justify(gallery, figures, wanted, gap) {
    const width = gallery.clientWidth, n = figures.length;
    const ratios = figures.map(figure => +figure.style.getPropertyValue("--a"));
    const cost = [0], from = [0], heights = [0];
    for (let end = 1; end <= n; end++) {
      cost[end] = Infinity;
      for (let start = end - 1, sum = 0; start >= 0; start--) {
        sum += ratios[start];
        const height = (width - gap * (end - start - 1)) / sum, off = Math.log(height / wanted);
        if (cost[start] + off * off < cost[end]) [cost[end], from[end], heights[end]] = [cost[start] + off * off, start, height];
        if (height < wanted / 3) break;
      }
    }
    const highest = Math.max(wanted, 0.8 * innerHeight);
    for (let end = n; end > 0; end = from[end])
      for (let i = from[end]; i < end; i++)
        figures[i].style.flex = `0 0 ${Math.floor(100 * ratios[i] * Math.min(heights[end], highest)) / 100 - 0.02}px`;
  }

  return { make, mark, cover, justify };
})();
