// The Imagination tab of TensorBoard: what was said of each token, under the token that came. No library, no build.
//
// `render` fills the page. The data: `runs` lists runs, `run` gives the steps and curves of one, `scenes` the texts of
// one evaluation (tensorboard_tab.py). Texts of a run only ever become text nodes.

const BLANKS = { " ": "␣", "\n": "⏎", "\t": "⇥", "Ġ": "␣", "▁": "␣", "Ċ": "⏎" };
// Cividis, from 0 to 1: even in lightness, and the same to colour-blind eyes.
const RAMP = [[0, 32, 77], [49, 68, 107], [102, 105, 112], [149, 143, 120], [203, 186, 105], [255, 234, 70]];

const state = { runs: [], run: null, overview: null, prompt: 0, at: 0, scenes: new Map(), focus: null, timer: null };
const ui = {};

export async function render() {
  document.head.append(make("link", { rel: "stylesheet", href: new URL("./tab.css", import.meta.url).href }));
  document.documentElement.lang = "en";
  build();
  await refresh();
  setInterval(refresh, 30000);
}

// ---- data -----------------------------------------------------------------------------------------------------------

async function ask(route, query = {}) {
  const url = new URL(`./${route}`, import.meta.url);
  url.search = new URLSearchParams(query);
  const answer = await fetch(url);
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error);
  return content;
}

async function refresh() {
  await guarded(async () => {
    state.runs = (await ask("runs")).runs;
    const kept = state.runs.includes(state.run);
    fill(ui.run, state.runs, state.run);
    if (!state.runs.length) throw new Error("No run below the log directory has an imagination.jsonl yet: a run writes it at each evaluation.");
    await openRun(kept ? state.run : state.runs[state.runs.length - 1], kept);
  });
}

async function openRun(run, keepsPlace) {
  const overview = await ask("run", { run });
  if (keepsPlace && overview.steps.length && String(overview.steps) === String(state.overview?.steps)) return;
  const wasLast = !keepsPlace || !state.overview || state.at === state.overview.steps.length - 1;
  if (!keepsPlace) Object.assign(state, { prompt: 0, focus: null });
  Object.assign(state, { run, overview, scenes: new Map() });
  ui.run.value = run;
  const last = Math.max(0, overview.steps.length - 1);
  state.at = wasLast ? last : Math.min(state.at, last);
  state.prompt = Math.max(0, Math.min(state.prompt, overview.prompts.length - 1));
  fill(ui.prompt, overview.prompts.map((prompt, place) => `${place + 1}: ${clip(shown(prompt.text), 44)}`));
  ui.step.max = last;
  await show();
}

async function sceneNow() {
  const step = state.overview.steps[state.at];
  if (!state.scenes.has(step)) state.scenes.set(step, (await ask("scenes", { run: state.run, step })).scenes);
  return state.scenes.get(step)[state.prompt];
}

async function guarded(action) {
  try {
    ui.notice.hidden = true;
    await action();
  } catch (error) {
    ui.notice.textContent = error.message;
    ui.notice.hidden = false;
  }
}

// ---- the page -------------------------------------------------------------------------------------------------------

