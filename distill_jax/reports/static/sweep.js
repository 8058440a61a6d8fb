'use strict';
// All that is drawn is a function of the sweep's runs and fits and of the reader's `view`, `hidden` and `selected`.

const { runs: summaries, fits, quantiles, figures = {} } = JSON.parse(document.getElementById('drawings').textContent);
const BLANK = { id: null, label: null, kind: null, method: null, alpha: null, beta: null, seed: null, parameters: null,
  retain: null, forget: null, steps: null, max_steps: null, recovered: null, diverged: null };
const runs = summaries.map(run => ({ ...BLANK, ...run }));

const FILTERS = [['kind', 'kind'], ['method', 'method'], ['alpha', 'α'], ['beta', 'β'], ['seed', 'seed'],
  ['parameters', 'parameters']];
const ACCOUNTINGS = ['whole', 'own', 'amortised'], PARTS = ['student', 'teacher', 'evaluation', 'attack'];
// Vermilion, magenta, blues and greens that stay apart under common colour blindness.
const COLOURS = ['#2e52b4', '#d55e00', '#b0287a', '#138a72', '#7a6a1f', '#56a5dd', '#15181d', '#8a4fc4'];
const METHODS = { __proto__: null, maxent: COLOURS[0], graddiff: COLOURS[1], rmu: COLOURS[2] };
const KINDS = {  // the mark, as Plotly and as a letter
  __proto__: null,
  undo: ['circle', '●'], reference: ['cross', '✚'], oracle: ['diamond', '◆'], suppressed: ['square', '■'],
  'random student': ['triangle-up', '▲'], 'alpha 0': ['triangle-down', '▼'], 'noise only': ['x', '✖'],
  'equal compute': ['triangle-right', '▶'], filtered: ['triangle-left', '◀'],
};
const OTHER = ['star', '★'];
const DASHES = [  // as Plotly and as SVG
  ['solid', 'none'], ['dash', '7 4'], ['dot', '2 3'], ['dashdot', '7 3 2 3'], ['longdash', '11 4'],
  ['longdashdot', '11 3 2 3'],
];

const hidden = Object.fromEntries(FILTERS.map(([field]) => [field, new Set()]));
const view = { unit: 'share', accounting: 'whole', step: null, tolerance: 0.05, log: false, method: null, size: null,
  column: 0, down: false };
const selected = new Set();  // keys of groups and ids of runs
const element = id => document.getElementById(id);

// ---------------------------------------------------------------------------------------------- numbers

const known = value => value !== null && value !== undefined;
const unique = values => [...new Set(values)].sort(compare);
const sum = values => values.every(known) ? values.reduce((a, b) => a + b, 0) : null;
const mean = values => { const some = values.filter(known); return some.length ? sum(some) / some.length : null; };

function compare(a, b) {
  if (!known(a) || !known(b)) return known(a) - known(b);
  if (typeof a === 'string' || typeof b === 'string') return String(a).localeCompare(b, undefined, { numeric: true });
  return a - b;
}

function grouped(items, key) {
  const map = new Map();
  for (const item of items) map.has(key(item)) ? map.get(key(item)).push(item) : map.set(key(item), [item]);
  return map;
}

/* The mean over seeds and half its 95 % Student-t interval, null with one seed. Runs of one seed count once. */
function estimate(same, value) {
  const seeds = [...grouped(same, run => run.seed).values()].map(runs => mean(runs.map(value))).filter(known);
  const n = seeds.length, centre = mean(seeds);
  if (n < 2) return { mean: centre, half: null, n };
  const deviation = Math.sqrt(seeds.reduce((total, x) => total + (x - centre) ** 2, 0) / (n - 1));
  return { mean: centre, half: quantiles[n - 2] * deviation / Math.sqrt(n), n };
}

const at = (run, measure, step = view.step) => run.attack?.[measure]?.[(run.attack.steps ?? []).indexOf(step)] ?? null;
const flops = (run, accounting, parts) => sum(parts.map(part => run.compute?.[accounting]?.[part] ?? null));

function cost(run) {
  if (view.unit === 'share') return run.vs_retraining?.[view.accounting] ?? null;
  return flops(run, view.accounting, view.unit === 'all' ? PARTS : PARTS.slice(0, 2));
}

