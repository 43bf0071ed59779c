// The pictures through training: a slider, a strip of small ones, and a button that plays them.
(() => {
  const source = document.getElementById("timeline-data");
  if (!source) return;
  const { steps, notes, pictures } = JSON.parse(source.textContent);
  const root = document.querySelector(".timeline");
  const slider = root.querySelector("input[type=range]");
  const output = root.querySelector("output");
  const button = root.querySelector(".scrub button");
  const film = root.querySelector(".film");
  const shown = [...root.querySelectorAll("img[data-picture]")];
  let timer = 0;

  // A picture missing at one step keeps showing the one before.
  const at = (name, index) => {
    while (index > 0 && !pictures[name][index]) index--;
    return pictures[name][index] || pictures[name].find(Boolean);
  };
  const every = Math.ceil(steps.length / 8);
  const frames = steps.map((step, i) => {
    const frame = document.createElement("img");
    frame.src = at(shown[0].dataset.picture, i);
    frame.alt = "";
    frame.title = "step " + step.toLocaleString("en");
    frame.classList.toggle("key", (steps.length - 1 - i) % every === 0);
    frame.addEventListener("click", () => { stop(); show(i); });
    film.append(frame);
    return frame;
  });

  function show(index) {
    slider.value = index;
    for (const image of shown) image.src = at(image.dataset.picture, index);
    frames.forEach((frame, i) => frame.classList.toggle("now", i === index));
    output.innerHTML = "<b></b><span></span>";
    output.firstChild.textContent = "step " + steps[index].toLocaleString("en");
    output.lastChild.textContent = notes[index];
    slider.setAttribute("aria-valuetext", output.textContent);
  }
  function stop() {
    clearInterval(timer);
    timer = 0;
    button.classList.remove("playing");
    button.setAttribute("aria-label", "play");
  }
  function play() {
    if (+slider.value === steps.length - 1) show(0);
    button.classList.add("playing");
    button.setAttribute("aria-label", "pause");
    timer = setInterval(() => {
      if (+slider.value >= steps.length - 1) stop(); else show(+slider.value + 1);
    }, 420);
  }

  slider.addEventListener("input", () => { stop(); show(+slider.value); });
  button.addEventListener("click", () => (timer ? stop() : play()));
  for (const sight of root.querySelectorAll(".sight"))
    sight.addEventListener("click", () => {
      const large = sight.classList.toggle("large");
      sight.setAttribute("aria-pressed", large);
      sight.scrollIntoView({ block: "nearest" });
    });
  show(steps.length - 1);
})();
