"use strict";
// Script of the page. Text from data is only ever set as text content, never parsed as markup.
(() => {
  const root = document.documentElement;
  const at = (id) => document.getElementById(id);
  const data = JSON.parse(at("data").textContent);
  const SYMBOLS = { top: "circle", random: "triangle-up", other: "square" };
  const SHAPES = { top: "M5 0a5 5 0 1 0 .01 0z", random: "M5 0L10 9.5H0z", other: "M0.5 0.5h9v9h-9z" };
  const COLOURS = { top: "--helpful", random: "--control", other: "--other" };
  const ORDER = ["other", "random", "top"]; // order of drawing: the test's own top-k is on top
  const SAME_UNITS = 3; // predictions up to this many times too large or small are drawn on equal axes
  const FIRST_ROWS = 500; // rows of the table that are shown at first
  const PAPER = { width: 620, height: 520 }; // size of the plot in print, pixels
  const SMALL = 40; // images up to this height (pixels) are enlarged without smoothing
  const phone = matchMedia("(max-width: 640px)");
  const coarse = matchMedia("(pointer: coarse)");

  const [TEST, ID, KIND, ACTUAL, BY] = [0, 1, 2, 3, 4]; // indices into a point's array
  const points = data.points.map((row, index) => ({
    index,
    test: row[TEST],
    id: row[ID],
    kind: row[KIND],
    actual: row[ACTUAL],
    by: row.slice(BY),
    caption: data.conversation ? sample(row[ID]).caption : `label ${sample(row[ID]).caption}`,
  }));
  const state = {
    view: at("view") ? "all" : null,
    method: 0,
    kinds: new Set(ORDER),
    query: "",
    sort: "actual",
    down: true,
    all: false,
    current: null,
    shown: [],
  };

  // Elements and numbers.

  function element(tag, text, name) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (name) made.className = name;
    return made;
  }

  function sample(key) {
    return data.samples[key] || { caption: "", pictures: [] };
  }

  function picture(uri, alt) {
    const image = new Image();
    fill(image, uri);
    image.alt = alt;
    return image;
  }

  function fill(image, uri) {
    image.addEventListener("load", () => image.classList.toggle("small", image.naturalHeight <= SMALL), { once: true });
    image.src = uri;
  }

  // Formats a number with three digits, a true minus sign and a written power of ten.
  function compact(value, digits = 3) {
    if (value === null || value === undefined) return "–";
    if (value === 0) return "0";
    const size = Math.abs(value);
    const sign = value < 0 ? "−" : "";
    if (size >= 1e-4 && size < 1e6) return sign + String(Number(size.toPrecision(digits)));
    const [mantissa, power] = size.toExponential(digits - 1).split("e");
    const raised = power.replace("+", "").replace(/./g, (c) => "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"["0123456789-".indexOf(c)]);
    return `${sign}${Number(mantissa)}\u202f×\u202f10${raised}`;
  }
  const signed = (value) => (value > 0 ? "+" : "") + compact(value);
  const decimals_of = (value) => (Math.abs(value) >= 0.9995 && Math.abs(value) < 1 ? 5 : 3);
  const correlation = (value, decimals) => {
    return value.toFixed(decimals || decimals_of(value)).replace("-", "−");
  };
  const ratio = (value) =>
    Math.abs(value) >= 0.01 && Math.abs(value) < 100 ? value.toFixed(3).replace("-", "−") : compact(value);
  const percent = (value) => {
    const text = value >= 10 ? Math.round(100 * value).toLocaleString("en") : compact(100 * value, value < 0.1 ? 2 : 3);
    return `${text}\u202f%`;
  };

  let paper = false; // while the page is being printed

  // Selection of points.

  function view() {
    const alone = state.view === "all" && data.views.length === 1; // only one of several tests has refits
    return data.views.find((one) => one.key === state.view || alone);
  }
  const predicted = (point) => point.by[state.method];
  const inView = (point) => state.view === "all" || String(point.test) === state.view;

  function matches(point) {
    const query = state.query;
    return !query || String(point.id) === query || point.caption.toLowerCase().includes(query);
  }

  const available = () => points.filter((point) => inView(point) && predicted(point) !== null);
  const chosen = () => available().filter((point) => state.kinds.has(point.kind) && matches(point));

  // Plot.

  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  function ranges() {
    const all = available();
    const xs = all.map(predicted);
    const ys = all.map((point) => point.actual);
    const reach = (values) => Math.max(...values.map(Math.abs), 0) || 1;
    const units = reach(xs) / reach(ys);
    const span = (values) => {
      const [low, high] = [Math.min(0, ...values), Math.max(0, ...values)];
      const margin = 0.07 * (high - low) || 1;
      return [low - margin, high + margin];
    };
    if (units <= SAME_UNITS && units >= 1 / SAME_UNITS) {
      const both = span([...xs, ...ys]);
      return [both, both];
    }
    return [span(xs), span(ys)];
  }

  function line(x, slope, intercept, name, look) {
    const y = x.map((value) => slope * value + intercept);
    return { x, y, name, mode: "lines", hoverinfo: "skip", line: look };
  }

  function traces(range) {
    const width = range[1] - range[0];
    const ends = [range[0] - 20 * width, range[1] + 20 * width]; // longer than zooming out can show
    const fit = view().fits[state.method];
    const made = [];
    if (fit) made.push(line(ends, fit.slope, fit.intercept, "least squares", { color: colour("--fit"), width: 3 }));
    made.push(line(ends, 1, 0, "y = x", { color: colour("--ink"), width: 1.3, dash: "dash" }));
    for (const kind of ORDER) {
      const own = state.shown.filter((point) => point.kind === kind);
      made.push({
        x: own.map(predicted),
        y: own.map((point) => point.actual),
        customdata: own.map((point) => point.index),
        name: kind,
        mode: "markers",
        hoverinfo: "none",
        marker: {
          symbol: SYMBOLS[kind],
          color: colour(COLOURS[kind]),
          size: kind === "random" ? 9.5 : 8.5,
          opacity: 0.8,
          line: { color: colour("--paper"), width: 0.8 },
        },
      });
    }
    const current = state.shown.includes(state.current) ? [state.current] : [];
    made.push({
      x: current.map(predicted),
      y: current.map((point) => point.actual),
      name: "current",
      mode: "markers",
      hoverinfo: "skip",
      marker: { symbol: "circle-open", color: colour("--ink"), size: 17, line: { width: 2.2 } },
    });
    return made;
  }

  function layout(x, y) {
    const axis = (text, range) => ({
      title: { text, font: { size: 13, color: colour("--quiet") }, standoff: 10 },
      range,
      gridcolor: colour("--rule"),
      zerolinecolor: colour("--strong"),
      zerolinewidth: 1,
      tickfont: { size: 12, color: colour("--quiet") },
      nticks: phone.matches ? 5 : 8,
      exponentformat: "power",
      minexponent: 4,
      fixedrange: false,
    });
    const floor = view().floor;
    return {
      autosize: !paper,
      width: paper ? PAPER.width : undefined,
      height: paper ? PAPER.height : undefined,
      margin: phone.matches ? { l: 56, r: 10, t: 10, b: 50 } : { l: 70, r: 14, t: 12, b: 56 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, color: colour("--ink") },
      showlegend: false,
      hovermode: "closest",
      // On touch screens dragging scrolls the page, until the plot is zoomed in.
      dragmode: coarse.matches ? false : "zoom",
      xaxis: axis("predicted change (nats)", x),
      yaxis: axis("actual change (nats)", y),
      shapes: floor
        ? [
            {
              type: "rect", layer: "below", xref: "paper", x0: 0, x1: 1, yref: "y", y0: -floor, y1: floor,
              fillcolor: colour("--rule"), line: { width: 0 },
            },
          ]
        : [],
      uirevision: `${state.view} ${state.method}`, // keeps the zoom while the filter changes
    };
  }

  const plot = at("plot");
  function draw() {
    const [x, y] = ranges();
    const config = { displayModeBar: false, responsive: true, doubleClick: "reset", showTips: false };
    return Plotly.react(plot, traces(x), layout(x, y), config);
  }

  function zoom(factor) {
    const full = plot._fullLayout;
    const scaled = ([low, high]) => {
      const [middle, half] = [(low + high) / 2, (factor * (high - low)) / 2];
      return [middle - half, middle + half];
    };
    Plotly.relayout(plot, {
      "xaxis.range": scaled(full.xaxis.range),
      "yaxis.range": scaled(full.yaxis.range),
      dragmode: coarse.matches ? "pan" : "zoom",
    });
    place();
  }

  function unzoom() {
    const [x, y] = ranges();
    Plotly.relayout(plot, { "xaxis.range": x, "yaxis.range": y, dragmode: coarse.matches ? false : "zoom" });
    place();
  }

  // Card of a point.

  const tip = at("tip");
  function description(point) {
    const prefix = state.view === "all" ? `test ${point.test}, ` : "";
    return { title: `${prefix}training id ${point.id}`, what: point.caption, kind: data.kinds[point.kind] };
  }

  function point_at(point) {
    const { xaxis, yaxis } = plot._fullLayout;
    return [xaxis._offset + xaxis.d2p(predicted(point)), yaxis._offset + yaxis.d2p(point.actual)];
  }

  function show(point) {
    state.current = point;
    const { title, what, kind } = description(point);
    const who = element("div", undefined, "who");
    const [uri] = sample(point.id).pictures;
    if (uri) who.append(picture(uri, ""));
    const text = element("div");
    text.append(element("div", title, "title"), element("bdi", what, "what"), element("div", kind, "quiet"));
    who.append(text);
    const numbers = element("dl");
    for (const [name, value] of [["predicted", signed(predicted(point))], ["actual", signed(point.actual)]]) {
      numbers.append(element("dt", name), element("dd", value + " nats"));
    }
    tip.replaceChildren(who, numbers);
    tip.hidden = false;
    place();
    mark();
  }

  function place() {
    if (tip.hidden || !state.current || phone.matches) return;
    const [x, y] = point_at(state.current);
    const [width, height] = [at("frame").clientWidth, at("frame").clientHeight];
    const left = x + 16 + tip.offsetWidth > width ? x - 16 - tip.offsetWidth : x + 16;
    const top = Math.min(Math.max(y - tip.offsetHeight / 2, 0), height - tip.offsetHeight);
    tip.style.left = `${Math.max(left, 0)}px`;
    tip.style.top = `${Math.max(top, 0)}px`;
  }

  function hide() {
    state.current = null;
    tip.hidden = true;
    mark();
  }

  // Marks the current point by a ring in the plot and by colour in the table.
  function mark() {
    const current = state.current;
    const last = plot.data.length - 1;
    Plotly.restyle(plot, { x: [current ? [predicted(current)] : []], y: [current ? [current.actual] : []] }, [last]);
    for (const old of at("body").querySelectorAll(".current")) old.classList.remove("current");
    if (current) row_of(current)?.classList.add("current");
  }

  const row_of = (point) => at("body").querySelector(`tr[data-index="${point.index}"]`);

  function reveal(row) {
    const box = at("rows");
    const head = box.querySelector("thead").offsetHeight;
    if (row.offsetTop - head < box.scrollTop) box.scrollTop = row.offsetTop - head;
    const below = row.offsetTop + row.offsetHeight - box.clientHeight;
    if (below > box.scrollTop) box.scrollTop = below;
  }

  // Table.

  const COLUMNS = [
    ["id", "id", (point) => point.id],
    ["caption", "sample", (point) => point.caption],
    ["kind", "removed as", (point) => data.kinds[point.kind]],
    ["predicted", "predicted", (point) => predicted(point)],
    ["actual", "actual", (point) => point.actual],
    ["off", "difference", (point) => point.actual - predicted(point)],
  ];
  const NUMBERS = new Set(["predicted", "actual", "off"]);

  function heads() {
    const made = COLUMNS.map(([key, name]) => {
      const cell = element("th", undefined, NUMBERS.has(key) ? `n ${key}` : key);
      const button = element("button", name);
      button.type = "button";
      button.addEventListener("click", () => {
        state.down = state.sort === key ? !state.down : NUMBERS.has(key);
        state.sort = key;
        table();
      });
      cell.scope = "col";
      cell.dataset.key = key;
      cell.append(button);
      return cell;
    });
    at("columns").append(...made);
  }

  function sorted() {
    const value = COLUMNS.find(([key]) => key === state.sort)[2];
    const by = NUMBERS.has(state.sort) ? (point) => Math.abs(value(point)) : value;
    const sign = state.down ? -1 : 1;
    return [...state.shown].sort((a, b) => {
      const [x, y] = [by(a), by(b)];
      return sign * (typeof x === "string" ? x.localeCompare(y) : x - y) || a.index - b.index;
    });
  }

  function table() {
    for (const cell of at("columns").children) {
      if (cell.dataset.key === state.sort) cell.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    }
    const all = sorted();
    const some = state.all ? all : all.slice(0, FIRST_ROWS);
    at("body").replaceChildren(...some.map(row));
    const first = at("body").firstElementChild;
    if (first) first.tabIndex = 0;
    at("more").hidden = some.length === all.length;
    at("more").firstElementChild.textContent = `The first ${some.length} of ${all.length} rows.`;
    if (state.current) row_of(state.current)?.classList.add("current");
  }

  function row(point) {
    const made = element("tr");
    made.dataset.index = point.index;
    made.tabIndex = -1;
    const id = element("td", String(point.id), "n id");
    if (state.view === "all") id.append(element("span", ` test ${point.test}`, "quiet"));
    made.append(id);
    const text = element("td", undefined, "text");
    const [uri] = sample(point.id).pictures;
    const who = element("span", undefined, "who");
    if (uri) {
      const image = picture(uri, "");
      image.loading = "lazy";
      who.append(image);
    }
    who.append(element("bdi", point.caption));
    text.append(who);
    made.append(text, element("td", data.kinds[point.kind], "kind"));
    for (const [key, , value] of COLUMNS.filter(([key]) => NUMBERS.has(key))) {
      made.append(element("td", signed(value(point)), `n ${key}`));
    }
    return made;
  }

  function focus_row(row) {
    if (!row) return;
    for (const old of at("body").querySelectorAll('[tabindex="0"]')) old.tabIndex = -1;
    row.tabIndex = 0;
    row.focus({ preventScroll: true });
    reveal(row);
  }

  // Statistics and filters beside the plot.

  function statistics() {
    const fit = view().fits[state.method];
    const entry = (name, value, rest) => {
      const made = element("div");
      const number = element("dd", value);
      if (rest) number.append(element("span", rest));
      made.append(element("dt", name), number);
      return made;
    };
    const between = (bounds, form) => {
      if (!bounds) return "no interval";
      const decimals = form === correlation ? Math.max(...bounds.map(decimals_of)) : undefined;
      return `[${bounds.map((value) => form(value, decimals)).join(", ")}]`;
    };
    const box = at("statistics");
    if (!fit) {
      box.replaceChildren(entry("statistics", "none", view().reasons[state.method]));
      return;
    }
    const made = [
      entry("Pearson", correlation(fit.pearson), between(fit.pearson_ci, correlation)),
      entry("slope", ratio(fit.slope), between(fit.slope_ci, ratio)),
      entry("Spearman", correlation(fit.spearman), between(fit.spearman_ci, correlation)),
    ];
    if (fit.median_rel_err !== null) {
      made.push(entry("median error", percent(fit.median_rel_err), between(fit.median_rel_err_ci, percent)));
    }
    made.push(entry("refits", String(fit.n_refits), "of all kinds, regardless of the filter"));
    box.replaceChildren(...made);
  }

  function chips() {
    const all = available();
    const made = [...ORDER].reverse().flatMap((kind) => {
      const count = all.filter((point) => point.kind === kind).length;
      if (!count) return [];
      const button = element("button");
      button.type = "button";
      button.dataset.kind = kind;
      button.setAttribute("aria-pressed", String(state.kinds.has(kind)));
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      svg.setAttribute("viewBox", "0 0 10 10");
      svg.setAttribute("aria-hidden", "true");
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("d", SHAPES[kind]);
      path.style.fill = `var(${COLOURS[kind]})`;
      svg.append(path);
      button.append(svg, element("span", data.kinds[kind]), element("span", String(count), "quiet n"));
      button.addEventListener("click", () => {
        if (!state.kinds.delete(kind)) state.kinds.add(kind);
        button.setAttribute("aria-pressed", String(state.kinds.has(kind)));
        update();
      });
      return [button];
    });
    at("kinds").replaceChildren(...made);
  }

  function update() {
    state.shown = chosen();
    if (state.current && !state.shown.includes(state.current)) {
      state.current = null;
      tip.hidden = true;
    }
    const [shown, all] = [state.shown.length, available().length];
    const count = shown === all ? `${all} points` : `${shown} of ${all} points`;
    at("count").textContent = count;
    at("frame").setAttribute("aria-label", `Scatter plot of predicted and actual changes, ${count}`);
    const done = draw();
    table();
    if (state.current) show(state.current);
    return done;
  }

  function show_view() {
    const together = data.views.some((one) => one.key === "all");
    for (const part of document.querySelectorAll("[data-view]")) {
      const other = part.dataset.view !== state.view;
      part.hidden = other && (state.view !== "all" || ("alone" in part.dataset && together));
    }
    const drawn = Boolean(view());
    at("plotted")?.toggleAttribute("hidden", !drawn);
    if (!drawn) return null;
    chips();
    statistics();
    return update();
  }

  // Events.

  function step(by) {
    const order = [...state.shown].sort((a, b) => predicted(a) - predicted(b) || a.index - b.index);
    if (!order.length) return;
    const from = order.indexOf(state.current);
    const to = from < 0 ? (by > 0 ? 0 : order.length - 1) : Math.min(Math.max(from + by, 0), order.length - 1);
    show(order[to]);
    const { title, what, kind } = description(order[to]);
    const changes = `predicted ${signed(predicted(order[to]))}, actual ${signed(order[to].actual)} nats`;
    at("say").textContent = `${title}, ${what}, ${kind}, ${changes}`;
    const row = row_of(order[to]);
    if (row) reveal(row);
  }

  const KEYS = {
    ArrowRight: () => step(1),
    ArrowUp: () => step(1),
    ArrowLeft: () => step(-1),
    ArrowDown: () => step(-1),
    Escape: hide,
    "+": () => zoom(0.5),
    "=": () => zoom(0.5),
    "-": () => zoom(2),
    0: unzoom,
  };

  function listen_to_plot() {
    const point_of = (event) => points[event.points.find((one) => one.customdata !== undefined)?.customdata];
    plot.on("plotly_hover", (event) => {
      const point = point_of(event);
      if (point && point !== state.current) show(point); // drawing the ring triggers the event again
    });
    plot.on("plotly_unhover", () => {
      if (!phone.matches) hide();
    });
    plot.on("plotly_click", (event) => {
      const point = point_of(event);
      const found = point && row_of(point);
      if (point) show(point);
      if (found) reveal(found);
    });
    plot.on("plotly_relayout", place);
    at("frame").addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
      event.preventDefault();
      KEYS[event.key]();
    });
  }

  function listen_to_table() {
    const body = at("body");
    const point_of = (event) => points[event.target.closest("tr")?.dataset.index];
    body.addEventListener("focusin", (event) => show(point_of(event)));
    body.addEventListener("click", (event) => focus_row(event.target.closest("tr")));
    body.addEventListener("keydown", (event) => {
      const row = event.target.closest("tr");
      const next = {
        ArrowDown: row.nextElementSibling,
        ArrowUp: row.previousElementSibling,
        Home: body.firstElementChild,
        End: body.lastElementChild,
      };
      if (event.key === "Escape") hide();
      if (!(event.key in next)) return;
      event.preventDefault();
      focus_row(next[event.key]);
    });
    at("more").querySelector("button").addEventListener("click", () => {
      state.all = true;
      table();
    });
  }

  function listen_to_controls() {
    at("search").addEventListener("input", (event) => {
      state.query = event.target.value.trim().toLowerCase();
      update();
    });
    at("zoom-in").addEventListener("click", () => zoom(0.5));
    at("zoom-out").addEventListener("click", () => zoom(2));
    at("zoom-reset").addEventListener("click", unzoom);
    const method = at("method");
    method.append(...data.methods.map((name, index) => new Option(name, index)));
    at("method-choice").hidden = data.methods.length < 2;
    method.addEventListener("change", () => {
      state.method = Number(method.value);
      show_view();
    });
  }

  // Light and dark theme.

  const dark = matchMedia("(prefers-color-scheme: dark)");
  let choice_of_theme = null; // set by the button; until then the system's theme is used
  function theme(redraw) {
    const name = choice_of_theme || (dark.matches ? "dark" : "light");
    root.dataset.theme = name;
    const button = at("theme");
    button.hidden = false;
    button.textContent = name === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", `Change to ${name === "dark" ? "light" : "dark"} colours`);
    if (redraw && view()) draw();
  }
  dark.addEventListener("change", () => theme(true));
  at("theme").addEventListener("click", () => {
    choice_of_theme = root.dataset.theme === "dark" ? "light" : "dark";
    theme(true);
  });

  // Print uses the light theme and shows the content of all details.
  let closed = [];
  function to_paper() {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const one of closed) one.open = true;
    root.dataset.theme = "light";
    paper = true;
    if (view()) draw();
  }
  function from_paper() {
    paper = false;
    for (const one of closed) one.open = false;
    theme(true);
  }
  addEventListener("beforeprint", to_paper);
  addEventListener("afterprint", from_paper);

  // Start.

  theme(false);
  for (const image of document.querySelectorAll("img[data-sample]")) {
    fill(image, sample(image.dataset.sample).pictures[Number(image.dataset.at)]);
  }
  const choice = at("view");
  if (choice) {
    choice.parentElement.hidden = false;
    choice.addEventListener("change", () => {
      state.view = choice.value;
      show_view();
    });
  } else if (data.views.length) {
    state.view = data.views[0].key;
  }
  if (at("explorer")) {
    at("explorer").hidden = false;
    heads();
    listen_to_controls();
    listen_to_table();
    show_view();
    listen_to_plot();
  }
  root.dataset.ready = String(Math.round(performance.now())); // milliseconds since navigation started
})();
