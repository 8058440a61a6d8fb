'use strict';
// Everything drawn is a function of the sweep's runs and fits, and of `view`, `hidden` and `selected`: the reader's choices.

const { runs: given, fits, layout: base, quantiles } = JSON.parse(document.getElementById('drawings').textContent);
const BLANK = { id: null, label: null, kind: null, method: null, alpha: null, beta: null, seed: null, parameters: null,
  retain: null, forget: null, steps: null, max_steps: null, recovered: null, diverged: null };
const runs = given.map(run => ({ ...BLANK, ...run }));

const FILTERS = [['kind', 'kind'], ['method', 'method'], ['alpha', 'α'], ['beta', 'β'], ['seed', 'seed'],
  ['parameters', 'parameters']];
const ACCOUNTINGS = ['whole', 'own', 'amortised'], PARTS = ['student', 'teacher', 'evaluation', 'attack'];
// Vermilion, magenta, blues and greens that stay apart under common colour blindness.
const COLOURS = ['#2e52b4', '#d55e00', '#b0287a', '#138a72', '#7a6a1f', '#56a5dd', '#15181d', '#8a4fc4'];
const METHODS = { maxent: COLOURS[0], graddiff: COLOURS[1], rmu: COLOURS[2] };
const KINDS = { undo: ['circle', '●'], reference: ['cross', '✚'], oracle: ['diamond', '◆'], suppressed: ['square', '■'],
  'random student': ['triangle-up', '▲'], 'alpha 0': ['triangle-down', '▼'], 'noise only': ['x', '✖'],
  'equal compute': ['triangle-right', '▶'], filtered: ['triangle-left', '◀'] };
const OTHER = ['star', '★'], DASHES = ['solid', 'dash', 'dot', 'dashdot', 'longdash', 'longdashdot'];
const STROKES = ['none', '7 4', '2 3', '7 3 2 3', '11 4', '11 3 2 3'];

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
  return typeof a === 'string' || typeof b === 'string' ? String(a).localeCompare(b, undefined, { numeric: true }) : a - b;
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
  const oracle = mean(runs.filter(run => run.kind === 'oracle' && run.parameters === group.parameters).map(r => r.retain));
  const retain = estimate(group.runs, run => run.retain).mean;
  if (oracle === null || retain === null) return 'unknown';
  return oracle - retain <= view.tolerance + 1e-9 ? 'yes' : 'weak';
}

// ---------------------------------------------------------------------------------------------- groups and words

const keyOf = run => JSON.stringify([run.kind, run.method, run.alpha, run.beta, run.parameters]);
const visibleRuns = () => runs.filter(run => FILTERS.every(([field]) => !hidden[field].has(run[field])));
const visibleGroups = () => [...grouped(visibleRuns(), keyOf)].map(([key, same]) => ({ ...same[0], key, runs: same,
  label: words(same) }));

function words(same) {
  const { label, kind, method, alpha, beta } = same[0];
  if (label && same.every(run => run.label === label)) return label;
  return kind + (known(alpha) ? ` α = ${alpha}` : '') + (known(beta) ? `, β = ${beta}` : '') + (method ? ` of ${method}` : '');
}