function build() {
  ui.run = make("select", { id: "run", onchange: () => guarded(() => openRun(ui.run.value, false)) });
  ui.prompt = make("select", { id: "prompt", onchange: () => go({ prompt: ui.prompt.selectedIndex }) });
  ui.step = make("input", { id: "step", type: "range", min: 0, max: 0, step: 1, oninput: () => go({ at: Number(ui.step.value) }) });
  ui.where = make("output", { id: "where", for: "step" });
  ui.play = make("button", { id: "play", type: "button", onclick: play }, "▶ play");
  ui.notice = make("p", { className: "notice", role: "alert", hidden: true });
  ui.charts = make("div", { className: "charts" });
  ui.text = make("p", { className: "text" });
  ui.grid = make("table", { className: "grid", role: "grid", id: "grid", "aria-label": "Tokens as they came, as predicted and as imagined" });
  ui.details = make("aside", { className: "details", id: "details", "aria-live": "polite" });
  const legend = make("p", { className: "legend" },
    make("span", {}, "probability 0", make("span", { className: "ramp", style: `background:linear-gradient(90deg,${RAMP.map(css)})` }), "1"),
    make("span", {}, make("u", {}, "underlined"), " and ≠: not the token that came"),
    make("span", {}, "▸: imagined from here"),
    make("span", {}, make("kbd", {}, "←↑↓→"), " cells  ", make("kbd", {}, "["), make("kbd", {}, "]"), " step  ",
      make("kbd", {}, ","), make("kbd", {}, "."), " prompt"));
  document.body.append(make("main", { className: "tab" },
    make("div", { className: "bar" },
      make("label", {}, make("span", { className: "name" }, "run"), ui.run),
      make("label", {}, make("span", { className: "name" }, "prompt"), ui.prompt),
      make("label", { className: "scrub" }, make("span", { className: "name" }, "step"), ui.step, ui.where), ui.play),
    ui.notice, ui.charts,
    make("div", { className: "main" }, make("section", {}, ui.text, make("div", { className: "scroll" }, ui.grid), legend), ui.details)));
  document.addEventListener("keydown", onKey);
  ui.grid.addEventListener("mouseover", (event) => tell(event.target.closest("td")));
  ui.grid.addEventListener("focusin", (event) => tell(event.target.closest("td")));
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !state.overview) return;
  const moves = { "[": { at: state.at - 1 }, "]": { at: state.at + 1 }, ",": { prompt: state.prompt - 1 }, ".": { prompt: state.prompt + 1 } };
  const arrows = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  const cell = event.target.closest?.("td[data-row]");
  if (moves[event.key] && event.target.tagName !== "SELECT") go(moves[event.key]);
  else if (cell && arrows[event.key]) moveFocus(cell, ...arrows[event.key]);
  else return;
  event.preventDefault();
}

function go(place) {
  const { steps, prompts } = state.overview;
  const next = { at: state.at, prompt: state.prompt, ...place };
  state.at = Math.max(0, Math.min(steps.length - 1, next.at));
  state.prompt = Math.max(0, Math.min(prompts.length - 1, next.prompt));
  return guarded(show);
}

function play() {
  if (state.timer) {
    clearInterval(state.timer);
    state.timer = null;
  } else {
    if (state.at === state.overview.steps.length - 1) go({ at: 0 });
    state.timer = setInterval(() => (state.at < state.overview.steps.length - 1 ? go({ at: state.at + 1 }) : play()), 900);
  }
  ui.play.textContent = state.timer ? "❚❚ pause" : "▶ play";
}

async function show() {
  const { steps } = state.overview;
  if (!steps.length) { // a run that was begun anew, or whose first line is still being written
    for (const shownBefore of [ui.charts, ui.text, ui.grid, ui.details, ui.where]) shownBefore.replaceChildren();
    throw new Error("This run has no evaluation yet; it will be shown when it is there.");
  }
  const wanted = [state.run, state.at, state.prompt].join();
  const scene = await sceneNow();
  if (wanted !== [state.run, state.at, state.prompt].join()) return; // another one was asked for meanwhile
  ui.step.value = state.at;
  ui.step.setAttribute("aria-valuetext", `step ${steps[state.at]}`);
  ui.prompt.selectedIndex = state.prompt;
  ui.where.textContent = `${steps[state.at].toLocaleString("en")} (${state.at + 1} of ${steps.length})`;
  drawCharts();
  drawText(scene);
  drawGrid(scene);
}

function drawText(scene) {
  ui.text.replaceChildren("prompt ", make("span", { className: "prompt" }, shown(scene.tokens.slice(0, scene.prompt_length).join(""))),
    ` return ${scene.total.toFixed(2)}, ${scene.exact ? "exact" : "not exact"}`);
}

// ---- the grid -------------------------------------------------------------------------------------------------------

