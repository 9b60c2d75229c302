"use strict";
// The charts of the page. One is drawn once it comes near what is seen, and anew as new figures come while it is there.
const COLOURS = ["unguided", "pos", "neg", "near_zero", "all", "verifier", "soft", "base"].map(name => `var(--c-${name})`);
const BANDS = 3;  // runs whose intervals are drawn over each other
const HEIGHT = 150, LEFT = 46, BOTTOM = 18, TOP = 6, RIGHT = 8;
const MANY = 24;  // lanes, from which on they are narrow
const CROWD = 8;  // engines of a pool, beyond which they are told together
const NEAR = 400;  // pixels beyond what is seen within which a chart is drawn
const SVG = "http://www.w3.org/2000/svg";
let data = null;
const pointed = { step: null, time: null };  // where the cursors are
const zoomed = { step: null, time: null };  // the range that is shown, where it is not all
const known = [];  // charts by the place of their panel; one stays where it is, with its height, while new figures come
let charts = [];  // those that have figures

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
    const { x: when, series, each, whole } = run.charts[place], below = when.map(() => 0);
    const gaps = when.map((_, at) => Object.values(series).every(values => values[at] === null));
    const zero = panel.x === "time" && data.runs.length > 1 ? run.began : 0, x = zero ? when.map(at => at - zero) : when;
    const known = Object.keys(series).every(name => name in WORK);
    Object.keys(series).filter(name => !(panel.bands && / (low|high)$/.test(name))).forEach((name, order) => {
      const many = data.runs.length > 1, line = { name: many ? `${run.name} ${name}` : name, x, y: series[name], each, whole: whole - zero };
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
  return grouped(lines);
}

const groupsOf = (items, key) => items.reduce((all, one) => all.set(key(one), [...all.get(key(one)) ?? [], one]), new Map());
// Many engines of a pool have one colour, and one place in the legend.
function grouped(lines) {
  const groups = groupsOf(lines, line => line.name.replace(/ \d+$/, ""));
  [...groups].filter(([, own]) => own.length > CROWD).forEach(([group, own], place) => own.forEach(line =>
    Object.assign(line, { group, colour: data.runs.length > 1 ? line.colour : COLOURS[place], dash: "" })));
  return lines;
}

function rangeOf(lines, panel) {
  const values = lines.flatMap(line => (line.hasBand ? [line.top, line.low, line.high] : [line.top]).flat()).filter(value => value !== null);
  let low = least(values), high = most(values);
  if (low === 0 && high === 0) return [0, 1];
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
    const half = words.length * 3.3, x = Math.min(chart.atX(at), width - half);  // of a text of 11 pixels
    shape(chart.svg, "text", { x, y: HEIGHT - 3, "text-anchor": "middle" }).textContent = words;
  }
}

function drawLine(chart, line) {
  const style = { fill: "none", stroke: line.colour, "stroke-width": line.group ? 1 : 1.6,
    "stroke-opacity": line.group ? 0.5 : 1, "stroke-dasharray": line.dash };
  if (line.base) shape(chart.svg, "path", { d: areaOf(chart, line.x, line.base, line.top), fill: line.colour, opacity: 0.55 });
  if (line.hasBand) shape(chart.svg, "path", { d: areaOf(chart, line.x, line.low, line.high), fill: line.colour, opacity: 0.14 });
  shape(chart.svg, "path", { d: pathOf(chart, line.x, line.top), ...style });
  if (line.x.length <= 40 && chart.lines.length <= 20) line.x.forEach((x, at) => line.top[at] === null ||
    shape(chart.svg, "circle", { cx: chart.atX(x), cy: chart.atY(line.top[at]), r: 2, fill: line.colour }));
}

const hasFigures = (place, runs) => runs.some(({ run }) =>
  Object.values(run.charts[place].series).some(values => values.some(value => value !== null)));

// The card of a chart, in which nothing is drawn yet.
function chartOf(place) {
  if (known[place]) return known[place];
  const panel = PANELS[place], card = element("figure", "", "card plot"), title = element("h3", panel.title);
  if (panel.unit) title.append(element("span", ` ${panel.unit}`, "note"));
  const svg = shape(card, "svg", { height: HEIGHT, role: "img", tabindex: 0, "aria-label": panel.title });
  const legend = element("div", "", "legend"), chart = { card, place, panel, svg, legend, lines: [], isDrawn: false };
  card.prepend(title);
  card.append(legend);
  if (panel.note) card.append(element("p", panel.note, "note"));
  follow(svg, panel.x, () => chart);
  card.chart = known[place] = chart;
  coming.observe(card);
  return chart;
}

const isNear = ({ card }) => {
  const { top, bottom } = card.getBoundingClientRect();
  return top < innerHeight + NEAR && bottom > -NEAR;
};
function draw(wanted) {
  const todo = wanted.filter(chart => !chart.isDrawn);
  todo.forEach(chart => { chart.width = chart.card.clientWidth - 30; });  // before any card changes, which lays out the page anew
  todo.forEach(layOut);
}
const coming = new IntersectionObserver(entries =>
  draw(entries.filter(entry => entry.isIntersecting).map(({ target }) => target.chart).filter(chart => charts.includes(chart))),
  { rootMargin: `${NEAR}px` });
addEventListener("beforeprint", () => draw(charts));

// What of a line is in the range that is shown.
function cut(line, [low, high]) {
  const from = line.x.findIndex(x => x >= low), to = line.x.findLastIndex(x => x <= high) + 1;
  const part = Object.entries(line).map(([name, of]) => [name, Array.isArray(of) ? of.slice(from < 0 ? to : from, to) : of]);
  return Object.fromEntries(part);
}