const escaped = text => String(text).replace(/[&<>"']/g, c => `&#${c.charCodeAt(0)};`);
const percent = value => known(value) ? `${(100 * value).toFixed(1)}` : '–';
const number = value => known(value) ? value.toLocaleString('en') : '–';
const short = value => known(value) ? Number(value.toPrecision(3)).toLocaleString('en') : '–';
const scientific = value => known(value) ? value.toExponential(2) : '–';
const plain = value => known(value) && value !== '' ? String(value) : '–';
const answer = value => known(value) ? value ? 'yes' : 'no' : '–';
const plural = (count, noun) => `${count} ${noun}${count === 1 ? '' : 's'}`;

function band({ mean, half }) {
  return percent(mean) + (known(mean) ? ' %' : '') + (half === null ? '' : ` ± ${percent(half)}`);
}

function hover(group) {
  const of = value => estimate(group.runs, value), share = of(cost);
  const failed = group.runs.filter(run => run.diverged).length, late = group.runs.filter(run => run.recovered === false).length;
  return `<b>${escaped(group.label)}</b> (${plural(of(run => run.retain).n, 'seed')}, ${number(group.parameters)} parameters)<br>` +
    `held-out ${band(of(r => at(r, 'forget_heldout')))}, shown ${band(of(r => at(r, 'forget_shown')))}, ` +
    `retain ${band(of(r => at(r, 'retain_at_worst')))} after ${plain(view.step)} attack steps<br>` +
    `before: retain ${band(of(r => r.retain))}, forget ${band(of(r => r.forget))}<br>` +
    `compute ${view.unit === 'share' ? band(share) : scientific(share.mean)}, ${number(of(r => r.steps).mean)} steps` +
    (failed ? `<br>${failed} diverged` : '') + (late ? `<br>${late} did not recover` : '');
}

// ---------------------------------------------------------------------------------------------- looks

const methods = unique(runs.map(run => run.method)), betas = unique(runs.map(run => run.beta)).filter(known);
const spare = COLOURS.filter(colour => !Object.values(METHODS).includes(colour));
const unlisted = methods.filter(method => known(method) && !(method in METHODS));
const colourOf = method => METHODS[method] ?? (known(method) ? spare[unlisted.indexOf(method) % spare.length] : '#4b5462');
const markOf = kind => Object.hasOwn(KINDS, kind) ? KINDS[kind] : OTHER;
const dashOf = beta => Math.max(betas.indexOf(beta), 0) % DASHES.length;
const hollow = group => group.runs.some(run => run.diverged || run.recovered === false);
const several = unique(runs.map(run => run.parameters)).length > 1;

function plot(place, traces, x, y, more = {}) {
  const layout = structuredClone(base), axes = { xaxis: x, yaxis: y };
  for (const [name, { title, ...axis }] of Object.entries(axes)) {
    Object.assign(layout[name], name === 'yaxis' ? { range: undefined, tickformat: undefined } : {}, axis);
    layout[name].title = { text: title, font: { size: 13 } };
  }
  layout.margin.l = 68;
  if (!traces.length) {
    const centre = { xref: 'paper', yref: 'paper', x: 0.5, y: 0.5, showarrow: false };
    layout.annotations = [{ ...centre, text: 'Nothing to draw with these filters.', font: { color: '#5a6372' } }];
  }
  const buttons = [['toImage', 'zoom2d', 'pan2d', 'resetScale2d']];
  Plotly.react(place, traces, { ...layout, ...more }, { responsive: true, displaylogo: false, modeBarButtons: buttons });
}

function errors(estimates, [low, high], colour) {
  if (!estimates.some(({ half }) => half)) return undefined;
  const reach = { type: 'data', symmetric: false, color: colour, thickness: 1.2, width: 3 };
  return { ...reach, array: estimates.map(({ mean, half }) => Math.min(mean + half, high) - mean),
    arrayminus: estimates.map(({ mean, half }) => mean - Math.max(mean - half, low)) };
}

/* One trace for each method and β of UNDO, a thread through its alphas; one for each method and other kind. */
function scatter(points, threads, more = {}) {
  const family = ({ group: { kind, method, beta, parameters } }) =>
    JSON.stringify(kind === 'undo' ? [kind, method, beta, parameters] : [kind, method]);
  return [...grouped(points, family).values()].map(family => {
    family.sort((a, b) => compare(a.group.alpha, b.group.alpha));
    const { kind, method, beta } = family[0].group, colour = colourOf(method), undo = kind === 'undo' && threads;
    const end = i => undo && (i === 0 || i === family.length - 1) ? `α ${plain(family[i].group.alpha)}` : '';
    return { type: 'scatter', mode: undo ? 'lines+markers+text' : 'markers', x: family.map(p => p.x), y: family.map(p => p.y),
      text: family.map((_, i) => end(i)), textposition: 'middle right', textfont: { size: 11, color: colour },
      customdata: family.map(p => p.group.key), hovertext: family.map(p => hover(p.group)), hoverinfo: 'text', cliponaxis: false,
      line: { color: colour, width: 1.5, dash: DASHES[dashOf(beta)] },
      error_x: errors(family.map(p => p.across ?? {}), [0, 1], colour), error_y: errors(family.map(p => p.up), [0, 1], colour),
      marker: { size: kind === 'undo' ? 9 : 12, color: colour, opacity: family.map(p => p.faded ? 0.3 : 1),
        symbol: family.map(p => markOf(kind)[0] + (hollow(p.group) ? '-open' : '')) }, ...more };
  });
}

// ---------------------------------------------------------------------------------------------- figures

const ACCURACY = { tickformat: '.0%' };
const costAxis = () => ({ type: view.log ? 'log' : 'linear', title: view.unit === 'share' ?
  `${view.accounting} compute, as a share of retraining the oracle` : `${view.accounting} compute, FLOPs`,
...(view.unit === 'share' ? { tickformat: '.3~p' } : { exponentformat: 'power' }), ...(view.log ? {} : { rangemode: 'tozero' }) });

function tradeoff(groups) {
  const points = groups.map(group => {
    const up = estimate(group.runs, run => at(run, 'forget_heldout')), fit = comparable(group);
    return { group, up, fit, x: estimate(group.runs, cost).mean, y: up.mean, faded: fit === 'weak' };
  });
  const drawn = points.filter(({ x, y }) => known(x) && known(y) && !(view.log && x <= 0));
  return { drawn, missing: points.length - drawn.length, front: pareto(drawn.filter(point => point.fit === 'yes')) };
}

function drawCompute(groups) {
  const { drawn, missing, front } = tradeoff(groups), of = fit => drawn.filter(point => point.fit === fit).length;
  const step = { type: 'scatter', mode: 'lines', x: front.map(p => p.x), y: front.map(p => p.y), name: 'Pareto front',
    line: { shape: 'hv', color: '#15181d', width: 5 }, opacity: 0.22, hoverinfo: 'skip' };
  const rings = chosen().flatMap(({ item, colour }) => drawn.filter(({ group }) => group.key === item)
    .map(({ x, y }) => ({ type: 'scatter', mode: 'markers', x: [x], y: [y], hoverinfo: 'skip', cliponaxis: false,
      marker: { symbol: 'circle-open', size: 21, color: colour, line: { width: 2.5 } } })));
  const shapes = view.unit === 'share' ? [{ type: 'line', x0: 1, x1: 1, yref: 'paper', y0: 0, y1: 1, layer: 'below',
    line: { color: '#5a6372', width: 1.2, dash: 'dot' } }] : [];
  plot('compute', drawn.length ? [step, ...rings, ...scatter(drawn, true)] : [], costAxis(),
    { title: `held-out accuracy after ${plain(view.step)} attack steps`, rangemode: 'tozero', ...ACCURACY }, { shapes });
  const loss = `retain more than ${percent(view.tolerance)} points below the mean oracle of their size, drawn pale`;
  element('compute-note').textContent = `${plural(drawn.length, 'setting')} drawn, ${front.length} on the front. ` +
    `Kept off the front: ${of('weak')} with ${loss}; ${of('unknown')} without such an oracle or a retain accuracy. ` +
    `Not drawn, for want of an attack or a compute count: ${missing}.`;
}

function drawAccuracies(groups) {
  const points = groups.map(group => ({ group, across: estimate(group.runs, r => r.forget), up: estimate(group.runs, r => r.retain) }))
    .map(point => ({ ...point, x: point.across.mean, y: point.up.mean })).filter(({ x, y }) => known(x) && known(y));
  plot('accuracies', scatter(points, false), { title: 'forget accuracy', ...ACCURACY }, { title: 'retain accuracy', ...ACCURACY });
}

function drawGrid(groups, place, value, colours, floor) {
  const shown = groups.filter(g => g.kind === 'undo' && g.method === view.method && g.parameters === view.size);
  const points = shown.map(group => ({ group, up: estimate(group.runs, value) })).filter(({ up }) => known(up.mean));
  const x = unique(points.map(p => p.group.alpha)), y = unique(points.map(p => p.group.beta));
  const table = cell => y.map(beta => x.map(alpha => {
    const point = points.find(p => p.group.alpha === alpha && p.group.beta === beta);
    return point ? cell(point) : null;
  }));
  const z = table(p => p.up.mean), low = floor ? Math.floor(10 * Math.min(1, ...z.flat().filter(known))) / 10 : 0;
  const map = { type: 'heatmap', x: x.map(plain), y: y.map(plain), z, text: table(p => percent(p.up.mean)), texttemplate: '%{text}',
    hovertext: table(p => hover(p.group)), hoverinfo: 'text', colorscale: colours, zmin: low, zmax: 1, xgap: 2, ygap: 2,
    colorbar: { tickformat: '.0%', thickness: 12, outlinewidth: 0 } };
  plot(place, points.length ? [map] : [], { title: 'α', type: 'category' }, { title: 'β', type: 'category' });
}

/* What is selected, with its runs among those shown and its look in the curves. */
function chosen() {
  const visible = visibleRuns();
  return [...selected].map((item, i) => ({ item, colour: COLOURS[i % COLOURS.length],
    dash: DASHES[Math.floor(i / COLOURS.length) % DASHES.length],
    label: words(runs.filter(run => keyOf(run) === item || run.id === item)) + (runs.some(run => run.id === item) ? ` (${item})` : ''),
    runs: visible.filter(run => keyOf(run) === item || run.id === item) }));
}

function curve({ runs: same, colour, dash, label }, measure) {
  const steps = unique(same.flatMap(run => run.attack?.steps ?? []));
  const points = steps.map(step => ({ step, up: estimate(same, run => at(run, measure, step)) })).filter(p => known(p.up.mean));
  if (!points.length) return [];
  const banded = points.filter(({ up }) => up.half !== null), limit = value => Math.min(Math.max(value, 0), 1);
  const there = banded.map(({ step, up }) => [step, limit(up.mean + up.half)]);
  const back = banded.map(({ step, up }) => [step, limit(up.mean - up.half)]).reverse(), outline = [...there, ...back];
  const shade = { type: 'scatter', mode: 'lines', x: outline.map(p => p[0]), y: outline.map(p => p[1]), fill: 'toself',
    fillcolor: colour + '22', line: { width: 0 }, hoverinfo: 'skip' };
  const retain = step => band(estimate(same, run => at(run, 'retain_at_worst', step)));
  const line = { type: 'scatter', mode: steps.length > 12 ? 'lines' : 'lines+markers', x: points.map(p => p.step),
    y: points.map(p => p.up.mean), line: { color: colour, dash, width: 2.2 }, name: escaped(label), hoverinfo: 'text',
    hovertext: points.map(p => `<b>${escaped(label)}</b><br>step ${p.step}: ${band(p.up)}<br>retain ${retain(p.step)}, ` +
      plural(p.up.n, 'seed')) };
  return banded.length > 1 ? [shade, line] : [line];
}

function drawCurves() {
  const lines = chosen(), panels = { heldout: 'forget_heldout', relearned: 'forget_shown', kept: 'retain_at_worst' };
  for (const [place, measure] of Object.entries(panels)) {
    plot(place, lines.flatMap(line => curve(line, measure)), { title: 'attack step' }, { range: [-0.02, 1.02], ...ACCURACY });
  }
  element('selection').innerHTML = lines.map(({ item, colour, dash, label, runs: same }) =>
    `<button type="button" data-item="${escaped(item)}" aria-pressed="${same.length > 0}" title="take away">` +
    `${stroke(DASHES.indexOf(dash), colour)}${escaped(label)}&nbsp;×</button>`).join('') ||
    '<span class="small">Nothing is selected.</span>';
}

const stroke = (dash, colour) => `<svg class="swatch" width="30" height="10" aria-hidden="true"><line x1="0" y1="5" x2="30" ` +
  `y2="5" stroke="${colour}" stroke-width="2.5" stroke-dasharray="${STROKES[dash]}"/></svg>`;

function drawSteps(groups) {
  const undo = groups.filter(group => group.kind === 'undo' && known(group.alpha));
  const points = undo.map(group => ({ group, up: estimate(group.runs.filter(r => r.recovered && !r.diverged), r => r.steps) }))
    .map(point => ({ ...point, x: point.group.alpha, y: point.up.mean })).filter(({ y }) => known(y));
  const marks = scatter(points, true, { mode: 'markers' });
  for (const trace of marks) trace.error_y &&= { ...trace.error_y, symmetric: true, arrayminus: undefined,
    array: trace.customdata.map(key => points.find(p => p.group.key === key).up.half) };
  const late = undo.flatMap(group => group.runs.filter(run => run.recovered === false && known(run.steps)));
  const never = { type: 'scatter', mode: 'markers', x: late.map(r => r.alpha), y: late.map(r => r.steps), hoverinfo: 'text',
    hovertext: late.map(run => `${escaped(plain(run.label))}, seed ${plain(run.seed)}<br>not recovered after ${number(run.steps)} steps`),
    marker: { symbol: 'arrow-up-open', size: 12, color: late.map(run => colourOf(run.method)) } };
  const entries = (fits.steps_against_alpha ?? []).filter(visibleFit), drawn = entries.filter(entry => entry.fit);
  plot('steps', [...drawn.flatMap(fitTraces), ...marks, ...(late.length ? [never] : [])], { title: 'α' },
    { title: 'steps to recover', rangemode: 'tozero' });
  element('steps-note').textContent = 'Solid in the band: the straight line; dotted: the exponential, where it is better. Marks are means over ' +
    'the seeds that recovered, arrows runs that did not.';
  element('steps-table').innerHTML = tableOf(['method', 'β', 'parameters', 'runs', 'slope, steps per unit of α', 'intercept',
    'R²', 'R², log(steps)', 'error of the line', 'of the exponential', 'better', 'left out'], entries.map(({ fit, ...entry }) => [
    plain(entry.method), plain(entry.beta), number(entry.parameters), number(entry.n), ...(fit ? [ends(fit.slope),
      ends(fit.intercept), short(fit.r2), short(fit.exponential?.r2), short(fit.leave_one_out), short(fit.exponential?.leave_one_out),
      plain(fit.better)] : ['–', '–', '–', '–', '–', '–', plain(entry.reason)]), left(entry.left_out)]));
}

function visibleFit(entry) {
  return FILTERS.every(([field]) => !(field in entry) || !hidden[field].has(entry[field])) && !hidden.kind.has(entry.kind ?? 'undo');
}

function fitTraces({ method, fit: { curve, exponential, better } }) {
  const colour = colourOf(method), line = { type: 'scatter', mode: 'lines', hoverinfo: 'skip' };
  const shade = { ...line, x: [...curve.alpha, ...[...curve.alpha].reverse()], y: [...curve.high, ...[...curve.low].reverse()],
    fill: 'toself', fillcolor: colour + '14', line: { width: 0 } };
  const bent = better === 'exponential' && { ...line, x: curve.alpha, y: exponential.curve.steps, line: { color: colour, width: 1.2, dash: 'dot' } };
  return [shade, { ...line, x: curve.alpha, y: curve.steps, line: { color: colour, width: 1.8 } }, ...(bent ? [bent] : [])];
}

function drawScaling() {
  const entries = (fits.compute_against_size ?? []).filter(visibleFit), drawn = entries.filter(entry => entry.fit);
  const named = entry => `${entry.kind}${known(entry.alpha) ? ` α = ${entry.alpha}` : ''}${known(entry.beta) ?
    `, β = ${entry.beta}` : ''}${entry.method ? ` of ${entry.method}` : ''}`;
  const reason = entries.find(entry => entry.reason)?.reason;
  element('scaling-note').innerHTML = drawn.length ? `<span class="warn">${escaped(unique(drawn.map(({ fit }) => fit.warning)).join(' '))}</span>` :
    `No scaling fit: ${escaped(plain(reason ?? 'no setting was run at several sizes'))}.`;
  element('sizes').parentElement.hidden = element('scaling-table').hidden = !drawn.length;
  if (!drawn.length) return;
  plot('sizes', drawn.flatMap(({ fit, ...entry }, i) => {
    const colour = COLOURS[i % COLOURS.length], far = fit.predictions, name = escaped(named(entry));
    const line = { type: 'scatter', name, marker: { color: colour, size: 9 }, line: { color: colour, dash: 'dot', width: 1.2 } };
    return [{ ...line, mode: 'markers', ...{ x: fit.points.parameters, y: fit.points.flops } },
      { ...line, mode: 'lines+markers', marker: { ...line.marker, symbol: 'circle-open' }, x: far.map(p => p.parameters),
        y: far.map(p => p.flops), error_y: { type: 'data', symmetric: false, color: colour,
          array: far.map(p => p.high - p.flops), arrayminus: far.map(p => p.flops - p.low) } }];
  }), { title: 'parameters', type: 'log', exponentformat: 'power' }, { title: 'FLOPs', type: 'log', exponentformat: 'power' });
  const sizes = drawn[0].fit.predictions.map(p => p.parameters);
  element('scaling-table').innerHTML = tableOf(['setting', 'exponent', 'R²', ...sizes.map(size => `${size.toExponential(1)} parameters`),
    'left out'], drawn.map(({ fit, ...entry }) => [named(entry), ends(fit.exponent), short(fit.r2), ...fit.predictions.map(p =>
    `${scientific(p.flops)} [${scientific(p.low)}, ${scientific(p.high)}]`), left(entry.left_out)]));
}

const ends = ({ value, low, high }) => `${short(value)} [${short(low)}, ${short(high)}]`;
const left = reasons => Object.entries(reasons ?? {}).map(([why, count]) => `${count} ${why}`).join(', ') || 'none';
const tableOf = (head, rows) => `<table><thead><tr>${head.map(cell => `<th>${escaped(cell)}</th>`).join('')}</tr></thead><tbody>` +
  rows.map(row => `<tr>${row.map(cell => `<td>${escaped(cell)}</td>`).join('')}</tr>`).join('') + '</tbody></table>';

// ---------------------------------------------------------------------------------------------- the table of runs

// name, value and how the page shows it; what has no third part is in the CSV only
const COLUMNS = [
  ['id', run => run.id, plain], ['label', run => run.label, plain], ['kind', run => run.kind, plain],
  ['method', run => run.method, plain], ['alpha', run => run.alpha, plain], ['beta', run => run.beta, plain],
  ['seed', run => run.seed, plain], ['parameters', run => run.parameters, number], ['retain', run => run.retain, percent],
  ['forget', run => run.forget, percent], ['attack_step', run => run.attack ? view.step : null],
  ['forget_heldout', run => at(run, 'forget_heldout'), percent], ['forget_shown', run => at(run, 'forget_shown'), percent],
  ['retain_at_worst', run => at(run, 'retain_at_worst'), percent], ['steps', run => run.steps, number],
  ['max_steps', run => run.max_steps, number], ['recovered', run => run.recovered, answer], ['diverged', run => run.diverged, answer],
  ['attack_members', run => run.attack?.members ?? null], ['attack_diverged', run => run.attack?.diverged ?? null],
  ...ACCOUNTINGS.map(how => [`vs_retraining_${how}`, run => run.vs_retraining?.[how] ?? null, percent]),
  ...ACCOUNTINGS.flatMap(how => PARTS.map(part => [`flops_${how}_${part}`, run => flops(run, how, [part])])),
];
const SHOWN = COLUMNS.filter(column => column[2]);

function sortedRuns() {
  const [, value] = SHOWN[view.column], missing = run => !known(value(run));
  const order = (a, b) => (view.down ? -1 : 1) * compare(value(a), value(b));
  return visibleRuns().sort((a, b) => missing(a) - missing(b) || order(a, b));  // the missing last, either way
}

function drawTable() {
  const sort = i => i !== view.column ? 'none' : view.down ? 'descending' : 'ascending';
  element('runs').tHead.innerHTML = `<tr>${SHOWN.map(([name], i) =>
    `<th aria-sort="${sort(i)}"><button type="button" data-column="${i}">${name.replaceAll('_', ' ')}</button></th>`).join('')}</tr>`;
  element('runs').tBodies[0].innerHTML = sortedRuns().map(run => `<tr data-id="${escaped(run.id)}">${SHOWN.map(([, value, show], i) =>
    i ? `<td>${escaped(show(value(run)))}</td>` : `<th><label class="row-label"><input type="checkbox">${escaped(run.id)}</label></th>`
  ).join('')}</tr>`).join('');
  markRows();
}

function markRows() {
  for (const row of element('runs').tBodies[0].rows) {
    row.classList.toggle('selected', row.querySelector('input').checked = selected.has(row.dataset.id));
  }
}

function csvText() {
  const field = value => !known(value) ? '' : /[",\r\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value);
  const rows = [COLUMNS.map(column => column[0]), ...sortedRuns().map(run => COLUMNS.map(([, value]) => value(run)))];
  return rows.map(row => row.map(field).join(',') + '\r\n').join('');
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
    const values = unique(runs.map(run => run[field]));
    const boxes = values.map((value, i) => `<label><input type="checkbox" data-field="${field}" data-value="${i}">` +
      `${swatch(field, value)}${escaped(known(value) ? value : 'none')}</label>`);
    return values.length < 2 ? '' : `<fieldset class="${['kind', 'method', 'beta'].includes(field) ? 'wide' : ''}"><legend>` +
      `${name} <button type="button" data-field="${field}">all / none</button></legend><div>${boxes.join('')}</div></fieldset>`;
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
  if (field === 'method') return `<span class="mark" style="color:${colourOf(value)}">⬤</span>`;
  return field === 'beta' && known(value) ? stroke(dashOf(value), '#4b5462') : '';
}

function fill(place, values, value) {
  element(place).replaceChildren(...values.map(v => new Option(plain(v), JSON.stringify(v), false, v === value)));
  element(`${place}-label`).hidden = values.length < 2;
}

/* The runs of UNDO's method, β and size that have most points. */
function largestFamily() {
  const families = grouped(runs.filter(run => run.kind === 'undo'), run => JSON.stringify([run.method, run.beta, run.parameters]));
  return [...families.values()].sort((a, b) => b.length - a.length)[0] ?? [];
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
  const groups = visibleGroups(), held = run => at(run, 'forget_heldout');
  element('shown').textContent = `${number(visibleRuns().length)} of ${plural(number(runs.length), 'run')} shown`;
  drawCompute(groups);
  drawGrid(groups, 'grid-heldout', held, [[0, '#fdf6ef'], [0.5, '#f0a35e'], [1, '#a63f00']], false);
  drawGrid(groups, 'grid-retain', run => run.retain, [[0, '#f3f7fc'], [0.5, '#7fa8dc'], [1, '#26468f']], true);
  drawCurves();
  drawAccuracies(groups);
  drawSteps(groups);
  drawScaling();
  drawTable();
}

function start() {
  const grids = runs.filter(run => run.attack?.steps?.length).map(run => run.attack.steps), steps = unique(grids.flat());
  const shared = steps.filter(step => grids.every(grid => grid.includes(step)));
  const undo = runs.filter(run => run.kind === 'undo'), family = largestFamily(), { method, parameters: size } = family[0] ?? {};
  Object.assign(view, { step: shared.at(-1) ?? steps.at(-1) ?? null, method, size });
  const choices = { step: steps, method: unique(undo.map(run => run.method)), size: unique(undo.map(run => run.parameters)) };
  for (const [name, values] of Object.entries(choices)) {
    fill(name, values, view[name]);
    element(name).onchange = event => { view[name] = JSON.parse(event.target.value); draw(); };
  }
  for (const name of ['unit', 'accounting']) element(name).onchange = event => { view[name] = event.target.value; draw(); };
  element('log').onchange = event => { view.log = event.target.checked; draw(); };
  element('tolerance').onchange = event => {  // what is not a number changes nothing
    if (Number.isFinite(event.target.valueAsNumber)) view.tolerance = event.target.valueAsNumber;
    draw();
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
  element('selection').onclick = ({ target }) => { const button = target.closest('button'); if (button) toggle(button.dataset.item); };
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

start();