function drawGrid(scene) {
  const held = document.activeElement?.closest?.("td[data-row]");
  const first = Math.max(0, scene.prompt_length - 1);
  const places = scene.tokens.map((_, place) => place).slice(first);
  const replies = new Set(scene.replies);
  const speaker = (place) => (place < scene.prompt_length ? "prompt" : replies.has(place) ? "world" : "policy");
  const rows = [];
  const addRow = (label, cells, className = "") => {
    const row = make("tr", { className, role: "row" }, make("th", { scope: "row" }, label));
    const number = rows.length;
    places.forEach((place, column) => {
      const cell = make("td", { role: "gridcell" });
      const content = cells(place);
      if (content) paint(cell, content, { row: number, column, place });
      else if (replies.has(place)) cell.className = "world-column";
      row.append(cell);
    });
    rows.push(row);
    return row;
  };
  const part = (title) => make("tr", { className: "part" }, make("th", { colSpan: places.length + 1 }, make("span", {}, title)));
  const body = [whoRow(places, speaker)];
  body.push(addRow("realized", (place) => ({ token: scene.tokens[place], className: `real ${speaker(place)}`, kind: "real", speaker: speaker(place) })));
  body.push(part("Predicted: what each depth held likeliest, that many tokens before"));
  scene.predicted.forEach((said, depth) => body.push(addRow(said.label, (place) => guessCell(scene, said.guesses[place], place, { kind: "predicted", depth: depth + 1 }))));
  if (scene.imagined.length) {
    body.push(part("Imagined: from ▸ on, each token read as it was imagined"));
    lanes(scene.imagined).forEach((lane) => body.push(addRow("imagined", (place) => laneCell(scene, lane, place))));
  }
  body.push(part("Return to come, after the token above"));
  const known = scene.imagined_return.some((value) => value !== null);
  body.push(addRow("imagined", (place) => returnCell(scene, "imagined", place)));
  body.push(addRow("realized", (place) => returnCell(scene, "realized", place)));
  if (!known) body.push(part("No return is imagined here: nothing has taught the reward head."));
  ui.grid.replaceChildren(make("tbody", {}, ...body));
  ui.scene = scene;
  const start = cellAt(state.focus) ?? ui.grid.querySelector('td[data-row="2"]') ?? ui.grid.querySelector("td[data-row]");
  if (start) start.tabIndex = 0;
  if (held && start) start.focus();
  else tell(cellAt(state.focus) ?? start);
}

function whoRow(places, speaker) {
  const row = make("tr", { className: "who" }, make("th"));
  for (let from = 0, to; from < places.length; from = to) {
    const who = speaker(places[from]);
    for (to = from; to < places.length && speaker(places[to]) === who; ) to += 1;
    row.append(make("td", { colSpan: to - from, className: who }, who));
  }
  return row;
}

// Continuations in as few rows as keep them apart: one place for the mark of the root, then the tokens.
function lanes(rows) {
  const found = [];
  for (const row of rows) {
    const last = row.guesses.reduce((end, guess, place) => (guess ? place : end), row.root);
    const lane = found.find((one) => one.end < row.root) ?? found[found.push({ end: -1, rows: [] }) - 1];
    lane.rows.push(row);
    lane.end = last;
  }
  return found.map((lane) => lane.rows);
}

function laneCell(scene, lane, place) {
  const row = lane.find((one) => one.root === place || one.guesses[place]);
  if (!row) return null;
  if (row.root === place) return { token: "▸", className: "root", kind: "root", root: row.root };
  return guessCell(scene, row.guesses[place], place, { kind: "imagined", root: row.root });
}

function guessCell(scene, guess, place, more) {
  if (!guess) return null;
  const [token, probability] = guess.top[0];
  return { token, probability, differs: token !== scene.tokens[place], guess, ...more };
}

function returnCell(scene, which, place) {
  const value = scene[`${which}_return`][place];
  return value === null ? null : { token: value.toFixed(2), className: "number", kind: "return", which, value };
}

