// The arithmetic of the explorer: 8-bit features, cosines, smooth maps, colours, outlines. Touches nothing on the page.
const maps = (() => {
  function bytes(text) {
    const raw = atob(text), out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out;
  }

  // A picture's features: codes [n][k] (times scales = features) and 1 / length of each patch.
  function features(text, scales) {
    const codes = new Int8Array(bytes(text).buffer), k = scales.length;
    const inverse = new Float64Array(codes.length / k);
    for (let i = 0; i < inverse.length; i++) {
      let sum = 0;
      for (let c = 0; c < k; c++) sum += (codes[i * k + c] * scales[c]) ** 2;
      inverse[i] = sum > 0 ? 1 / Math.sqrt(sum) : 0;
    }
    return { codes, inverse };
  }

  // What a patch asks of all others: its features times the scales once more, so that codes need no unpacking.
  function query({ codes, inverse }, at, scales) {
    const k = scales.length, asked = new Float64Array(k);
    for (let c = 0; c < k; c++) asked[c] = codes[at * k + c] * scales[c] * scales[c] * inverse[at];
    return asked;
  }

  // Cosine of every patch with the query, into `out`.
  function cosines({ codes, inverse }, asked, out) {
    const k = asked.length, even = k & ~3;
    for (let i = 0, at = 0; i < out.length; i++, at += k) {
      let a = 0, b = 0, c = 0, d = 0, j = 0;
      for (; j < even; j += 4) {
        a += asked[j] * codes[at + j];
        b += asked[j + 1] * codes[at + j + 1];
        c += asked[j + 2] * codes[at + j + 2];
        d += asked[j + 3] * codes[at + j + 3];
      }
      for (; j < k; j++) a += asked[j] * codes[at + j];
      out[i] = (a + b + c + d) * inverse[i];
    }
  }

  // For each of n * times places between n values: the four values around it and their cubic B-spline weights. It
  // blurs a little, which is what hides the staircase of the patches; the numbers on the page are not taken from it.
  function spline(n, times) {
    const at = new Uint16Array(4 * n * times), weight = new Float32Array(4 * n * times);
    for (let i = 0; i < n * times; i++) {
      const place = (i + 0.5) / times - 0.5, first = Math.floor(place), t = place - first;
      const w = [
        (1 - t) ** 3 / 6, ((3 * t - 6) * t * t + 4) / 6, (((-3 * t + 3) * t + 3) * t + 1) / 6, t ** 3 / 6,
      ];
      for (let p = 0; p < 4; p++) {
        at[4 * i + p] = Math.min(n - 1, Math.max(0, first - 1 + p));
        weight[4 * i + p] = w[p];
      }
    }
    return { at, weight };
  }

  // A way to make maps [h, w] `times` larger and smooth; it keeps its buffers.
  function enlarger(h, w, times) {
    const across = spline(w, times), down = spline(h, times), H = h * times, W = w * times;
    const wide = new Float32Array(h * W), out = new Float32Array(H * W);
    function enlarge(values) {
      for (let y = 0; y < h; y++) {
        for (let x = 0, q = 0; x < W; x++, q += 4) {
          const { at, weight } = across, row = y * w;
          wide[y * W + x] = values[row + at[q]] * weight[q] + values[row + at[q + 1]] * weight[q + 1]
            + values[row + at[q + 2]] * weight[q + 2] + values[row + at[q + 3]] * weight[q + 3];
        }
      }
      for (let y = 0, q = 0; y < H; y++, q += 4) {
        const r0 = down.at[q] * W, r1 = down.at[q + 1] * W, r2 = down.at[q + 2] * W, r3 = down.at[q + 3] * W;
        const w0 = down.weight[q], w1 = down.weight[q + 1], w2 = down.weight[q + 2], w3 = down.weight[q + 3];
        for (let x = 0, o = y * W; x < W; x++, o++)
          out[o] = wide[r0 + x] * w0 + wide[r1 + x] * w1 + wide[r2 + x] * w2 + wide[r3 + x] * w3;
      }
      return out;
    }
    return { H, W, enlarge };
  }

  // 256 colours between anchors "rrggbb rrggbb ..."; alpha(t) is how much of the photo they cover at t = 0..1.
  function palette(anchors, alpha) {
    const stops = anchors.split(" ").map(text => [0, 2, 4].map(i => parseInt(text.slice(i, i + 2), 16)));
    const table = new Uint8ClampedArray(256 * 4);
    for (let i = 0; i < 256; i++) {
      const t = i / 255, place = t * (stops.length - 1), low = Math.min(stops.length - 2, Math.floor(place));
      for (let c = 0; c < 3; c++)
        table[4 * i + c] = stops[low][c] + (stops[low + 1][c] - stops[low][c]) * (place - low);
      table[4 * i + 3] = 255 * alpha(t);
    }
    return new Uint32Array(table.buffer);
  }

  // The outline of a set of cells as an SVG path, its corners rounded: through the middles of the cells' sides.
  function outline(inside, h, w) {
    const has = (y, x) => y >= 0 && x >= 0 && y < h && x < w && inside[y * w + x];
    const next = new Map(); // corner -> the corners that its sides lead to, the set on their right
    const side = (y0, x0, y1, x1) => {
      const from = y0 * (w + 1) + x0;
      if (!next.has(from)) next.set(from, []);
      next.get(from).push(y1 * (w + 1) + x1);
    };
    for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) if (has(y, x)) {
      if (!has(y - 1, x)) side(y, x, y, x + 1);
      if (!has(y, x + 1)) side(y, x + 1, y + 1, x + 1);
      if (!has(y + 1, x)) side(y + 1, x + 1, y + 1, x);
      if (!has(y, x - 1)) side(y + 1, x, y, x);
    }
    const point = corner => [corner % (w + 1), Math.floor(corner / (w + 1))];
    let path = "";
    for (const [start, ways] of next) while (ways.length) {
      const loop = [start];
      for (let here = ways.pop(); here !== start; here = next.get(here).pop()) loop.push(here);
      const points = loop.map(point);
      const middle = i => {
        const [a, b] = [points[i % points.length], points[(i + 1) % points.length]];
        return `${(a[0] + b[0]) / 2} ${(a[1] + b[1]) / 2}`;
      };
      path += `M${middle(0)}`;
      for (let i = 1; i <= points.length; i++) path += `Q${points[i % points.length].join(" ")} ${middle(i)}`;
      path += "Z";
    }
    return path;
  }

  return { bytes, features, query, cosines, enlarger, palette, outline };
})();
