"use strict";
// The page of one or several runs. One function draws: render(data). A live page calls it again when its data file changed.
const COLOURS = ["unguided", "pos", "neg", "near_zero", "all", "verifier", "soft", "base"].map(name => `var(--c-${name})`);
const BANDS = 3;  // runs whose intervals are drawn over each other
const HEIGHT = 150, LEFT = 46, BOTTOM = 18, TOP = 6, RIGHT = 8;
const PATIENCE_S = { starting: 60, restarting: 300 };  // in which the next word comes, or the run has died
const SVG = "http://www.w3.org/2000/svg";
let data = null, drawn = 0;
let came = performance.now(), isLive = false;  // when the data last changed, by this page's own clock, and whether it saw that
const pointed = { step: null, time: null };  // where the cursors are
let later = {};  // token views that were made once the page was there
const hidden = new Set(), charts = [];

const element = (tag, text = "", css = "") => {
  const made = document.createElement(tag);
  made.textContent = text;
  if (css) made.className = css;
  return made;
};
const shape = (parent, tag, values) => {
  const made = document.createElementNS(SVG, tag);
  for (const name in values) made.setAttribute(name, values[name]);
  parent.append(made);
  return made;
};
const fill = (id, ...children) => document.getElementById(id).replaceChildren(...children);

function figure(value) {
  if (value === null || value === undefined) return "-";
  const size = Math.abs(value);
  if (size >= 1e6) return (value / 1e6).toPrecision(3) + "M";
  if (size >= 1e4) return (value / 1e3).toPrecision(3) + "k";
  if (size > 0 && size < 1e-3) return Number(value.toPrecision(3)).toExponential();
  return String(Number(value.toPrecision(size >= 100 ? 4 : 3)));
}
// Of long lists: a call with a value for each argument fails beyond some 100,000 of them.
const least = values => values.reduce((low, value) => value < low ? value : low, Infinity);
const most = values => values.reduce((high, value) => value > high ? value : high, -Infinity);
const clock = seconds => new Date(seconds * 1000).toLocaleTimeString([], { hour12: false });
const day = seconds => new Date(seconds * 1000).toLocaleDateString([], { month: "short", day: "numeric" });
const since = seconds => [seconds / 3600, seconds / 60 % 60, seconds % 60].map(part => String(Math.floor(part)).padStart(2, "0")).join(":");
// A moment of a chart of times: the time of day, with the day where the chart has several, or for several runs the time
// since the start of each.
function moment(at, [low, high]) {
  if (data.runs.length > 1) return since(at);
  return day(low) === day(high) ? clock(at) : `${day(at)} ${clock(at).slice(0, 5)}`;
}
function age(seconds) {
  const [size, unit] = [[86400, "days"], [3600, "h"], [60, "min"]].find(([size]) => seconds >= 2 * size) ?? [1, "s"];
  return `${Math.floor(seconds / size)} ${unit}`;
}

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(times => times * power).find(size => size >= rough);
  const found = [];
  for (let place = Math.ceil(low / step); place * step <= high + step * 1e-9; place++) found.push(Number((place * step).toPrecision(12)));
  return found;
}

// The lines of a chart: one a run and series. A stack's are cumulative, and a band has its bounds beside it.
function linesOf(place, runs) {
  const lines = [], panel = PANELS[place];
  runs.forEach(({ run, index }) => {
    const { x: when, series } = run.charts[place], below = when.map(() => 0);
    const gaps = when.map((_, at) => Object.values(series).every(values => values[at] === null));
    const x = panel.x === "time" && data.runs.length > 1 ? when.map(at => at - run.began) : when;
    const known = Object.keys(series).every(name => name in WORK);
    Object.keys(series).filter(name => !(panel.bands && / (low|high)$/.test(name))).forEach((name, order) => {
      const many = data.runs.length > 1, line = { name: many ? `${run.name} ${name}` : name, x, y: series[name] };
      line.colour = COLOURS[(many ? index : known ? WORK[name] : order) % COLOURS.length];
      line.dash = many ? ["", "6 3", "2 3", "8 3 2 3"][order % 4] : "";
      if (panel.stacked && !many) {
        line.base = below.slice();
        line.top = series[name].map((value, at) => gaps[at] ? null : (below[at] += value ?? 0));
      } else line.top = line.y;
      if (panel.bands) [line.low, line.high] = [series[name + " low"], series[name + " high"]];
      line.hasBand = panel.bands && runs.length <= BANDS;
      lines.push(line);
    });
  });
  return lines;
}