/* Those points that no other one beats: none has less x and y at once, nor one less and the other equal. */
function pareto(points) {
  const front = [];
  let lowest = Infinity;
  for (const point of [...points].sort((a, b) => a.x - b.x || a.y - b.y)) {
    const twin = front.length && point.x === front.at(-1).x && point.y === front.at(-1).y;
    if (point.y < lowest || twin) front.push(point);
    lowest = Math.min(lowest, point.y);
  }
  return front;
}

/* Whether a group may stand on the front: 'yes', 'weak' where it retains too little, 'unknown' without an oracle. */
function comparable(group) {
  const oracles = runs.filter(run => run.kind === 'oracle' && run.parameters === group.parameters);
  const oracle = estimate(oracles, run => run.retain).mean;
  const retain = estimate(group.runs, run => run.retain).mean;
  if (oracle === null || retain === null) return 'unknown';
  return oracle - retain <= view.tolerance + 1e-9 ? 'yes' : 'weak';
}

// ---------------------------------------------------------------------------------------------- groups and words

const keyOf = run => JSON.stringify([run.kind, run.method, run.alpha, run.beta, run.parameters, run.label]);
const visibleRuns = () => runs.filter(run => FILTERS.every(([field]) => !hidden[field].has(run[field])));
const visibleGroups = () => [...grouped(visibleRuns(), keyOf)].map(([key, same]) => ({ ...same[0], key, runs: same,
  label: words(same) }));

function words(same) {
  const { label, kind, method, alpha, beta } = same[0];
  if (label && same.every(run => run.label === label)) return label;
  const damage = [...(known(alpha) ? [`α = ${alpha}`] : []), ...(known(beta) ? [`β = ${beta}`] : [])].join(', ');
  return [plain(kind), damage, known(method) ? `of ${method}` : ''].filter(Boolean).join(' ');
}

