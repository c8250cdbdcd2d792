"use strict";
(() => {
  const D = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const testRows = D.test.name.map((_, i) => i);
  const wrong = (i) => D.test.label[i] !== D.test.answer[i];
  const percent = (share, digits = 0) => (100 * share).toFixed(digits) + " %";
  const count = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;

  // Text always becomes a text node: names come from users, and are never HTML.
  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
      else if (value !== undefined) element.setAttribute(key, value);
    }
    element.append(...children);
    return element;
  }
  function draw(tag, attributes = {}, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  // ---- pictures ----
  const thumb = (kind, i) => D[kind].thumb[i];
  const address = (kind, i) => "data:image/jpeg;base64," + D.thumbs[thumb(kind, i)];
  function image(kind, i) {
    if (thumb(kind, i) < 0) return make("span", { class: "none" }, D[kind].name[i]);
    return make("img", { src: address(kind, i), alt: D[kind].name[i] });
  }
  for (const slot of all("img[data-thumb]")) {
    const [kind, i] = slot.dataset.thumb.split(",");
    if (thumb(kind, +i) < 0) slot.replaceWith(image(kind, +i));
    else slot.src = address(kind, +i);
  }
  function tile(i) {
    const caption = wrong(i)
      ? make("span", { class: "is bad" }, D.classes[D.test.answer[i]])
      : make("span", { class: "is soft" }, percent(D.test.p[i]));
    return make("li", {}, make("button", { type: "button", class: "picture", "data-picture": i }, image("test", i), caption));
  }
  function fill(list, rows) {
    const first = rows.slice(0, 120);
    list.replaceChildren(...first.map(tile));
    if (rows.length > first.length) list.append(make("li", { class: "soft" }, `and ${rows.length - first.length} more`));
  }

  // ---- the dialog, with a back button ----
  const dialog = byId("dialog"), body = byId("dialog-body");
  let history = [];
  function show(page) {
    history.push(page);
    const content = page();
    byId("dialog-title").textContent = content.title;
    body.replaceChildren(...content.parts);
    if (history.length > 1) {
      const back = () => { history.pop(); show(history.pop()); };
      body.prepend(make("p", {}, make("button", { type: "button", class: "link", onclick: back }, "← back")));
    }
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  }
  dialog.addEventListener("close", () => { history = []; });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  byId("dialog-close").addEventListener("click", () => dialog.close());

  const gallery = (title, rows) => () => {
    const list = make("ul", { class: "gallery" });
    fill(list, rows);
    return { title: `${title}: ${count(rows.length, "picture")}`, parts: [list] };
  };
  function facts(pairs) {
    return make("dl", { class: "facts" }, ...pairs.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  }
  const picture = (i) => () => {
    const T = D.test, entries = [["class", D.classes[T.label[i]]]];
    entries.push(["prediction", `${D.classes[T.answer[i]]} (${percent(T.p[i], 1)})`]);
    if (wrong(i)) entries.push(["probability of its class", percent(T.q[i], 1)]);
    if (T.set) entries.push(["prediction set", T.set[i].map((k) => D.classes[k]).join(", ") || "none"]);
    if (T.none[i]) entries.push(["rejected", T.none[i]]);
    const parts = [make("div", { class: "big" }, image("test", i), facts(entries))];
    if (T.near[i].length) {
      const shots = T.near[i].map((j, k) => make("li", {}, image("shots", j),
        make("span", {}, D.classes[D.shots.label[j]]), make("span", { class: "soft" }, T.cosine[i][k].toFixed(3))));
      parts.push(make("h3", {}, "The most similar shots, by cosine"), make("ul", { class: "gallery" }, ...shots));
    }
    return { title: T.name[i], parts };
  };
  const shot = (j) => () => ({
    title: D.shots.name[j],
    parts: [make("div", { class: "big" }, image("shots", j), facts([["shot of", D.classes[D.shots.label[j]]]]))],
  });

  const inCell = (i, j) => testRows.filter((r) => D.test.label[r] === i && D.test.answer[r] === j)
    .sort((a, b) => D.test.p[b] - D.test.p[a]);
  const cellTitle = (i, j) => i === j ? `${D.classes[i]}, classified correctly` : `${D.classes[i]} predicted as ${D.classes[j]}`;
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-picture], [data-gallery], button[data-cell]");
    if (!button) return;
    if (button.dataset.picture !== undefined) show(picture(+button.dataset.picture));
    else if (button.dataset.gallery !== undefined) {
      const k = +button.dataset.gallery, rows = testRows.filter((r) => D.test.label[r] === k);
      show(gallery(D.classes[k], rows.sort((a, b) => wrong(b) - wrong(a) || D.test.q[a] - D.test.q[b])));
    } else {
      const [i, j] = button.dataset.cell.split(",").map(Number);
      show(gallery(cellTitle(i, j), inCell(i, j)));
    }
  });

  // Roving tabindex: one element can be reached by the tab key, arrow keys move from there. `next` gives the target.
  function addRovingFocus(root, selector, next) {
    const go = (to) => {
      for (const one of all(`${selector}[tabindex="0"]`, root)) one.setAttribute("tabindex", -1);
      to.setAttribute("tabindex", 0);
    };
    const first = root.querySelector(selector);
    if (first) first.setAttribute("tabindex", 0);
    root.onfocusin = (event) => { const here = event.target.closest(selector); if (here) go(here); };
    root.onkeydown = (event) => {
      const here = event.target.closest(selector);
      if (!here) return;
      if (event.key === "Enter" || event.key === " ") {
        if (here.tagName === "BUTTON") return;
        event.preventDefault();
        here.dispatchEvent(new MouseEvent("click", { bubbles: true }));
      } else if (event.key.startsWith("Arrow")) {
        event.preventDefault();
        const to = next(here, event.key);
        if (to) { go(to); to.focus(); }
      }
    };
  }
  const alongside = (selector, root) => (here, key) => {
    const list = all(selector, root).filter((one) => !one.classList.contains("faded"));
    const step = key === "ArrowRight" || key === "ArrowDown" ? 1 : -1;
    return list[(list.indexOf(here) + step + list.length) % list.length];
  };
  function choices(host, names, choose) {
    const select = (k) => {
      all("button", host).forEach((one, i) => one.setAttribute("aria-pressed", i === k));
      choose(k);
    };
    if (names.length > 1) {
      host.replaceChildren(...names.map((name, k) => make("button", { type: "button", onclick: () => select(k) }, name)));
    }
    select(0);
  }

  function onResize(host, redraw) {
    let width = host.clientWidth;
    new ResizeObserver(() => {
      if (host.clientWidth === width) return;
      width = host.clientWidth;
      redraw();
    }).observe(host);
  }

  // ---- confusions ----
  const counts = new Map();
  for (const r of testRows) {
    const key = D.test.label[r] * D.classes.length + D.test.answer[r];
    counts.set(key, (counts.get(key) || 0) + 1);
  }
  const cells = [...counts].map(([key, n]) => [Math.floor(key / D.classes.length), key % D.classes.length, n]);
  const pairs = cells.filter(([i, j]) => i !== j).sort((a, b) => b[2] - a[2]);
  const totals = new Array(D.classes.length).fill(0), missed = totals.slice();
  for (const [i, j, n] of cells) { totals[i] += n; if (i !== j) { missed[i] += n; missed[j] += n; } }
  const short = (name, length) => name.length <= length ? name : name.slice(0, length - 1 - Math.floor(length / 3)) + "…" + name.slice(-Math.floor(length / 3));

  function openCell(cell) {
    const [i, j] = cell.dataset.cell.split(",").map(Number), rows = inCell(i, j);
    all(".cell[aria-pressed=true]").forEach((one) => one.setAttribute("aria-pressed", false));
    cell.setAttribute("aria-pressed", true);
    openedCell = cell.dataset.cell;
    byId("cell-title").textContent = `${cellTitle(i, j)}: ${count(rows.length, "picture")}`;
    fill(byId("cell-pictures"), rows);
  }
  let shownClasses = [], openedCell = null;
  function matrix(shown) {
    shownClasses = shown;
    // Cells fill the width of the page; they become no higher than a line of text needs.
    const k = shown.length, named = k <= 40, available = byId("matrix-plot").parentElement.clientWidth;
    const letters = Math.max(...shown.map((i) => Math.min(20, D.classes[i].length)));
    const left = named ? 12 + 6.8 * letters : 26;
    const level = named && (available - left - 4) / k >= 6.8 * letters + 8;  // names fit above their columns
    const top = named && !level ? 12 + 4.9 * letters : 26, right = named && !level ? 4.8 * letters : 4;
    const across = Math.max(named ? 18 : 5, (available - left - right) / k), down = Math.min(across, named ? 44 : 1e9);
    const place = new Map(shown.map((i, at) => [i, at]));
    const width = left + k * across + right, height = top + k * down + 4;
    const plot = draw("svg", { width, height, role: "group", "aria-label": "Confusion matrix" });
    plot.append(draw("rect", { class: "back", x: left, y: top, width: k * across, height: k * down }));
    if (named) shown.forEach((i, at) => {
      const middle = (at + 0.5) * across, name = short(D.classes[i], 20);
      plot.append(draw("text", { x: left - 6, y: top + (at + 0.5) * down + 4, "text-anchor": "end" }, name));
      plot.append(level ? draw("text", { x: left + middle, y: top - 8, "text-anchor": "middle" }, name)
        : draw("text", { transform: `translate(${left + middle + 3},${top - 6}) rotate(-45)` }, name));
    });
    else plot.append(draw("text", { x: left, y: 16 }, "predicted class →"), draw("text", { transform: `translate(16,${top}) rotate(-90)`, "text-anchor": "end" }, "← true class"));
    for (const [i, j, n] of cells.slice().sort((a, b) => place.get(a[0]) - place.get(b[0]) || place.get(a[1]) - place.get(b[1]))) {
      if (!place.has(i) || !place.has(j)) continue;
      const x = left + place.get(j) * across, y = top + place.get(i) * down, share = n / totals[i];
      const kind = i === j ? "right" : "wrong", gap = across > 10 ? 1 : 0, opacity = i === j ? 0.15 + 0.85 * share : 0.35 + 0.65 * share;
      const cell = draw("rect", {
        class: `cell ${kind}`, x: x + gap, y: y + gap, width: across - 2 * gap, height: down - 2 * gap, rx: across > 10 ? 2 : 0,
        "fill-opacity": opacity.toFixed(2), role: "button", tabindex: -1,
        "aria-pressed": false, "aria-label": `${cellTitle(i, j)}: ${count(n, "picture")}`, "data-cell": `${i},${j}`,
      });
      plot.append(cell);
      if (named && across >= 18) {
        plot.append(draw("text", { class: opacity > 0.75 ? "on" : "ink", x: x + across / 2, y: y + down / 2 + 4, "text-anchor": "middle", "pointer-events": "none" }, n));
      }
    }
    byId("matrix-plot").replaceChildren(plot);
    plot.addEventListener("click", (event) => { const cell = event.target.closest(".cell"); if (cell) openCell(cell); });
    const read = (event) => {
      const cell = event.target.closest(".cell");
      byId("matrix-reading").textContent = cell ? cell.getAttribute("aria-label") : "";
    };
    plot.addEventListener("mouseover", read);
    plot.addEventListener("focusin", read);
    addRovingFocus(plot, ".cell", (here, key) => {
      const at = (cell) => cell.dataset.cell.split(",").map((one) => place.get(+one));
      const [row, column] = at(here), along = key === "ArrowRight" || key === "ArrowLeft" ? 1 : 0;
      const sign = key === "ArrowRight" || key === "ArrowDown" ? 1 : -1, from = [row, column];
      let best = null, least = Infinity;
      for (const cell of all(".cell", plot)) {
        const to = at(cell), ahead = sign * (to[along] - from[along]);
        // The next cell of the same row or column; if there is none, the nearest of the others.
        const far = ahead + 1000 * Math.abs(to[1 - along] - from[1 - along]);
        if (ahead > 0 && far < least) { best = cell; least = far; }
      }
      return best;
    });
    const [i, j] = pairs.find((pair) => place.has(pair[0]) && place.has(pair[1])) || cells[0];
    const first = (openedCell && plot.querySelector(`[data-cell="${openedCell}"]`)) || plot.querySelector(`[data-cell="${i},${j}"]`);
    if (first) openCell(first);
  }
  const order = D.classes.map((_, i) => i);
  const most = order.slice().sort((a, b) => missed[b] - missed[a] || a - b).slice(0, 25).sort((a, b) => a - b);
  const large = D.classes.length > 25;
  choices(byId("matrix-choice"), large ? ["25 most confused", `all ${D.classes.length}`] : ["all"],
    (k) => matrix(large && k === 0 ? most : order));
  onResize(byId("matrix-plot").parentElement, () => matrix(shownClasses));
  function listPairs(most) {
    const shown = pairs.slice(0, most).map(([i, j, n]) => make("li", {},
      make("button", { type: "button", class: "link", "data-cell": `${i},${j}` }, `${D.classes[i]} → ${D.classes[j]}`), make("span", { class: "soft" }, ` × ${n}`)));
    if (most < pairs.length) shown.push(make("li", {}, make("button", { type: "button", class: "link", onclick: () => listPairs(pairs.length) }, `show all ${pairs.length}`)));
    byId("pair-list").replaceChildren(...shown);
  }
  if (pairs.length) listPairs(29);
  else byId("pairs").remove();

  // ---- the table of classes ----
  const table = byId("class-table");
  function sort(column, falling) {
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const number = column > 0, rows = all("tbody tr", table);
    rows.sort((a, b) => number ? value(a) - value(b) : value(a).localeCompare(value(b)));
    if (falling) rows.reverse();
    table.tBodies[0].append(...rows);
    all("thead th", table).forEach((head, k) => {
      if (k === column) head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
  }
  all(".sort", table).forEach((button, column) => button.addEventListener("click", () => {
    const before = button.parentElement.getAttribute("aria-sort");
    sort(column, before ? before === "ascending" : column === 5);
  }));
  sort(4, false);
  byId("class-filter").addEventListener("input", (event) => {
    const part = event.target.value.toLowerCase();
    for (const row of all("tbody tr", table)) row.hidden = !D.classes[row.dataset.class].toLowerCase().includes(part);
  });

  // ---- charts ----
  function ticks(low, high, nTicks = 5) {
    const raw = (high - low) / nTicks, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= raw * 0.999);
    const values = [];
    for (let n = Math.ceil(low / step - 1e-9); n * step <= high + 1e-9; n++) values.push(+(n * step).toFixed(10));
    return values;
  }
  const MIN_TICK_DISTANCE = 26, LABEL_LETTER = 7.6, WIDE_CHART = 560;
  const innerWidth = (host) => Math.max(240, host.clientWidth - parseFloat(getComputedStyle(host).paddingLeft) * 2);
  function axes(host, about) {
    const width = innerWidth(host);
    const height = about.square ? Math.min(width, 440) : Math.min(440, Math.max(260, width * 0.42));
    const left = 46, right = about.right || 14, top = 26, bottom = 42;
    const x = (value) => left + (value - about.x[0]) / (about.x[1] - about.x[0]) * (width - left - right);
    const y = (value) => height - bottom - (value - about.y[0]) / (about.y[1] - about.y[0]) * (height - top - bottom);
    const plot = draw("svg", { width, height, role: "img", "aria-label": about.label });
    for (const at of about.yticks) {
      plot.append(draw("line", { class: "grid", x1: left, x2: width - right, y1: y(at), y2: y(at) }));
      plot.append(draw("text", { x: left - 8, y: y(at) + 4, "text-anchor": "end" }, about.yname ? about.yname(at) : +(100 * at).toFixed(6)));
    }
    // The last label stands; one before it that would touch the next is left out.
    let next = Infinity;
    for (const at of about.xticks.slice().reverse()) {
      if (next - x(at) < MIN_TICK_DISTANCE) continue;
      next = x(at);
      plot.append(draw("text", { x: x(at), y: height - bottom + 18, "text-anchor": "middle" }, about.xname ? about.xname(at) : +(100 * at).toFixed(6)));
    }
    plot.append(draw("text", { x: left, y: 13 }, about.ylabel));
    plot.append(draw("text", { x: width - right, y: height - 5, "text-anchor": "end" }, about.xlabel));
    return { plot, x, y, height, end: width - right };
  }
  const addTooltip = (element, text) => { element.append(draw("title", {}, text)); return element; };
  // Names stand at the end of their lines, or above the chart where it is too narrow for them.
  const isWide = (host) => innerWidth(host) >= WIDE_CHART;
  const spaceForNames = (host, names) => isWide(host) ? 22 + LABEL_LETTER * Math.max(...names.map((name) => Math.min(name.length, 34))) : 14;
  function key(series) {
    return make("ul", { class: "key" }, ...series.map((one) => make("li", {}, make("i", { style: `background:${one.colour}` }), one.name)));
  }
  function nameEnds(chart, ends) {
    const gap = 16, order = ends.slice().sort((a, b) => a.y - b.y);
    let last = -Infinity;
    for (const one of order) { one.at = Math.max(one.y, last + gap); last = one.at; }
    last = Math.min(last, chart.height - 42);
    for (const one of order.reverse()) { one.at = Math.min(one.at, last); last = one.at - gap; }
    for (const one of order) {
      chart.plot.append(draw("line", { x1: one.x + 5, y1: one.y, x2: chart.end + 14, y2: one.at, "stroke-opacity": 0.5, style: `stroke:${one.colour}` }));
      chart.plot.append(draw("text", { class: "name", x: chart.end + 17, y: one.at + 4, style: `fill:${one.colour}` }, short(one.name, 34)));
    }
  }
  const path = (points, colour) => draw("polyline", {
    points: points.map((point) => point.join(",")).join(" "), fill: "none", "stroke-width": 2, "stroke-linejoin": "round", style: `stroke:${colour}`,
  });
  const charts = {
    curve(host) {
      const C = D.curve, at = Math.log2, values = C.series.flatMap((s) => s.points.flatMap(([, mean, sd]) => [mean - sd, mean + sd]));
      const low = Math.max(0, Math.min(...values) - 0.02), high = Math.min(1, Math.max(...values) + 0.02);
      // Zero-shot has no shots: a star at 0, which stands one step to the left of the fewest shots.
      const zero = at(C.shots[0]) - 1, last = at(C.shots[C.shots.length - 1]), hasLevel = C.series.some((s) => s.level);
      const names = C.series.map((s) => `${s.name}  ${(100 * s.points[s.points.length - 1][1]).toFixed(1)}`);
      const chart = axes(host, {
        x: [(hasLevel ? zero : zero + 1) - 0.12, last + 0.12], y: [low, high], yticks: ticks(low, high), right: spaceForNames(host, names),
        xticks: [...(hasLevel ? [zero] : []), ...C.shots.map(at)], xname: (value) => hasLevel && value === zero ? 0 : Math.round(2 ** value),
        xlabel: "shots per class", ylabel: `accuracy in %${C.series.some((s) => s.points.some(([, , , draws]) => draws > 1)) ? "; band: mean ± sd of draws" : ""}`, label: "Accuracy by number of shots; the table below has the numbers",
      });
      const { plot, x, y } = chart, ends = [];
      for (const series of C.series.filter((s) => !s.level)) {
        const upper = series.points.map(([n, mean, sd]) => [x(at(n)), y(Math.min(high, mean + sd))]);
        const lower = series.points.map(([n, mean, sd]) => [x(at(n)), y(Math.max(low, mean - sd))]).reverse();
        plot.append(draw("polygon", { points: [...upper, ...lower].map((one) => one.join(",")).join(" "), "fill-opacity": 0.15, style: `fill:${series.colour}` }));
      }
      C.series.forEach((series, k) => {
        const [n, mean] = series.points[series.points.length - 1];
        ends.push({ name: names[k], colour: series.colour, x: x(at(n)), y: y(mean) });
        if (series.level) {
          plot.append(draw("line", { x1: x(zero), x2: x(last), y1: y(mean), y2: y(mean), "stroke-width": 1.5, "stroke-dasharray": "2 4", style: `stroke:${series.colour}` }));
          plot.append(addTooltip(draw("text", { class: "star", x: x(zero), y: y(mean) + 8, "text-anchor": "middle", style: `fill:${series.colour}` }, "★"), `${series.name}: ${percent(mean, 1)}`));
          return;
        }
        plot.append(path(series.points.map(([m, value]) => [x(at(m)), y(value)]), series.colour));
        for (const [m, value, sd, draws] of series.points) {
          plot.append(addTooltip(draw("circle", { cx: x(at(m)), cy: y(value), r: 4.5, style: `fill:${series.colour}` }), `${series.name}, ${count(m, "shot")}: ${percent(value, 1)}${draws > 1 ? ` ± ${(100 * sd).toFixed(1)}` : ""}`));
        }
      });
      if (!isWide(host)) return [key(C.series), plot];
      nameEnds(chart, ends);
      return [plot];
    },
    reliability(host) {
      const { plot, x, y } = axes(host, {
        x: [0, 1], y: [0, 1], xticks: ticks(0, 1), yticks: ticks(0, 1), square: true, xlabel: "confidence in %", ylabel: "accuracy in %",
        label: "Reliability diagram: " + D.reliability.map((s) => `${s.name}, error ${percent(s.error, 1)}`).join("; "),
      });
      plot.append(draw("line", { class: "diagonal", x1: x(0), y1: y(0), x2: x(1), y2: y(1) }));
      D.reliability.map((series, k) => [series, k]).reverse().forEach(([series, k]) => {
        const most = Math.max(...series.bins.map((bin) => bin[2]));
        const line = path(series.bins.map(([p, right]) => [x(p), y(right)]), series.colour);
        line.setAttribute("stroke-opacity", 0.35);
        line.setAttribute("stroke-width", 1.5);
        plot.append(line);
        for (const [p, right, n] of series.bins) {
          plot.append(addTooltip(draw("circle", { cx: x(p), cy: y(right), r: 3 + 9 * Math.sqrt(n / most), style: `fill:${series.colour}`, "fill-opacity": k ? 0.4 : 0.85 }),
            `${series.name}: ${count(n, "picture")} at ${percent(p)} on average, accuracy ${percent(right)}`));
        }
      });
      return [key(D.reliability), plot];
    },
    risk(host) {
      const high = Math.max(0.01, ...D.risk.flatMap((s) => s.points.map((point) => point[1]))) * 1.05;
      const { plot, x, y } = axes(host, {
        x: [0, 1], y: [0, high], xticks: ticks(0, 1), yticks: ticks(0, high), square: true, xlabel: "predicted pictures in %, highest confidence first", ylabel: "wrong predictions in %",
        label: "Share of wrong predictions by share of predicted pictures",
      });
      for (const series of D.risk.slice().reverse()) plot.append(addTooltip(path(series.points.map(([c, r]) => [x(c), y(r)]), series.colour), series.name));
      return [key(D.risk), plot];
    },
  };
  for (const host of all("[data-chart]")) {
    const redraw = () => host.replaceChildren(...charts[host.dataset.chart](host));
    redraw();
    onResize(host, redraw);
  }

  // ---- the map ----
  const selectedClasses = new Set();
  const classColour = (k) => {
    const hue = D.classes.length <= 8 ? [212, 28, 152, 320, 48, 265, 0, 185][k] : (k * 137.508) % 360;
    return `light-dark(hsl(${hue} 62% 42%), hsl(${hue} 65% 66%))`;
  };
  function point(row, xy, at) {
    const test = row < testRows.length, i = test ? row : row - testRows.length;
    const label = test ? D.test.label[i] : D.shots.label[i], size = 1000;
    const x = 20 + xy[2 * at] * (size - 40), y = 20 + (1 - xy[2 * at + 1]) * (size - 40);
    const words = test ? `${D.classes[label]}${wrong(i) ? `, predicted as ${D.classes[D.test.answer[i]]}` : ""}: ${D.test.name[i]}` : `shot of ${D.classes[label]}: ${D.shots.name[i]}`;
    const shape = test ? draw("circle", { cx: x, cy: y, r: 7.5 }) : draw("rect", { x: x - 5.5, y: y - 5.5, width: 11, height: 11, "fill-opacity": 0.5 });
    shape.style.fill = classColour(label);
    if (test && wrong(i)) { shape.style.stroke = "var(--ring)"; shape.setAttribute("stroke-width", 3.5); }
    for (const [name, value] of Object.entries({ class: "point", role: "button", tabindex: -1, "aria-label": words })) shape.setAttribute(name, value);
    Object.assign(shape, { about: { test, i, label, wrong: test && wrong(i) } });
    return shape;
  }
  function fade() {
    const only = byId("map-wrong").checked, shots = byId("map-shots");
    for (const one of all(".point", byId("map-plot"))) {
      const out = (selectedClasses.size && !selectedClasses.has(one.about.label)) || (only && one.about.test && !one.about.wrong);
      one.classList.toggle("faded", Boolean(out));
      one.style.display = !one.about.test && shots && !shots.checked ? "none" : "";
    }
  }
  function drawMap(view) {
    const shapes = D.map.rows.map((row, at) => point(row, view.xy, at));
    // Shots are drawn first and mistakes last; within these, classes are in order for the arrow keys.
    const rank = (one) => one.about.test ? 1 + one.about.wrong : 0;
    shapes.sort((a, b) => rank(a) - rank(b) || a.about.label - b.about.label);
    const plot = draw("svg", { viewBox: "0 0 1000 1000", role: "group", "aria-label": `Map of the features, ${view.name}` }, ...shapes);
    byId("map-plot").replaceChildren(plot);
    plot.addEventListener("click", (event) => {
      const one = event.target.closest(".point");
      if (one) show(one.about.test ? picture(one.about.i) : shot(one.about.i));
    });
    const read = (event) => {
      all(".marked", plot).forEach((one) => one.classList.remove("marked"));
      const one = event.target.closest(".point");
      if (one) one.classList.add("marked");
      byId("map-reading").textContent = one ? one.getAttribute("aria-label") : "";
    };
    plot.addEventListener("mouseover", read);
    plot.addEventListener("focusin", read);
    addRovingFocus(plot, ".point", (here, key) => {
      const list = all(".point:not(.faded)", plot).filter((one) => one.style.display !== "none");
      const step = key === "ArrowRight" || key === "ArrowDown" ? 1 : -1;
      return list[(list.indexOf(here) + step + list.length) % list.length];
    });
    fade();
  }
  if (D.map.views.length) {
    choices(byId("map-views"), D.map.views.map((view) => view.name), (k) => drawMap(D.map.views[k]));
    const legend = byId("map-legend");
    legend.append(...D.classes.map((name, k) => make("button", { type: "button", class: "entry", tabindex: -1, "aria-pressed": false, "data-k": k },
      make("i", { style: `background:${classColour(k)}` }), name)));
    addRovingFocus(legend, ".entry", alongside(".entry", legend));
    const select = () => { all(".entry", legend).forEach((one) => one.setAttribute("aria-pressed", selectedClasses.has(+one.dataset.k))); fade(); };
    legend.addEventListener("click", (event) => {
      const one = event.target.closest(".entry");
      if (!one) return;
      const k = +one.dataset.k;
      if (!selectedClasses.delete(k)) selectedClasses.add(k);
      select();
    });
    byId("map-all").addEventListener("click", () => { selectedClasses.clear(); select(); });
    for (const id of ["map-wrong", "map-shots"]) byId(id)?.addEventListener("change", fade);
  }

  // A link to a finding opens the section around it.
  for (const link of all('.toc a')) link.addEventListener("click", () => { byId("findings").open = true; });

  // ---- dark and light ----
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)");
  const storedTheme = (() => { try { return localStorage.getItem("clipadapter-theme"); } catch { return null; } })();
  if (storedTheme === "dark" || storedTheme === "light") root.dataset.theme = storedTheme;
  byId("theme").addEventListener("click", () => {
    const now = root.dataset.theme || (dark.matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
    try { localStorage.setItem("clipadapter-theme", root.dataset.theme); } catch { /* a page that was opened from a file may have no storage */ }
  });
})();
