"use strict";
(() => {
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const all = (root, selector) => Array.from(root.querySelectorAll(selector));
  const players = [];

  /* A video that plays when it is wanted and on the screen. */
  function makePlayer(video, box, onChange = () => {}) {
    const player = { wanted: !calm, seen: false };
    player.sync = () => {
      if (player.wanted && player.seen) video.play().catch(() => {}); // paused again meanwhile
      else video.pause();
      onChange(player.wanted);
      showMotion();
    };
    player.want = (wanted) => { player.wanted = wanted; player.sync(); };
    new IntersectionObserver((entries) => {
      player.seen = entries[entries.length - 1].isIntersecting;
      player.sync();
    }).observe(box);
    video.removeAttribute("controls");
    players.push(player);
    return player;
  }

  const motion = document.querySelector(".motion");
  function showMotion() {
    motion.hidden = players.length === 0;
    motion.textContent = players.some((p) => p.wanted) ? "Pause all videos" : "Play all videos";
  }
  motion.addEventListener("click", () => {
    const wanted = !players.some((p) => p.wanted);
    players.forEach((p) => p.want(wanted));
  });

  /* Calls show(frame) for the frame on the screen, whenever it changes. */
  function onFrame(video, fps, show) {
    const at = (time, slack) => show(Math.floor(time * fps + slack));
    if (video.requestVideoFrameCallback) {
      const next = (_, frame) => { at(frame.mediaTime, 0.5); video.requestVideoFrameCallback(next); };
      video.requestVideoFrameCallback(next);
    } else {
      const next = () => { if (!video.paused) at(video.currentTime, 1e-3); requestAnimationFrame(next); };
      requestAnimationFrame(next);
    }
    for (const event of ["loadeddata", "seeked"]) {
      video.addEventListener(event, () => at(video.currentTime, 1e-3));
    }
    if (video.readyState >= 2) at(video.currentTime, 1e-3);
  }

  /* One video holds all clips of a comparison side by side; each canvas shows its part of it. */
  function comparison(root) {
    const video = root.querySelector("video");
    const canvases = all(root, ".panels canvas");
    const clips = all(root, ".stack figure:first-child canvas");
    const [play, scrubber, readout] = [".play", ".scrubber", ".frame"].map((s) => root.querySelector(s));
    const psnrs = all(root, ".psnr").map((e) => [e.querySelector("b"), JSON.parse(e.dataset.psnr)]);
    const fps = Number(root.dataset.fps);
    const frames = Number(root.dataset.frames);
    const wipe = makeWipe(root, clips, cut);
    let frame = 0;

    function cut(context, canvas, x, width) {
      if (width <= 0) return;
      const [top, left] = [Number(canvas.dataset.top), Number(canvas.dataset.left)];
      context.drawImage(video, left + x, top, width, canvas.height, x, 0, width, canvas.height);
    }
    function draw() {
      for (const canvas of canvases) cut(canvas.getContext("2d"), canvas, 0, canvas.width);
      wipe();
    }
    function show(shown) {
      frame = Math.min(Math.max(shown, 0), frames - 1);
      scrubber.value = frame;
      scrubber.setAttribute("aria-valuetext", `frame ${frame + 1} of ${frames}`);
      readout.textContent = `frame ${frame + 1} / ${frames}`;
      for (const [output, values] of psnrs) output.textContent = values[frame];
      draw();
    }
    function seek(to) {
      player.want(false);
      frame = (to + frames) % frames;
      video.currentTime = (frame + 0.5) / fps;
    }

    root.classList.add("scripted");
    root.querySelector(".controls").hidden = false;
    const player = makePlayer(video, root, (playing) => {
      play.textContent = playing ? "❚❚" : "▶";
      play.setAttribute("aria-label", playing ? "Pause" : "Play");
    });
    onFrame(video, fps, show);
    play.addEventListener("click", () => player.want(!player.wanted));
    scrubber.addEventListener("input", () => seek(Number(scrubber.value)));
    root.addEventListener("keydown", (event) => {
      const { target, key } = event;
      const slider = target.type === "range";
      if (key === " " && (target === root || slider)) player.want(!player.wanted);
      else if (key === "ArrowLeft" && target === root) seek(frame - 1);
      else if (key === "ArrowRight" && target === root) seek(frame + 1);
      else return;
      event.preventDefault();
    });
  }

  function makeWipe(root, clips, cut) {
    const box = root.querySelector(".wipe");
    if (!box) return () => {};
    const [canvas, left, right, place] = ["-canvas", "-left", "-right", "-place"].map((s) => box.querySelector(".wipe" + s));
    const context = canvas.getContext("2d");
    function draw() {
      if (!box.open) return;
      const edge = Math.round((canvas.width * place.value) / 100);
      cut(context, clips[left.value], 0, edge);
      cut(context, clips[right.value], edge, canvas.width - edge);
      context.fillStyle = "#fff";
      context.fillRect(edge - 1, 0, 2, canvas.height);
    }
    function drag(event) {
      if (event.type === "pointermove" && !event.buttons) return;
      const area = canvas.getBoundingClientRect();
      place.value = (100 * (event.clientX - area.left)) / area.width;
      draw();
    }
    canvas.addEventListener("pointerdown", drag);
    canvas.addEventListener("pointermove", drag);
    for (const control of [left, right, place]) control.addEventListener("input", draw);
    box.addEventListener("toggle", draw);
    box.hidden = false;
    return draw;
  }

  function loop(video) {
    const player = makePlayer(video, video);
    const toggle = () => player.want(!player.wanted);
    video.addEventListener("click", toggle);
    video.addEventListener("keydown", (event) => {
      if (event.key !== " ") return;
      event.preventDefault();
      toggle();
    });
  }

  /* Reads the values of a plot at the pointer or at the arrow keys' position. */
  function plot(root) {
    const { x: [low, high], series } = JSON.parse(root.dataset.plot);
    const [cursor, tip] = [root.querySelector(".cursor"), root.querySelector(".tip")];
    const place = (value) => (value - low) / (high - low);
    const stops = [...new Set(series.flatMap(([, xs]) => xs))].sort((a, b) => a - b);
    const text = (value) => value === null ? "–" : value.toLocaleString("en", { maximumSignificantDigits: 5 });
    let stop = -1;

    const nearest = (xs, at) => xs.reduce((best, x, i) => Math.abs(place(x) - at) < Math.abs(place(xs[best]) - at) ? i : best, 0);
    function read(index) {
      stop = Math.min(Math.max(index, 0), stops.length - 1);
      const at = place(stops[stop]);
      cursor.style.left = `${100 * at}%`;
      tip.replaceChildren(line(null, "", text(stops[stop])), ...series.map(([name, xs, ys], i) => {
        const here = nearest(xs, at);
        const where = xs[here] === stops[stop] ? "" : ` at ${text(xs[here])}`;
        return line(i % 8, name, text(ys[here]), where);
      }));
      cursor.hidden = tip.hidden = false;
      const room = root.clientWidth - tip.offsetWidth;
      const wish = at * root.clientWidth + (at < 0.5 ? 12 : -12 - tip.offsetWidth);
      tip.style.left = `${Math.min(Math.max(wish, 0), Math.max(room, 0))}px`;
    }
    function line(color, name, value, where = "") {
      const row = document.createElement("div");
      if (color !== null) row.append(root.closest(".item").querySelector(`.legend .s${color}`).cloneNode(true));
      row.append(name || root.dataset.xLabel);
      row.append(Object.assign(document.createElement("b"), { textContent: value }));
      row.append(Object.assign(document.createElement("small"), { textContent: where }));
      return row;
    }
    const hide = () => { cursor.hidden = tip.hidden = true; };
    root.addEventListener("pointermove", (event) => {
      const area = root.getBoundingClientRect();
      read(nearest(stops, (event.clientX - area.left) / area.width));
    });
    root.addEventListener("pointerleave", hide);
    root.addEventListener("blur", hide);
    root.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (event.key === "Escape") hide();
      if (!step) return;
      event.preventDefault();
      read(stop < 0 ? (step > 0 ? 0 : stops.length - 1) : stop + step * Math.ceil(stops.length / 200));
    });
  }

  function table(root) {
    const compare = (a, b) => a === "" || b === "" ? (a === "") - (b === "")
      : isNaN(a) || isNaN(b) ? a.localeCompare(b) : Number(a) - Number(b);
    const heads = all(root, "thead th");
    const bodies = all(root, "tbody");
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      for (const body of bodies) { // measured and published rows never mix
        const value = (row) => row.cells[column].dataset.value;
        const rows = all(body, "tr:not(.group)");
        const missing = rows.filter((row) => value(row) === "–");
        const known = rows.filter((row) => value(row) !== "–").sort((a, b) => compare(value(a), value(b)));
        body.append(...(down ? known.reverse() : known), ...missing);
      }
    }));
    const tools = root.querySelector(".tools");
    if (!tools) return;
    tools.hidden = false;
    const [filter, published] = [".filter", ".with-published"].map((s) => tools.querySelector(s));
    const names = heads.map((head) => head.dataset.name.toLowerCase());
    const holds = { "<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b, "=": (a, b) => a === b };

    /* "ssim > 0.5" tests a column; anything else is a part of the row's text. */
    function test(part) {
      const [, name, sign, limit] = part.match(/^(.+?)\s*(<=|>=|<|>|=)\s*(-?[\d.]+(?:e[-+]?\d+)?)$/) || [];
      const exact = names.indexOf(name);
      const column = exact < 0 && name ? names.findIndex((other) => other.startsWith(name)) : exact;
      if (column > 0) return (row) => holds[sign](Number(row.cells[column].dataset.value), Number(limit));
      return (row) => row.textContent.toLowerCase().includes(part);
    }
    function apply() {
      const parts = filter ? filter.value.toLowerCase().split(",").map((part) => part.trim()) : [];
      const tests = parts.filter(Boolean).map(test);
      let shown = 0;
      for (const body of bodies) {
        const allowed = !published || published.checked || !body.classList.contains("published");
        const rows = all(body, "tr:not(.group)");
        for (const row of rows) row.hidden = !allowed || !tests.every((holds) => holds(row));
        const left = rows.filter((row) => !row.hidden).length;
        for (const group of all(body, ".group")) group.hidden = left === 0;
        shown += left;
      }
      root.querySelector(".nothing").hidden = shown > 0;
    }
    for (const control of [filter, published]) if (control) control.addEventListener("input", apply);
    for (const box of all(tools, "[data-column]")) {
      box.addEventListener("input", () => {
        for (const row of all(root, "tr:not(.group)")) row.cells[box.dataset.column].hidden = !box.checked;
      });
    }
  }

  /* Orders a section's clips by a metric and leaves out those outside a range. */
  function chooser(tools) {
    const [by, order, least, most, count] = [".by", ".order", ".least", ".most", ".count"].map((s) => tools.querySelector(s));
    const clips = all(tools.parentElement, "article[data-scores]").map((article) => [article, JSON.parse(article.dataset.scores)]);
    const end = clips[clips.length - 1][0].nextElementSibling;
    function apply() {
      const value = ([, scores]) => scores[by.value];
      const sorted = by.value ? [...clips].sort((a, b) => order.value * (value(a) - value(b))) : clips;
      const inside = (score) => !by.value || ((least.value === "" || score >= Number(least.value)) && (most.value === "" || score <= Number(most.value)));
      for (const clip of sorted) {
        clip[0].hidden = !inside(value(clip));
        tools.parentElement.insertBefore(clip[0], end);
      }
      count.textContent = `${clips.filter(([article]) => !article.hidden).length} of ${clips.length} clips`;
      for (const player of players) player.sync(); // moving a video pauses it
    }
    for (const control of [by, order, least, most]) control.addEventListener("input", apply);
    tools.hidden = false;
    apply();
  }

  all(document, ".player").forEach(comparison);
  all(document, "video.loop").forEach(loop);
  all(document, ".plot").forEach(plot);
  all(document, ".item.table").forEach(table);
  all(document, ".clip-tools").forEach(chooser);
})();