function paint(cell, content, { row, column, place }) {
  Object.assign(cell.dataset, { row, column, place, kind: content.kind });
  cell.content = content;
  cell.tabIndex = -1;
  cell.className = `${content.className ?? ""} ${content.differs ? "differs" : ""}`.trim();
  cell.append(make("span", {}, content.kind === "return" ? content.token : clip(shown(content.token), 14)));
  if (content.probability === undefined) return;
  cell.append(make("small", {}, (content.differs ? "≠ " : "") + percent(content.probability)));
  const colour = mix(content.probability);
  cell.style.background = css(colour);
  cell.style.color = colour[0] * 0.3 + colour[1] * 0.59 + colour[2] * 0.11 > 120 ? "#111" : "#fff";
  cell.setAttribute("aria-label", `${shown(content.token)}, ${percent(content.probability)}${content.differs ? ", not the token that came" : ""}`);
}

const cellAt = (place) => place && ui.grid.querySelector(`td[data-row="${place.row}"][data-column="${place.column}"]`);

function moveFocus(cell, down, right) {
  const last = ui.grid.querySelectorAll("td").length;
  let row = Number(cell.dataset.row), column = Number(cell.dataset.column);
  for (let tries = 0; tries < last; tries += 1) { // over the empty cells
    row += down;
    column += right;
    if (row < 0 || column < 0) return;
    const next = cellAt({ row, column });
    if (!next) continue;
    cell.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
    next.scrollIntoView({ block: "nearest", inline: "nearest" });
    return;
  }
}

// ---- what is behind a cell ------------------------------------------------------------------------------------------

function tell(cell) {
  if (!cell?.content) return;
  state.focus = { row: Number(cell.dataset.row), column: Number(cell.dataset.column) };
  const place = Number(cell.dataset.place), { content } = cell, scene = ui.scene;
  for (const other of ui.grid.querySelectorAll(".same-column")) other.classList.remove("same-column");
  for (const other of ui.grid.querySelectorAll(`td[data-place="${place}"]`)) other.classList.add("same-column");
  const came = scene.tokens[place];
  const parts = [make("h3", {}, title(scene, content, place))];
  const trunk = scene.predicted[0]?.guesses[place];
  const guess = content.guess ?? (content.kind === "real" ? trunk : null);
  if (guess) parts.push(make("ol", { id: "top" }, ...guess.top.map(([token, p]) => bar(token, p, token === came))));
  if (guess) parts.push(make("p", {}, "The token that came: ", make("code", {}, `‘${shown(came)}’`), guess.realized === null ? "" : `, held ${probability(guess.realized)} probable`, "."));
  if (guess && guess.accept !== null && content.depth > 1)
    parts.push(make("p", {}, `The trunk gave it ${probability(trunk.realized)}: drafted by this depth it is kept with probability ${probability(guess.accept)}${content.differs ? "; the likeliest one was another" : ""}.`));
  ui.details.replaceChildren(...parts);
}

function title(scene, content, place) {
  const number = place - scene.prompt_length + 1;
  const after = (root) => (root < scene.prompt_length ? "after the prompt" : `after token ${root - scene.prompt_length + 1}, ‘${shown(scene.tokens[root])}’`);
  if (content.kind === "real") return `Token ${number}, ‘${shown(content.token)}’, by the ${content.speaker}; what the trunk expected`;
  if (content.kind === "root") return `Imagined ${after(content.root)}`;
  if (content.kind === "return") return `${content.which === "imagined" ? "Imagined" : "Realized"} return to come, ${after(place)}: ${content.value.toFixed(3)}`;
  if (content.kind === "imagined") return `Token ${number}, as imagined ${after(content.root)}, step ${place - content.root}`;
  return `Token ${number}, as depth ${content.depth} said ${after(place - content.depth)}`;
}

function bar(token, p, came) {
  return make("li", { className: came ? "came" : "" }, make("code", { title: token }, shown(token)),
    make("span", { className: "track" }, make("span", { className: "fill", style: `display:block;width:${100 * p}%;background:${css(mix(p))}` })),
    make("span", { className: "p" }, probability(p) + (came ? " ✓" : "")));
}

