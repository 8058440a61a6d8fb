'use strict';
// Colours of the figures in the reader's scheme. Pages name the colours of light paper; on dark paper a dark one becomes
// as light, of the same hue.

const scheme = matchMedia('(prefers-color-scheme: dark)');
const cssColour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const HEX = /^#([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})?$/i;
const RGBA = /^rgba\((\d+),\s*(\d+),\s*(\d+),\s*([\d.]+)\)$/;

function themedColour(text) {
  const hex = HEX.exec(text)?.slice(1).map(part => parseInt(part ?? 'ff', 16));
  const [red, green, blue, alpha] = hex ? [...hex.slice(0, 3), hex[3] / 255] : RGBA.exec(text)?.slice(1).map(Number) ?? [];
  if (!scheme.matches || red === undefined) return text;
  const parts = [red, green, blue];
  const shift = Math.max(255 - Math.max(...parts) - Math.min(...parts), 0);  // HSL lightness l becomes 1 - l
  return `rgba(${parts.map(part => part + shift).join(',')},${alpha})`;
}

/* The same tree of JSON with its colours in the reader's scheme; the scales of heat maps stay. */
function themed(tree) {
  if (!scheme.matches) return tree;
  if (typeof tree === 'string') return themedColour(tree);
  if (Array.isArray(tree)) return tree.map(themed);
  if (tree === null || typeof tree !== 'object') return tree;
  return Object.fromEntries(Object.entries(tree).map(([key, value]) => [key, key === 'colorscale' ? value : themed(value)]));
}

/* Give cards and swatches, which name their colour, that of the scheme. */
function paintSwatches() {
  for (const item of document.querySelectorAll('[data-colour]')) item.style.setProperty('--c', themedColour(item.dataset.colour));
}