function rangeOf(lines, panel) {
  const values = lines.flatMap(line => (line.hasBand ? [line.top, line.low, line.high] : [line.top]).flat()).filter(value => value !== null);
  let low = least(values), high = most(values);
  if (lines[0].base || (low > 0 && low < 0.5 * high)) low = Math.min(low, 0);
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
  return [low, high];
}

function pathOf(chart, x, y) {
  let path = "", pen = "M";
  for (let at = 0; at < x.length; at++) {
    if (y[at] === null) { pen = "M"; continue; }
    path += pen + chart.atX(x[at]).toFixed(1) + " " + chart.atY(y[at]).toFixed(1);
    pen = "L";
  }
  return path;
}
const areaOf = (chart, x, low, high) => {
  const pieces = [[]];
  x.forEach((_, at) => low[at] === null || high[at] === null ? pieces.push([]) : pieces.at(-1).push(at));
  return pieces.filter(piece => piece.length).map(piece => {
    const back = piece.slice().reverse();
    return pathOf(chart, [...piece, ...back].map(at => x[at]), [...piece.map(at => high[at]), ...back.map(at => low[at])]) + "Z";
  }).join("");
};

function drawAxes(chart, panel, width) {
  for (const at of ticks(...chart.rangeY, 4)) {
    shape(chart.svg, "line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: chart.atY(at), y2: chart.atY(at) });
    shape(chart.svg, "text", { x: LEFT - 5, y: chart.atY(at) + 4, "text-anchor": "end" }).textContent = figure(at);
  }
  for (const at of ticks(...chart.rangeX, panel.x === "time" ? 3 : 5)) {
    const words = panel.x === "time" ? moment(at, chart.rangeX) : figure(at);
    shape(chart.svg, "text", { x: chart.atX(at), y: HEIGHT - 3, "text-anchor": "middle" }).textContent = words;
  }
}

function drawLine(chart, line) {
  const style = { fill: "none", stroke: line.colour, "stroke-width": 1.6, "stroke-dasharray": line.dash };
  if (line.base) shape(chart.svg, "path", { d: areaOf(chart, line.x, line.base, line.top), fill: line.colour, opacity: 0.55 });
  if (line.hasBand) shape(chart.svg, "path", { d: areaOf(chart, line.x, line.low, line.high), fill: line.colour, opacity: 0.14 });
  shape(chart.svg, "path", { d: pathOf(chart, line.x, line.top), ...style });
  if (line.x.length <= 40 && chart.lines.length <= 20) line.x.forEach((x, at) => line.top[at] === null ||
    shape(chart.svg, "circle", { cx: chart.atX(x), cy: chart.atY(line.top[at]), r: 2, fill: line.colour }));
}

function drawChart(place, runs) {
  const panel = PANELS[place], lines = linesOf(place, runs).filter(line => line.top.some(value => value !== null));
  if (!lines.length) return null;
  const card = element("figure", "", "card plot"), title = element("h3", panel.title);
  if (panel.unit) title.append(element("span", ` ${panel.unit}`, "note"));
  const legend = element("div", "", "legend");
  card.append(title);
  return { card, place, panel, lines, legend };
}

function layOut(chart) {
  const width = chart.width, xs = chart.lines.flatMap(line => line.x);
  let [low, high] = [least(xs), most(xs)];
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  chart.rangeX = [low, high];
  chart.rangeY = rangeOf(chart.lines, chart.panel);
  chart.atX = x => LEFT + (x - low) / (high - low) * (width - LEFT - RIGHT);
  chart.atY = y => TOP + (chart.rangeY[1] - y) / (chart.rangeY[1] - chart.rangeY[0]) * (HEIGHT - TOP - BOTTOM);
  chart.toX = at => low + (at - LEFT) / (width - LEFT - RIGHT) * (high - low);
  chart.svg = document.createElementNS(SVG, "svg");
  for (const [name, value] of Object.entries({ viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img" }))
    chart.svg.setAttribute(name, value);
  chart.svg.setAttribute("aria-label", chart.panel.title);
  drawAxes(chart, chart.panel, width);
  chart.lines.forEach(line => drawLine(chart, line));
  chart.cursor = shape(chart.svg, "line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  const move = event => point(chart.panel.x, chart.toX((event.clientX - chart.svg.getBoundingClientRect().left) *
    width / chart.svg.getBoundingClientRect().width));
  chart.svg.addEventListener("pointermove", move);
  chart.svg.addEventListener("pointerdown", move);
  chart.svg.addEventListener("pointerleave", () => point(chart.panel.x, null));
  chart.card.append(chart.svg, chart.legend);
  if (chart.panel.note) chart.card.append(element("p", chart.panel.note, "note"));
  explain(chart, pointed[chart.panel.x]);
}

function nearest(x, wanted) {
  let best = 0;
  for (let at = 1; at < x.length; at++) if (Math.abs(x[at] - wanted) < Math.abs(x[best] - wanted)) best = at;
  return best;
}

// One cursor over all charts of steps, and one over all of times.
function point(kind, x) {
  pointed[kind] = x;
  for (const chart of charts) if (chart.panel.x === kind) explain(chart, x);
}

function explain(chart, x) {
  const items = chart.lines.map(line => {
    const at = x === null ? line.x.length - 1 : nearest(line.x, x);
    const item = element("span"), mark = element("i");
    mark.style.background = line.colour;
    item.append(mark, `${line.name} `, element("b", figure(line.y[at])));
    if (line.low) item.append(` [${figure(line.low[at])}, ${figure(line.high[at])}]`);
    return item;
  });
  const at = x === null ? null : chart.lines[0].x[nearest(chart.lines[0].x, x)];
  if (at !== null) items.unshift(element("span", chart.panel.x === "time" ? moment(at, chart.rangeX) : `step ${at}`));
  chart.legend.replaceChildren(...items);
  chart.cursor.setAttribute("visibility", at === null ? "hidden" : "visible");
  if (at !== null) for (const end of ["x1", "x2"]) chart.cursor.setAttribute(end, chart.atX(at));
}

// names: [name, place of its colour], without a colour where it is no work.
function drawLanes(run) {
  const { title, seconds, names, rows } = run.lanes;
  if (!rows.length) return null;
  const card = element("figure", "", "card lanes"), width = Math.max(document.body.clientWidth - 64, 240);
  const left = Math.min(140, width * 0.34), right = 40, row = 24, scale = (width - left - right) / seconds;
  card.append(element("h3", `Who worked when: ${title}`));
  const svg = shape(card, "svg", { viewBox: `0 0 ${width} ${rows.length * row + 16}`, height: rows.length * row + 16 });
  rows.forEach(({ lane, share, spans }, place) => {
    const y = place * row;
    shape(svg, "text", { x: left - 6, y: y + 15, "text-anchor": "end" }).textContent = lane;
    shape(svg, "rect", { x: left, y: y + 3, width: width - left - right, height: row - 7, fill: "var(--line)", rx: 2 });
    for (let at = 0; at < spans.length; at += 4) {  // of each its begin, its end, the place of its name, and what of it is work
      const [begin, end, busy] = [spans[at], spans[at + 1], spans[at + 3]].map(hundredths => hundredths / 100);
      const [name, colour] = names[spans[at + 2]], part = busy / (end - begin) || 1;
      const box = { x: left + begin * scale, y: y + 3, width: Math.max((end - begin) * scale, 0.8), height: row - 7 };
      const fill = colour === null ? "var(--c-base)" : COLOURS[colour], opacity = (colour === null ? 0.35 : 0.9) * (0.3 + 0.7 * part);
      shape(shape(svg, "rect", { ...box, fill, opacity: opacity.toFixed(2) }), "title", {}).textContent = spans[at + 3] >= spans[at + 1] - spans[at] ?
        `${name} ${(end - begin).toFixed(1)} s` : `${name} ${busy.toFixed(1)} s of ${(end - begin).toFixed(1)} s`;
    }
    shape(svg, "text", { x: width, y: y + 15, "text-anchor": "end" }).textContent = `${Math.round(share * 100)}%`;
  });
  const legend = element("div", "", "legend");
  for (const [name, colour] of names) {
    const item = element("span", name), mark = element("i");
    mark.style.background = colour === null ? "var(--c-base)" : COLOURS[colour];
    mark.style.opacity = colour === null ? 0.35 : 0.9;
    item.prepend(mark);
    legend.append(item);
  }
  card.append(legend, element("p", "right: the share of this time in which it worked; waiting, and reduce, which waits for " +
    "the slowest rank, is pale grey and does not count; work with pauses too short to draw is lighter", "note"));
  return card;
}

function drawWords(runs) {
  return runs.flatMap(({ run }) => {
    const many = data.runs.length > 1, list = element("ul", "", "advice");
    list.append(...run.advice.map(words => element("li", words)));
    const notes = element("ul", "", "notes");
    notes.append(...(run.notes ?? []).map(words => element("li", words)));
    return [element("p", (many ? `${run.name}: ` : "") + run.sentence, "sentence"), list, notes];
  });
}

function drawViews(runs) {
  return runs.flatMap(({ run }) => {
    const steps = Object.entries({ ...run.views, ...later }), line = element("p", "", "views note");
    line.append(`Tokens of ${run.name}: `);
    for (const [step, place] of steps) line.append(Object.assign(element("a", `step ${step}`), { href: place }));
    if (!steps.length) line.append("none yet; ", element("code", "edge-opd view RUN --all"), " writes a page a step.");
    return [line];
  });
}

function drawPicker() {
  if (data.runs.length < 2) return [];
  return data.runs.map((run, index) => {
    const label = element("label"), box = Object.assign(element("input"), { type: "checkbox", checked: !hidden.has(run.name) });
    box.addEventListener("change", () => { hidden[box.checked ? "delete" : "add"](run.name); render(data); });
    const mark = element("b", run.name);
    mark.style.color = COLOURS[index % COLOURS.length];
    label.append(box, " ", mark);
    return label;
  });
}

// The run's host may have another time than this computer: what counts is when the data last changed here.
function state() {
  const box = document.getElementById("state"), isOver = data.ended && !(data.ended in PATIENCE_S);
  const patience = PATIENCE_S[data.ended] ?? Math.max(3 * data.every, 15);
  const watched = (performance.now() - came) / 1000, late = !isOver && watched > patience;
  const seconds = Math.max(0, isLive ? watched : Date.now() / 1000 - data.made), fault = data.ended ? "" : data.runs.map(run => run.fault).find(Boolean);
  box.classList.toggle("stale", late || Boolean(fault) || data.ended === "failed");
  const words = { finished: "The run has ended.", before: "Made before the run's end.",
    failed: "The run failed; a resume is shown here.", stopped: "The run was stopped; a resume is shown here.",
    restarting: "A service was lost; the services start again.",
    starting: "The services start, and the learner learns again what stands." };
  if (late) box.textContent = `Nothing for ${age(seconds)}: the run may have died.`;
  else if (data.ended) box.textContent = words[data.ended];
  else if (fault) box.textContent = `Running; the rollout service does not answer: ${fault}.`;
  else box.textContent = seconds > patience ? `Figures of ${age(seconds)} ago; waiting for new ones.` : `Running; ${age(seconds)} ago.`;
}

function render(given) {
  data = given;
  const runs = data.runs.map((run, index) => ({ run, index })).filter(({ run }) => !hidden.has(run.name));
  const tiles = runs.flatMap(({ run }) => run.tiles.map(({ value, label, bad }) => {
    const tile = element("div", "", bad ? "tile bad" : "tile");
    tile.append(element("b", value), element("span", data.runs.length > 1 ? `${run.name}: ${label}` : label));
    return tile;
  }));
  fill("picker", ...drawPicker());
  fill("words", ...drawWords(runs));
  fill("tiles", ...(data.runs.length > 1 ? [] : tiles));
  fill("lanes", ...runs.map(({ run }) => data.runs.length > 1 ? null : drawLanes(run)).filter(Boolean));
  charts.splice(0, charts.length, ...PANELS.map((_, place) => drawChart(place, runs)).filter(Boolean));
  const sections = [...new Set(charts.map(chart => chart.panel.section))].flatMap(name => {
    const grid = element("div", "", "grid");
    grid.append(...charts.filter(chart => chart.panel.section === name).map(chart => chart.card));
    return [element("h2", name), grid];
  });
  fill("charts", ...sections);
  charts.forEach(chart => { chart.width = chart.card.clientWidth - 30; });  // before any card changes, which lays out the page anew
  charts.forEach(layOut);
  fill("views", ...drawViews(runs));
  state();
  drawn += 1;
}

function edgeOpd(given) {
  if (given.made === data?.made) return;
  [came, isLive] = [performance.now(), data !== null];
  render(given);
}

function edgeOpdViews(found) {
  later = found;
  if (data) render(data);
}

function fetchAgain() {
  if (!SOURCE || data?.ended === "finished") return;
  const script = Object.assign(document.createElement("script"), { src: `${SOURCE}?${Date.now()}` });
  const next = () => { script.remove(); if (data) state(); setTimeout(fetchAgain, data?.ended ? 5000 : 1000); };
  script.addEventListener("load", next);
  script.addEventListener("error", next);
  document.head.append(script);
}

let width = innerWidth;
addEventListener("resize", () => { if (data && innerWidth !== width) { width = innerWidth; render(data); } });
if (VIEWS) document.head.append(Object.assign(document.createElement("script"), { src: VIEWS }));
if (GIVEN) render(GIVEN);
fetchAgain();