const escaped = text => String(text).replace(/[&<>"']/g, c => `&#${c.charCodeAt(0)};`);
const percent = value => known(value) ? (100 * value).toFixed(1) : '–';
const number = value => known(value) ? value.toLocaleString('en') : '–';
const scientific = value => known(value) ? value.toExponential(2) : '–';
const plain = value => known(value) && value !== '' ? String(value) : '–';
const answer = value => known(value) ? value ? 'yes' : 'no' : '–';
const plural = (count, noun) => `${count} ${noun}${count === 1 ? '' : 's'}`;
const band = ({ mean, half }) => known(mean) ? `${percent(mean)} %${half === null ? '' : ` ± ${percent(half)}`}` : '–';

/* What the pointer shows of a group, as Plotly's HTML: retain always beside forget. */
function hover(group) {
  const of = value => estimate(group.runs, value), count = test => group.runs.filter(test).length;
  const attacked = measure => band(of(run => at(run, measure)));
  const diverged = count(run => run.diverged), late = count(run => run.recovered === false);
  return [
    `<b>${escaped(group.label)}</b>`,
    `${plural(of(() => 0).n, 'seed')}, ${number(group.parameters)} parameters, ` +
      `${number(of(run => run.steps).mean)} steps`,
    `before the attack: retain ${band(of(run => run.retain))}, forget ${band(of(run => run.forget))}`,
    `after ${plain(view.step)} attack steps: held-out ${attacked('forget_heldout')}, ` +
      `shown ${attacked('forget_shown')}, retain ${attacked('retain_at_worst')}`,
    `compute: ${view.unit === 'share' ? band(of(cost)) : scientific(of(cost).mean)}`,
    ...(diverged ? [`${diverged} diverged`] : []), ...(late ? [`${late} did not recover`] : []),
  ].join('<br>');
}

// ---------------------------------------------------------------------------------------------- looks

const methods = unique(runs.map(run => run.method)), betas = unique(runs.map(run => run.beta)).filter(known);
const spare = COLOURS.filter(colour => !Object.values(METHODS).includes(colour));
const unlisted = methods.filter(method => known(method) && !(method in METHODS));
const unnamed = method => spare[unlisted.indexOf(method) % spare.length];
const colourOf = method => known(method) ? METHODS[method] ?? unnamed(method) : '#4b5462';
const markOf = kind => KINDS[kind] ?? OTHER;
const dashOf = beta => Math.max(betas.indexOf(beta), 0) % DASHES.length;
const hollow = group => group.runs.some(run => run.diverged || run.recovered === false);

/* Draw traces; x and y are Plotly axes, but for the title, which is text. */
function plot(place, traces, x, y, more = {}) {
  const layout = { margin: { l: 74, r: 22, t: 28, b: 50 }, ...more };
  for (const [name, axis] of [['xaxis', x], ['yaxis', y]]) layout[name] = { ...axis, title: { text: axis.title } };
  if (!traces.length) {
    const centre = { xref: 'paper', yref: 'paper', x: 0.5, y: 0.5, showarrow: false };
    layout.annotations = [{ ...centre, text: 'Nothing to draw with these filters.' }];
  }
  drawFigure(place, traces, layout, ['toImage', 'zoom2d', 'pan2d', 'resetScale2d']);
}

/* The axis of a share from none to the largest drawn, which all may be none. */
function accuracyAxis(title, values) {
  const largest = Math.max(...values.filter(known), 0.05);
  return { title, range: [-0.03 * largest, Math.max(1.06 * largest, Math.min(1.02, largest))], tickformat: '.1~%' };
}

/* Error bars that end at `low` and `high` at the latest; none where no estimate has an interval. */
function errors(estimates, colour, low = 0, high = 1) {
  if (!estimates.some(estimate => known(estimate?.half))) return undefined;
  return { type: 'data', symmetric: false, color: colour + '90', thickness: 1.1, width: 3,
    array: estimates.map(({ mean, half }) => Math.min(mean + half, high) - mean),
    arrayminus: estimates.map(({ mean, half }) => mean - Math.max(mean - half, low)) };
}

/* One trace for each method, β and size of UNDO, by alpha; one for each method and other kind. */
function scatter(points) {
  const family = ({ group: { kind, method, beta, parameters } }) =>
    JSON.stringify(kind === 'undo' ? [kind, method, beta, parameters] : [kind, method]);
  return [...grouped(points, family).values()].map(family => {
    family.sort((a, b) => compare(a.group.alpha, b.group.alpha));
    const { kind, method } = family[0].group, colour = colourOf(method);
    return {
      type: 'scatter', mode: 'markers', x: family.map(p => p.x), y: family.map(p => p.y), cliponaxis: false,
      customdata: family.map(p => p.group.key), hovertext: family.map(p => hover(p.group)), hoverinfo: 'text',
      error_x: errors(family.map(p => p.across), colour), error_y: errors(family.map(p => p.up), colour),
      marker: { size: kind === 'undo' ? 9 : 12, color: colour, opacity: family.map(p => p.faded ? 0.3 : 1),
        symbol: family.map(p => markOf(kind)[0] + (hollow(p.group) ? '-open' : '')) },
    };
  });
}

/* Join UNDO's marks through alpha, which is written at the ends while there is room for it. */
function threaded(trace, _, traces) {
  const [kind, method, , beta] = JSON.parse(trace.customdata[0]), room = traces.length <= 16 ? '+text' : '';
  if (kind !== 'undo') return trace;
  const alphas = trace.customdata.map(key => `α ${plain(JSON.parse(key)[2])}`);
  return { ...trace, mode: `lines+markers${room}`, textposition: 'top right',
    text: alphas.map((word, i) => i && i < alphas.length - 1 ? '' : word), textfont: { size: 11, color: colourOf(method) },
    line: { color: colourOf(method), width: 1.5, dash: DASHES[dashOf(beta)][0] } };
}

// ---------------------------------------------------------------------------------------------- figures

function costAxis(costs) {
  const range = view.log ? {} : costs.some(cost => cost > 0) ? { rangemode: 'tozero' } : { range: [0, 1] };
  const share = view.unit === 'share', words = share ? 'as a share of retraining the oracle' : 'FLOPs';
  return { title: `${view.accounting} compute, ${words}`, type: view.log ? 'log' : 'linear',
    ...(share ? { tickformat: '.3~p' } : { exponentformat: 'power' }), ...range };
}

function drawCompute(groups) {
  const points = groups.map(group => {
    const up = estimate(group.runs, run => at(run, 'forget_heldout')), fit = comparable(group);
    return { group, up, fit, x: estimate(group.runs, cost).mean, y: up.mean, faded: fit === 'weak' };
  });
  const drawn = points.filter(({ x, y }) => known(x) && known(y) && !(view.log && x <= 0));
  const which = word => drawn.filter(({ fit }) => fit === word), front = pareto(which('yes'));
  const line = { type: 'scatter', mode: 'lines', x: front.map(p => p.x), y: front.map(p => p.y), name: 'Pareto front',
    line: { shape: 'hv', color: '#15181d', width: 6 }, opacity: 0.2, hoverinfo: 'skip' };
  const ring = (x, y, color) => ({
    type: 'scatter', mode: 'markers', x: [x], y: [y], hoverinfo: 'skip', cliponaxis: false,
    marker: { symbol: 'circle-open', size: 21, color, line: { width: 2.5 } } });
  const rings = chosen().flatMap(({ item, colour }) =>
    drawn.filter(({ group }) => group.key === item).map(({ x, y }) => ring(x, y, colour)));
  const retraining = { type: 'line', x0: 1, x1: 1, yref: 'paper', y0: 0, y1: 1, layer: 'below',
    line: { color: '#5a6372', width: 1.2, dash: 'dot' } };
  const heights = drawn.map(({ y, up }) => Math.min(y + (up.half ?? 0), 1));
  plot('compute', drawn.length ? [line, ...rings, ...scatter(drawn).map(threaded)] : [], costAxis(drawn.map(p => p.x)),
    accuracyAxis(`held-out accuracy after ${plain(view.step)} attack steps`, heights),
    { shapes: view.unit === 'share' ? [retraining] : [] });
  element('compute-note').textContent = `${plural(drawn.length, 'setting')} drawn, ${front.length} on the front. ` +
    `Kept off the front: ${which('weak').length} with retain more than ${percent(view.tolerance)} points below the ` +
    `mean oracle of their size, drawn pale; ${which('unknown').length} without such an oracle or a retain accuracy. ` +
    `Not drawn, for want of an attack or a compute count: ${points.length - drawn.length}.`;
}

function drawAccuracies(groups) {
  const points = groups.map(group => {
    const across = estimate(group.runs, run => run.forget), up = estimate(group.runs, run => run.retain);
    return { group, across, up, x: across.mean, y: up.mean };
  });
  const drawn = points.filter(({ x, y }) => known(x) && known(y)), near = drawn.filter(p => p.group.kind !== 'reference');
  const right = Math.max(...near.map(p => Math.min(p.x + (p.across.half ?? 0), 1))), beyond = drawn.filter(p => p.x > right);
  const axis = beyond.length && near.length ? { range: [-0.05 * right - 0.002, 1.05 * right + 0.002] } : {};
  plot('accuracies', scatter(drawn), { ...accuracyAxis('forget accuracy', drawn.map(p => p.x)), ...axis },
    drawn.some(p => p.y > 0) ? { title: 'retain accuracy', tickformat: '.1~%' } : accuracyAxis('retain accuracy', []));
  element('accuracies-note').textContent = 'Up and to the left is better. Click a mark to select it. ' + (near.length ? beyond : [])
    .map(p => `${p.group.label}, at retain ${percent(p.y)} % and forget ${percent(p.x)} %, is beyond the right edge.`).join(' ');
}

function drawGrid(groups, place, value, colorscale, zmin) {
  const shown = groups.filter(g => g.kind === 'undo' && g.method === view.method && g.parameters === view.size);
  // A cell is all its runs, whatever else they differ in.
  const whole = [...grouped(shown.flatMap(g => g.runs), run => JSON.stringify([run.alpha, run.beta]))]
    .map(([key, same]) => ({ ...same[0], key, runs: same, label: words(same) }));
  const cells = whole.map(group => ({ group, z: estimate(group.runs, value).mean })).filter(({ z }) => known(z));
  const alphas = unique(cells.map(cell => cell.group.alpha)), betas = unique(cells.map(cell => cell.group.beta));
  const table = content => betas.map(beta => alphas.map(alpha => {
    const cell = cells.find(({ group }) => group.alpha === alpha && group.beta === beta);
    return cell ? content(cell) : null;
  }));
  const map = { type: 'heatmap', x: alphas.map(plain), y: betas.map(plain), z: table(cell => cell.z),
    text: table(cell => percent(cell.z)), texttemplate: '%{text}', hovertext: table(cell => hover(cell.group)),
    hoverinfo: 'text', colorscale, zmin, zmax: 1, xgap: 2, ygap: 2,
    colorbar: { tickformat: '.0%', thickness: 12, outlinewidth: 0 } };
  element(`${place}-note`).textContent = `Mean over seeds, in %${place === 'grid-retain' ? ', before the attack' :
    `, after ${plain(view.step)} attack steps`}.`;
  plot(place, cells.length ? [map] : [], { title: 'α', type: 'category' }, { title: 'β', type: 'category' });
}

/* What is selected, with its runs among those shown and its look in the curves. */
function chosen() {
  const visible = visibleRuns();
  return [...selected].map((item, i) => {
    const belongs = run => run.id === item || keyOf(run) === item, single = runs.some(run => run.id === item);
    return { item, label: words(runs.filter(belongs)) + (single ? ` (${item})` : ''), runs: visible.filter(belongs),
      colour: COLOURS[i % COLOURS.length], dash: Math.floor(i / COLOURS.length) % DASHES.length };
  });
}

function curve({ runs: same, colour, dash, label }, measure) {
  const of = (measure, step) => estimate(same, run => at(run, measure, step));
  const points = unique(same.flatMap(run => run.attack?.steps ?? [])).map(step => ({ step, up: of(measure, step) }))
    .filter(({ up }) => known(up.mean));
  if (!points.length) return [];
  const banded = points.filter(({ up }) => up.half !== null), limit = value => Math.min(Math.max(value, 0), 1);
  const shade = ribbon(banded.map(p => p.step), banded.map(({ up }) => limit(up.mean - up.half)),
    banded.map(({ up }) => limit(up.mean + up.half)), colour);
  const line = { type: 'scatter', mode: points.length > 12 ? 'lines' : 'lines+markers', name: escaped(label),
    x: points.map(p => p.step), y: points.map(p => p.up.mean),
    line: { color: colour, dash: DASHES[dash][0], width: 2.2 }, hoverinfo: 'text',
    hovertext: points.map(({ step, up }) => `<b>${escaped(label)}</b><br>step ${step}, ${plural(up.n, 'seed')}: ` +
      `${band(up)}<br>retain ${band(of('retain_at_worst', step))}`) };
  return banded.length > 1 ? [shade, line] : [line];
}

function ribbon(x, low, high, colour) {
  return { type: 'scatter', mode: 'lines', x: [...x, ...[...x].reverse()], y: [...high, ...[...low].reverse()],
    fill: 'toself', fillcolor: colour + '1c', line: { width: 0 }, hoverinfo: 'skip' };
}

/* What each line is, at its end; one that would cover the one below it is left out. */
function endLabels(lines, measure) {
  const ends = lines.flatMap(({ runs: same, colour, label }) => {
    const step = Math.max(...same.flatMap(run => run.attack?.steps ?? []));
    const { mean: y } = estimate(same, run => at(run, measure, step)), { kind, alpha } = same[0] ?? {};
    const text = kind === 'undo' && known(alpha) ? `α ${alpha}` : label.replace(/ \(.*?\)|,? of .*$/g, '').slice(0, 20);
    return known(y) ? [{ x: step, y, text: escaped(text), font: { color: colour, size: 11.5 } }] : [];
  }).sort((a, b) => a.y - b.y);
  const kept = ends.filter((end, i) => !i || end.y - ends[i - 1].y > 0.05 || end.y === ends.at(-1).y);
  return kept.map(end => ({ ...end, xanchor: 'left', xshift: 4, showarrow: false }));
}

function drawCurves() {
  const lines = chosen(), panels = { heldout: ['forget_heldout', 'held-out accuracy'],
    relearned: ['forget_shown', 'shown accuracy'], kept: ['retain_at_worst', 'retain accuracy'] };
  const steps = lines.flatMap(({ runs: same }) => same.flatMap(run => run.attack?.steps ?? [])), last = Math.max(...steps);
  const span = steps.length ? { range: [-0.02 * last, Math.max(last, 1)] } : {};
  for (const [place, [measure, title]] of Object.entries(panels)) {
    const traces = lines.flatMap(line => curve(line, measure));
    plot(place, traces, { title: 'attack step', ...span }, { title, range: [-0.02, 1.02], tickformat: '.1~%' },
      { annotations: endLabels(lines, measure), margin: { l: 74, r: 110, t: 28, b: 50 } });
  }
  const buttons = lines.map(({ item, colour, dash, label, runs: same }) =>
    `<button type="button" data-item="${escaped(item)}" aria-pressed="${same.length > 0}" title="take away">` +
    `${stroke(dash, colour)}${escaped(label)}&nbsp;×</button>`);
  element('selection').innerHTML = buttons.join('') || '<span class="small">Nothing is selected.</span>';
}

const stroke = (dash, colour) => `<svg class="swatch" width="30" height="10" aria-hidden="true" ` +
  `style="--c:${themedColour(colour)}"><line x1="0" y1="5" x2="30" y2="5" stroke-width="2.5" ` +
  `stroke-dasharray="${DASHES[dash][1]}"/></svg>`;

function drawSteps(groups) {
  const undo = groups.filter(group => group.kind === 'undo' && known(group.alpha));
  const points = undo.map(group => {
    const up = estimate(group.runs.filter(run => run.recovered && !run.diverged), run => run.steps);
    return { group, up, x: group.alpha, y: up.mean };
  });
  const marks = scatter(points.filter(({ y }) => known(y))).map(trace => {
    const up = trace.customdata.map(key => points.find(({ group }) => group.key === key).up);
    return { ...trace, error_y: errors(up, trace.marker.color, 0, Infinity) };
  });
  const late = undo.flatMap(group => group.runs.filter(run => run.recovered === false && known(run.steps)));
  const arrows = { type: 'scatter', mode: 'markers', x: late.map(run => run.alpha), y: late.map(run => run.steps),
    marker: { symbol: 'arrow-up-open', size: 12, color: late.map(run => colourOf(run.method)) }, hoverinfo: 'text',
    hovertext: late.map(run => `${escaped(words([run]))}, seed ${plain(run.seed)}<br>not recovered after ` +
      `${number(run.steps)} steps; retain ${percent(run.retain)} %, forget ${percent(run.forget)} %`) };
  const lines = (fits.steps_against_alpha ?? []).filter(entry => entry.fit && visibleFit(entry)).flatMap(fitLines);
  plot('steps', [...lines, ...marks, ...(late.length ? [arrows] : [])], { title: 'α' },
    { title: 'steps to recover', rangemode: 'tozero' });
}

function visibleFit(entry) {
  const shown = ([field]) => !(field in entry) || !hidden[field].has(entry[field]);
  return FILTERS.every(shown) && !hidden.kind.has(entry.kind ?? 'undo');
}

function fitLines({ method, fit: { curve: { alpha, steps, low, high }, exponential, better } }) {
  const color = colourOf(method), line = { type: 'scatter', mode: 'lines', hoverinfo: 'skip', x: alpha };
  const bent = { ...line, y: exponential?.curve.steps, line: { color, width: 1.4, dash: 'dot' } };
  return [ribbon(alpha, low, high, color), { ...line, y: steps, line: { color, width: 1.6 } },
    ...(better === 'exponential' ? [bent] : [])];
}

function fitWords(entry) {
  const own = Object.entries(entry.settings ?? {}).map(([name, value]) => `${name} = ${value}`);
  return [words([entry]), ...own].join(', ');
}

function drawSizes() {
  if (!element('sizes')) return;  // nothing was fitted
  const drawn = (fits.compute_against_size ?? []).filter(entry => entry.fit && visibleFit(entry));
  const traces = drawn.flatMap(({ fit: { points, predictions: far }, ...entry }, i) => {
    const color = COLOURS[i % COLOURS.length], name = escaped(fitWords(entry));
    const measured = { type: 'scatter', mode: 'markers', name, x: points.parameters, y: points.flops,
      hoverinfo: 'name+x+y', marker: { color, size: 9 } };
    const predicted = { ...measured, mode: 'lines+markers', x: far.map(p => p.parameters), y: far.map(p => p.flops),
      marker: { color, size: 9, symbol: 'circle-open' }, line: { color, dash: 'dot', width: 1.2 },
      error_y: { type: 'data', symmetric: false, color, array: far.map(p => p.high - p.flops),
        arrayminus: far.map(p => p.flops - p.low) } };
    return [measured, predicted];
  });
  const axis = { type: 'log', exponentformat: 'power' };
  plot('sizes', traces, { title: 'parameters', ...axis }, { title: 'FLOPs', ...axis });
}

// ---------------------------------------------------------------------------------------------- the table of runs

// name, value and how the page shows it; what has no third part is in the CSV only
const COLUMNS = [
  ['id', run => run.id, plain], ['label', run => run.label],
  ...['kind', 'method', 'alpha', 'beta', 'seed'].map(name => [name, run => run[name], plain]),
  ['parameters', run => run.parameters, number],
  ...['retain', 'forget'].map(name => [name, run => run[name], percent]),
  ['attack_step', run => run.attack ? view.step : null],
  ...['forget_heldout', 'forget_shown', 'retain_at_worst'].map(name => [name, run => at(run, name), percent]),
  ...['steps', 'max_steps'].map(name => [name, run => run[name], number]),
  ...['recovered', 'diverged'].map(name => [name, run => run[name], answer]),
  ...['members', 'diverged'].map(name => [`attack_${name}`, run => run.attack?.[name] ?? null]),
  ...ACCOUNTINGS.map(how => [`vs_retraining_${how}`, run => run.vs_retraining?.[how] ?? null, percent]),
  ...ACCOUNTINGS.flatMap(how => PARTS.map(part => [`flops_${how}_${part}`, run => flops(run, how, [part])])),
];
const SHOWN = COLUMNS.filter(([, , show]) => show);

function sortedRuns() {
  const [, value] = SHOWN[view.column], missing = run => !known(value(run));
  const order = (a, b) => (view.down ? -1 : 1) * compare(value(a), value(b));
  return visibleRuns().sort((a, b) => missing(a) - missing(b) || order(a, b));  // the missing last, either way
}

function drawTable() {
  const sort = i => i !== view.column ? 'none' : view.down ? 'descending' : 'ascending';
  const head = SHOWN.map(([name], i) => `<th aria-sort="${sort(i)}"><button type="button" data-column="${i}">` +
    `${name.replaceAll('_', ' ')}</button></th>`);
  const row = run => {
    const [id, ...cells] = SHOWN.map(([, value, show]) => escaped(show(value(run))));
    return `<tr data-id="${id}"><th><label class="row-label"><input type="checkbox">${id}</label></th>` +
      `${cells.map(cell => `<td>${cell}</td>`).join('')}</tr>`;
  };
  element('runs').tHead.innerHTML = `<tr>${head.join('')}</tr>`;
  element('runs').tBodies[0].innerHTML = sortedRuns().map(row).join('');
  markRows();
}

function markRows() {
  for (const row of element('runs').tBodies[0].rows) {
    row.classList.toggle('selected', row.querySelector('input').checked = selected.has(row.dataset.id));
  }
}

/* The rows shown as RFC 4180 has it; numbers in full precision, nothing for what is missing. */
function csvText() {
  const quoted = text => /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  const line = values => values.map(value => known(value) ? quoted(String(value)) : '').join(',') + '\r\n';
  return [COLUMNS.map(([name]) => name), ...sortedRuns().map(run => COLUMNS.map(([, value]) => value(run)))]
    .map(line).join('');
}

function download() {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob(['\ufeff', csvText()], { type: 'text/csv;charset=utf-8' }));
  link.download = 'sweep.csv';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// ---------------------------------------------------------------------------------------------- controls

function makeFilters() {
  element('filters').innerHTML = FILTERS.map(([field, name]) => {
    const values = unique(runs.map(run => run[field])), wide = ['kind', 'method', 'beta'].includes(field) ? 'wide' : '';
    const boxes = values.map((value, i) => `<label><input type="checkbox" data-field="${field}" data-value="${i}">` +
      `${swatch(field, value)}${escaped(known(value) ? value : 'none')}</label>`);
    const all = `<button type="button" data-field="${field}">all / none</button>`;
    return values.length < 2 ? '' :
      `<fieldset class="${wide}"><legend>${name} ${all}</legend><div>${boxes.join('')}</div></fieldset>`;
  }).join('');
}

/* The box's field and the value it stands for. */
const boxed = ({ dataset: { field, value } }) => [field, unique(runs.map(run => run[field]))[value]];

function filter() {
  for (const box of element('filters').querySelectorAll('input')) {
    const [field, value] = boxed(box);
    box.checked = !hidden[field].has(value);
  }
  draw();
}

function swatch(field, value) {
  if (field === 'kind') return `<span class="mark">${markOf(value)[1]}</span>`;
  if (field === 'method') return `<span class="mark" style="color:${themedColour(colourOf(value))}">⬤</span>`;
  return field === 'beta' && known(value) ? stroke(dashOf(value), '#4b5462') : '';
}

/* The runs of UNDO's method, β and size that have most points. */
function largestFamily() {
  const key = run => JSON.stringify([run.method, run.beta, run.parameters]);
  const families = [...grouped(runs.filter(run => run.kind === 'undo'), key).values()];
  return families.sort((a, b) => b.length - a.length)[0] ?? [];
}

function defaultSelection(family) {
  const undo = family.filter(run => run.attack), { method, parameters } = undo[0] ?? runs[0] ?? {};
  const alphas = unique(undo.map(run => run.alpha)), middle = alphas[Math.floor(alphas.length / 2)];
  const control = kind => runs.find(run => run.kind === kind && run.attack && run.parameters === parameters &&
    [method, null].includes(run.method));
  const chosen = [alphas[0], middle, alphas.at(-1)].map(alpha => undo.find(run => run.alpha === alpha));
  return [control('suppressed'), ...chosen, control('random student'), control('oracle')].filter(Boolean).map(keyOf);
}

function toggle(item) {
  if (!selected.delete(item)) selected.add(item);
  drawCompute(visibleGroups());
  drawCurves();
  markRows();
}

function draw() {
  const groups = visibleGroups();
  element('shown').textContent = `${number(visibleRuns().length)} of ${number(runs.length)} runs shown`;
  drawCompute(groups);
  drawCurves();
  const orange = [[0, '#fdf6ef'], [0.5, '#f0a35e'], [1, '#a63f00']];
  drawGrid(groups, 'grid-heldout', run => at(run, 'forget_heldout'), orange, 0);
  const lowest = Math.min(...runs.filter(run => run.kind === 'undo').map(run => run.retain ?? 1));
  const blue = [[0, '#f3f7fc'], [0.5, '#7fa8dc'], [1, '#26468f']];
  drawGrid(groups, 'grid-retain', run => run.retain, blue, Math.floor(10 * lowest) / 10);
  drawAccuracies(groups);
  drawSteps(groups);
  drawSizes();
  drawTable();
}

/* Give a menu its choices and let it set `view`; one that offers no choice is not shown. */
function menu(name, values) {
  element(name).replaceChildren(...values.map(v => new Option(plain(v), JSON.stringify(v), false, v === view[name])));
  element(`${name}-label`).hidden = values.length < 2;
  element(name).onchange = event => { view[name] = JSON.parse(event.target.value); draw(); };
}

function start() {
  const grids = runs.filter(run => run.attack?.steps?.length).map(run => run.attack.steps);
  const steps = unique(grids.flat()), shared = steps.filter(step => grids.every(grid => grid.includes(step)));
  const undo = runs.filter(run => run.kind === 'undo'), family = largestFamily();
  view.step = shared.at(-1) ?? steps.at(-1) ?? null;
  view.method = family[0]?.method;
  view.size = family[0]?.parameters;
  menu('step', steps);
  menu('method', unique(undo.map(run => run.method)));
  menu('size', unique(undo.map(run => run.parameters)));
  for (const name of ['unit', 'accounting']) {
    element(name).onchange = event => { view[name] = event.target.value; draw(); };
  }
  element('log').onchange = event => {
    view.log = event.target.checked;
    drawCompute(visibleGroups());
  };
  element('tolerance').onchange = event => {
    if (!Number.isFinite(event.target.valueAsNumber)) return;  // what is not a number changes nothing
    view.tolerance = event.target.valueAsNumber;
    drawCompute(visibleGroups());
  };
  element('filters').onchange = ({ target }) => {
    const [field, value] = boxed(target);
    target.checked ? hidden[field].delete(value) : hidden[field].add(value);
    filter();
  };
  element('filters').onclick = ({ target: { tagName, dataset: { field } } }) => {
    if (tagName !== 'BUTTON') return;
    hidden[field] = new Set(hidden[field].size ? [] : runs.map(run => run[field]));
    filter();
  };
  element('reset').onclick = () => { Object.values(hidden).forEach(values => values.clear()); filter(); };
  element('download').onclick = download;
  element('selection').onclick = ({ target }) => {
    const button = target.closest('button');
    if (button) toggle(button.dataset.item);
  };
  element('runs').tHead.onclick = ({ target: { dataset: { column } } }) => {
    if (column === undefined) return;
    view.down = view.column === Number(column) && !view.down;
    view.column = Number(column);
    drawTable();
  };
  element('runs').tBodies[0].onclick = event => {
    const row = event.target.closest('tr');
    if (!row || event.target.closest('label') && event.target.tagName !== 'INPUT') return;  // the label clicks its box
    toggle(row.dataset.id);
  };
  defaultSelection(family).forEach(item => selected.add(item));
  makeFilters();
  filter();
  for (const place of ['compute', 'accuracies']) {
    element(place).on('plotly_click', ({ points }) => { if (points[0].customdata) toggle(points[0].customdata); });
  }
}

let started = false;
function drawRankings() {  // laid out when the page was written
  for (const [place, { data, layout }] of Object.entries(structuredClone(figures))) drawFigure(place, data, layout);
}

const drawn = whenReady(() => { drawRankings(); if (started) draw(); else start(); started = true; });
