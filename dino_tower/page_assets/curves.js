// One cursor through all curves: pointing at a step in one of them reads every one of them there.
(() => {
  const charts = [...document.querySelectorAll(".curve")].map((figure) => {
    const canvas = figure.querySelector(".canvas");
    const values = [...figure.querySelectorAll(".key b")];
    const cursor = document.createElement("div");
    cursor.className = "cursor";
    cursor.hidden = true;
    const label = cursor.appendChild(document.createElement("span"));
    canvas.append(cursor);
    const hover = JSON.parse(figure.dataset.hover);
    const dots = hover.lines.map((_, i) => {
      const dot = document.createElement("i");
      dot.className = "dot s" + i;
      dot.hidden = true;
      canvas.append(dot);
      return dot;
    });
    return { canvas, values, rest: values.map((v) => v.textContent), cursor, label, dots, ...hover };
  });

  const nearest = (xs, step) => {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] > step) high = middle; else low = middle;
    }
    return Math.abs(xs[high] - step) < Math.abs(xs[low] - step) ? high : low;
  };

  let shown = null;
  function show(step, asked) {
    shown = step;
    for (const chart of charts) {
      chart.cursor.hidden = false;
      chart.cursor.style.left = (100 * step) / chart.end + "%";
      chart.label.hidden = chart !== asked;
      chart.label.textContent = "step " + Math.round(step).toLocaleString("en");
      chart.lines.forEach((line, i) => {
        const at = nearest(line.x, step);
        chart.dots[i].hidden = false;
        chart.dots[i].style.left = (100 * line.x[at]) / chart.end + "%";
        chart.dots[i].style.bottom = line.y[at] + "%";
        chart.values[i].textContent = line.t[at];
      });
    }
  }
  function hide() {
    shown = null;
    for (const chart of charts) {
      chart.cursor.hidden = true;
      chart.dots.forEach((dot) => (dot.hidden = true));
      chart.values.forEach((value, i) => (value.textContent = chart.rest[i]));
    }
  }

  for (const chart of charts) {
    const point = (event) => {
      const box = chart.canvas.getBoundingClientRect();
      show(Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)) * chart.end, chart);
    };
    chart.canvas.addEventListener("pointermove", point);
    chart.canvas.addEventListener("pointerdown", point);
    chart.canvas.addEventListener("pointerleave", hide);
    chart.canvas.addEventListener("blur", hide);
    chart.canvas.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!move) return;
      event.preventDefault();
      const now = shown === null ? chart.end : shown;
      show(Math.min(chart.end, Math.max(0, now + (move * chart.end) / 50)), chart);
    });
  }
})();