// What is left out of a range that begins before every point is there.
function leftOut(lines, range, kind) {
  const thin = range ? lines.filter(({ whole }) => range[0] < whole) : [], from = most(thin.map(({ whole }) => whole));
  return thin.length ? `of each ${most(thin.map(({ each }) => each))} points the first, last, least and greatest; all from ` +
    `${kind === "time" ? moment(from, [range[0], from]) : `step ${from}`} on` : "";
}

function layOut(chart) {
  const width = chart.width, range = zoomed[chart.panel.x], lines = linesOf(chart.place, chart.runs);
  chart.leftOut = leftOut(lines, range, chart.panel.x);
  chart.isDrawn = true;
  chart.lines = (range ? lines.map(line => cut(line, range)) : lines).filter(line => line.top.some(value => value !== null));
  chart.svg.replaceChildren();
  chart.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  if (!chart.lines.length) {
    chart.legend.replaceChildren(chart.leftOut ? `none of this range is shown: ${chart.leftOut}` : "nothing in this range");
    return;
  }
  const xs = chart.lines.flatMap(line => line.x);
  let [low, high] = range ?? [least(xs), most(xs)];
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  chart.rangeX = [low, high];
  chart.rangeY = rangeOf(chart.lines, chart.panel);
  chart.atX = x => LEFT + (x - low) / (high - low) * (width - LEFT - RIGHT);
  chart.atY = y => TOP + (chart.rangeY[1] - y) / (chart.rangeY[1] - chart.rangeY[0]) * (HEIGHT - TOP - BOTTOM);
  chart.toX = at => low + (at - LEFT) / (width - LEFT - RIGHT) * (high - low);
  drawAxes(chart, chart.panel, width);
  chart.lines.forEach(line => drawLine(chart, line));
  chart.cursor = shape(chart.svg, "line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
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
  for (const chart of charts) if (chart.panel.x === kind && chart.isDrawn && chart.lines.length) explain(chart, x);
}

// What the legend says of a line, or of those of a group together.
function told(lines, x) {
  const { name, group, colour, dash, low, high } = lines[0], item = element("span"), mark = element("i");
  const places = lines.map(line => x === null ? line.x.length - 1 : nearest(line.x, x)), [on, off] = dash.split(" ");
  mark.style.background = dash ? `repeating-linear-gradient(90deg, ${colour} 0 ${on}px, transparent ${on}px ${+on + +off}px)` : colour;
  if (dash) mark.style.width = "1.6em";
  const values = lines.map((line, place) => line.y[places[place]]).filter(value => value !== null).sort((a, b) => a - b);
  const middle = values[Math.floor(values.length / 2)];
  item.append(mark, group ? `${lines.length} ${group}s ` : `${name} `, element("b", figure(group ? middle : values[0])));
  if (group) item.append(` [${figure(values[0])}, ${figure(values.at(-1))}]`);
  else if (low) item.append(` [${figure(low[places[0]])}, ${figure(high[places[0]])}]`);
  return item;
}

function explain(chart, x) {
  const items = [...groupsOf(chart.lines, line => line.group ?? line).values()].map(lines => told(lines, x));
  const at = x === null ? null : chart.lines[0].x[nearest(chart.lines[0].x, x)];
  if (at !== null) items.unshift(element("span", chart.panel.x === "time" ? moment(at, chart.rangeX) : `step ${at}`));
  chart.legend.replaceChildren(...items, chart.leftOut);
  chart.cursor.setAttribute("visibility", at === null ? "hidden" : "visible");
  if (at !== null) for (const end of ["x1", "x2"]) chart.cursor.setAttribute(end, chart.atX(at));
}

// A drag over a chart shows what is there of all charts of its kind. By the keyboard: + and - around the middle, the
// arrows to either side, Escape for all. of: what is drawn there, with toX and rangeX.
function follow(svg, kind, of) {
  const xOf = event => {
    const box = svg.getBoundingClientRect(), { toX, rangeX: [low, high], width } = of();
    return Math.min(Math.max(toX((event.clientX - box.left) * width / box.width), low), high);
  };
  let from = null, band = null;
  const end = () => { band?.remove(); from = band = null; };
  const reads = act => event => { if (of().rangeX) act(event); };
  svg.addEventListener("pointerdown", reads(event => {
    point(kind, xOf(event));
    if (event.pointerType !== "touch" && event.button === 0) from = event.clientX;
  }));
  svg.addEventListener("pointermove", reads(event => {
    point(kind, xOf(event));
    if (from === null) return;
    const box = svg.getBoundingClientRect(), scale = of().width / box.width;
    band ??= shape(svg, "rect", { class: "band", y: 0, height: "100%" });
    band.setAttribute("x", (Math.min(from, event.clientX) - box.left) * scale);
    band.setAttribute("width", Math.abs(event.clientX - from) * scale);
  }));
  svg.addEventListener("pointerup", reads(event => {
    const range = [xOf({ clientX: from ?? event.clientX }), xOf(event)].sort((a, b) => a - b);
    const isDrag = from !== null && Math.abs(event.clientX - from) > 4;
    end();
    if (isDrag) zoom(kind, range);
  }));
  svg.addEventListener("pointerleave", () => { end(); point(kind, null); });
  svg.addEventListener("dblclick", () => zoom(kind, null));
  svg.addEventListener("keydown", reads(event => {
    const [low, high] = of().rangeX, size = high - low;
    const range = { "+": [low + size / 4, high - size / 4], "-": [low - size / 2, high + size / 2], Escape: null,
      ArrowLeft: [low - size / 4, high - size / 4], ArrowRight: [low + size / 4, high + size / 4] }[event.key];
    if (range === undefined) return;
    event.preventDefault();
    zoom(kind, range);
  }));
}

function zoom(kind, range) {
  zoomed[kind] = range;
  render(data);
}