// ---- curves over training -------------------------------------------------------------------------------------------

function drawCharts() {
  const prompt = state.overview.prompts[state.prompt];
  ui.charts.replaceChildren(
    chart("Agreement of the heads with what came", { "": prompt.agreement }, [0, 1]),
    chart("Return after the prompt", { realized: prompt.realized, imagined: prompt.imagined }));
}

function chart(caption, series, range) {
  const width = 316, height = 84, left = 34, right = 62, top = 8, bottom = 16;
  const { steps } = state.overview;
  const values = Object.values(series).flat().filter((value) => value !== null);
  if (!values.length) return make("figure", {}, make("figcaption", {}, `${caption}: not there`));
  let [low, high] = range ?? [Math.min(0, ...values), Math.max(...values)];
  if (high === low) high = low + 1;
  const x = (at) => left + (width - left - right) * (steps.length > 1 ? at / (steps.length - 1) : 0.5);
  const y = (value) => top + (height - top - bottom) * (1 - (value - low) / (high - low));
  const drawing = [line(x(state.at), top - 4, x(state.at), height - bottom + 2, "#1a4fa0", "2")];
  for (const value of [low, high]) drawing.push(line(left, y(value), width - right, y(value), "#dcdfe5"), svg("text", { x: left - 5, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(2)));
  Object.entries(series).forEach(([name, list], place) => {
    const points = list.map((value, at) => [at, value]).filter(([, value]) => value !== null);
    if (!points.length) return;
    const colour = ["#00204d", "#a5672a"][place];
    drawing.push(svg("polyline", { points: points.map(([at, value]) => `${x(at)},${y(value)}`).join(" "), fill: "none", stroke: colour, "stroke-width": 1.8, "stroke-dasharray": place ? "5 3" : "none" }));
    for (const [at, value] of points) drawing.push(mark(place, x(at), y(value), colour, at));
    const [at, value] = points[points.length - 1];
    const lift = place && list.length && series.realized?.[at] !== undefined && Math.abs(y(value) - y(series.realized[at] ?? value)) < 11 ? (value < series.realized[at] ? 12 : -8) : 4;
    if (name) drawing.push(svg("text", { x: x(at) + 8, y: y(value) + lift, style: `fill:${colour}` }, name));
  });
  drawing.push(svg("text", { x: left, y: height - 2 }, "step"));
  return make("figure", {}, make("figcaption", {}, caption), svg("svg", { width, height, role: "img", "aria-label": caption }, ...drawing));
}

function mark(place, x, y, colour, at) {
  const shape = place ? svg("rect", { x: x - 3, y: y - 3, width: 6, height: 6, fill: colour }) : svg("circle", { cx: x, cy: y, r: 3.2, fill: colour });
  shape.style.cursor = "pointer";
  shape.addEventListener("click", () => go({ at }));
  return shape;
}

const line = (x1, y1, x2, y2, stroke, width = "1") => svg("line", { x1, y1, x2, y2, stroke, "stroke-width": width });

// ---- small things ---------------------------------------------------------------------------------------------------

function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key in node && key !== "style") node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function fill(select, names, chosen) {
  select.replaceChildren(...names.map((name) => make("option", { value: name, selected: name === chosen }, name)));
}

function mix(p) {
  const place = Math.min(0.99999, Math.max(0, p)) * (RAMP.length - 1), from = Math.floor(place);
  return RAMP[from].map((channel, index) => Math.round(channel + (place - from) * (RAMP[from + 1][index] - channel)));
}

const css = (colour) => `rgb(${colour})`;
const percent = (p) => `${Math.round(100 * p)} %`;
const probability = (p) => p.toFixed(p > 0 && p < 0.01 ? 4 : 2);
const clip = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);
const shown = (text) => [...text].map((character) => BLANKS[character] ?? character).join("");
