// The page of one or several runs. One function draws: render(data). A live page calls it again when its data file changed.
const PATIENCE_S = { starting: 60, restarting: 300 };  // in which the next word comes, or the run has died
let drawn = 0;
let came = performance.now(), isLive = false;  // when the data last changed, by this page's own clock, and whether it saw that
let later = {};  // token views that were made once the page was there
const hidden = new Set();

// Lanes: names: [name, place of its colour], without a colour where it is no work. spans: four numbers a stretch: begin,
// end, the name's place, and how much of it is work, in 1/100 s. All of one look are one path.
function drawLanes(run) {
  const { begin, seconds, names, rows } = run.lanes;
  if (!rows.length) return null;
  const card = element("figure", "", "card lanes"), width = Math.max(document.body.clientWidth - 64, 240);
  const left = Math.min(140, width * 0.34), right = 40, row = rows.length > MANY ? 12 : 24, whole = [begin, begin + seconds];
  const inside = zoomed.time && zoomed.time[0] < whole[1] && zoomed.time[1] > whole[0];
  const [low, high] = inside ? zoomed.time : whole, scale = (width - left - right) / (high - low);
  card.append(element("h3", `Who worked when: ${inside ? RANGES.time(zoomed.time) : run.lanes.title}`));
  const svg = shape(card, "svg", { viewBox: `0 0 ${width} ${rows.length * row + 8}`, height: rows.length * row + 8, role: "img",
    tabindex: 0, "aria-label": "Who worked when", class: rows.length > MANY ? "many" : "" });
  const looks = new Map(), atX = at => left + (Math.min(Math.max(at, low), high) - low) * scale;
  rows.forEach(({ lane, share, spans }, place) => {
    const y = place * row, tall = row > 12 ? row - 7 : row - 3;
    shape(svg, "text", { x: left - 6, y: y + row / 2 + 3, "text-anchor": "end" }).textContent = lane;
    shape(svg, "rect", { x: left, y: y + 3, width: width - left - right, height: tall, fill: "var(--line)", rx: 2 });
    for (let at = 0; at < spans.length; at += 4) {
      const [from, to] = [atX(begin + spans[at] / 100), atX(begin + spans[at + 1] / 100)];
      if (begin + spans[at + 1] / 100 < low || begin + spans[at] / 100 > high) continue;
      const look = `${spans[at + 2]} ${(spans[at + 3] / (spans[at + 1] - spans[at]) || 1).toFixed(1)}`;
      looks.set(look, `${looks.get(look) ?? ""}M${from.toFixed(1)} ${y + 3}h${Math.max(to - from, 0.8).toFixed(1)}v${tall}H${from.toFixed(1)}z`);
    }
    shape(svg, "text", { x: width, y: y + row / 2 + 3, "text-anchor": "end" }).textContent = `${Math.round(share * 100)}%`;
  });
  for (const [look, d] of looks) {
    const [which, part] = look.split(" ").map(Number), colour = names[which][1];
    shape(svg, "path", { d, ...paint(colour, part) });
  }
  const drawn = { width, rangeX: [low, high], toX: at => low + (at - left) / scale };
  follow(svg, "time", () => drawn);
  const hint = element("div", "", "hint");
  svg.addEventListener("pointermove", event => tell(hint, event, svg, run.lanes, drawn.toX, row));
  svg.addEventListener("pointerleave", () => hint.replaceChildren());
  const legend = element("div", "", "legend");
  for (const [name, colour] of names) {
    const item = element("span", name), mark = element("i");
    Object.assign(mark.style, { background: paint(colour, 1).fill, opacity: paint(colour, 1).opacity });
    item.prepend(mark);
    legend.append(item);
  }
  card.append(hint, legend, element("p", "right: the share of this time in which it worked; waiting, and reduce, which waits for " +
    "the slowest rank, is pale grey and does not count; work with pauses too short to draw is lighter", "note"));
  return card;
}

// part: of the stretch that is work.
const paint = (colour, part) => ({ fill: colour === null ? "var(--c-base)" : COLOURS[colour],
  opacity: ((colour === null ? 0.35 : 0.9) * (0.3 + 0.7 * part)).toFixed(2) });

// What a lane did where the mouse is.
function tell(hint, event, svg, { begin, names, rows }, toX, row) {
  const box = svg.getBoundingClientRect(), at = 100 * (toX(event.clientX - box.left) - begin);
  const lane = rows[Math.floor((event.clientY - box.top) / row)], found = [];
  for (let place = 0; place < (lane?.spans.length ?? 0); place += 4) {
    const [from, to, which, busy] = lane.spans.slice(place, place + 4), seconds = ((to - from) / 100).toFixed(1);
    if (from <= at && at <= to) found.push(`${names[which][0]} ${busy < to - from ? `${(busy / 100).toFixed(1)} s of ` : ""}${seconds} s`);
  }
  hint.textContent = found.length ? `${lane.lane}: ${found.join(", ")}` : "";
  hint.style.top = `${event.clientY - svg.parentElement.getBoundingClientRect().top + 16}px`;
  hint.style.left = `${Math.min(event.clientX - box.left, box.width - 200)}px`;
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

const RANGES = { step: ([low, high]) => `steps ${Math.ceil(low)} to ${Math.floor(high)}`,
  time: range => range.map(at => moment(at, range)).join(" to ") };

// A button for each range that is not all.
function drawRanges() {
  return Object.keys(zoomed).filter(kind => zoomed[kind]).map(kind => {
    const button = element("button", `${RANGES[kind](zoomed[kind])}: show all`);
    button.addEventListener("click", () => zoom(kind, null));
    return button;
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

function drawCharts(runs) {
  const before = charts;
  charts = PANELS.map((_, place) => place).filter(place => hasFigures(place, runs)).map(chartOf);
  charts.forEach(chart => Object.assign(chart, { runs, isDrawn: false }));
  if (charts.length !== before.length || charts.some((chart, place) => chart !== before[place]))
    fill("charts", ...[...new Set(charts.map(chart => chart.panel.section))].flatMap(name => {
      const grid = element("div", "", "grid");
      grid.append(...charts.filter(chart => chart.panel.section === name).map(chart => chart.card));
      return [element("h2", name), grid];
    }));
  draw(charts.filter(isNear));
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
  const isAtLanes = document.getElementById("lanes").contains(document.activeElement);
  fill("lanes", ...runs.map(({ run }) => data.runs.length > 1 ? null : drawLanes(run)).filter(Boolean));
  if (isAtLanes) document.querySelector("#lanes svg")?.focus({ preventScroll: true });
  fill("ranges", ...drawRanges());
  drawCharts(runs);
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
