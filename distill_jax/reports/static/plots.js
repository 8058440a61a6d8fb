'use strict';
// Draws figures with plotly.js, which the page carries compressed, in the page's style and the reader's scheme.

const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif";

/* Unpack plotly.js and define `Plotly`; without a browser that can, say so. */
async function loadPlotly() {
  if (!('DecompressionStream' in window)) {
    document.querySelector('main').prepend('This browser is too old to unpack the figures; the numbers below are complete.');
    throw new Error('no DecompressionStream');
  }
  const packed = Uint8Array.from(atob(document.getElementById('plotly').textContent), letter => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'));
  const script = document.createElement('script');
  script.id = 'plotly-unpacked';
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}

/* A layout with the colours and fonts that all figures share. */
function styled(layout) {
  const [ink, muted, grid, card, line] = ['--ink', '--muted', '--grid', '--card', '--axis'].map(cssColour);
  const axis = given => ({ gridcolor: grid, linecolor: line, tickcolor: line, zeroline: false, ticks: 'outside',
    ...given, title: { standoff: 8, ...given?.title, font: { size: 13 } } });
  return {
    font: { family: FONT, size: 13, color: ink }, paper_bgcolor: card, plot_bgcolor: card, showlegend: false,
    hovermode: 'closest', hoverlabel: { bgcolor: card, bordercolor: line, font: { color: ink } },
    modebar: { bgcolor: 'rgba(0,0,0,0)', color: muted, activecolor: ink },
    ...layout, xaxis: axis({ showgrid: false, showline: true, ...layout.xaxis }), yaxis: axis(layout.yaxis),
  };
}

/* Draw a figure, or draw it anew. */
function drawFigure(place, data, layout, buttons = ['toImage', 'resetScale2d']) {
  const settings = { responsive: true, displaylogo: false, modeBarButtons: [buttons] };
  Plotly.react(place, themed(data), styled(themed(layout)), settings);
}

/* Call `draw` when plotly.js is there, and whenever the reader's scheme changes. */
function whenReady(draw) {
  paintSwatches();
  scheme.addEventListener('change', () => { paintSwatches(); draw(); });
  return loadPlotly().then(draw);
}
