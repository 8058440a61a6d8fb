'use strict';
// Figures that were laid out when the page was written; a legend hides lines, a choice of measures changes marks.

const { figures, curves = [], titles = {} } = JSON.parse(document.getElementById('drawings').textContent);
const hiddenGroups = new Set();
let measure = document.querySelector('.picks button[aria-pressed=true]')?.dataset.measure;

function drawPlace(place) {
  const { data, layout } = structuredClone(figures[place]);
  const hidden = group => curves.includes(place) && hiddenGroups.has(group);
  for (const trace of data) {
    const asked = trace.meta?.measure;
    trace.visible = !hidden(trace.legendgroup) && (!asked || asked === measure);
  }
  layout.annotations = (layout.annotations ?? []).filter(note => !hidden(note.name));
  if (titles[place]) layout.yaxis.title = { text: titles[place][measure] };
  drawFigure(place, data, layout);
}

for (const button of document.querySelectorAll('.legend button')) button.onclick = () => {
  const { group } = button.dataset;
  if (!hiddenGroups.delete(group)) hiddenGroups.add(group);
  button.setAttribute('aria-pressed', !hiddenGroups.has(group));
  curves.forEach(drawPlace);
};
for (const button of document.querySelectorAll('.picks button')) button.onclick = () => {
  for (const other of document.querySelectorAll('.picks button')) other.setAttribute('aria-pressed', other === button);
  measure = button.dataset.measure;
  Object.keys(figures).filter(place => !curves.includes(place)).forEach(drawPlace);
};
const drawn = whenReady(() => Object.keys(figures).forEach(drawPlace));
