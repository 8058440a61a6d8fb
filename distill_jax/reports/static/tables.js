'use strict';
// Sorts a table by the column whose heading is clicked; cells carry their value in `data-value`.

const key = (row, column) => row.cells[column].dataset.value;
const compareValues = (a, b) => isNaN(a) || isNaN(b) ? a.localeCompare(b, undefined, { numeric: true }) : a - b;
for (const button of document.querySelectorAll('#models-table th button')) button.onclick = () => {
  const head = button.parentElement, column = head.cellIndex, body = head.closest('table').tBodies[0];
  const down = head.getAttribute('aria-sort') === 'ascending';
  for (const other of head.parentElement.cells) other.setAttribute('aria-sort', 'none');
  head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
  const missing = row => key(row, column) === '';  // last, whichever way the column is sorted
  const order = (a, b) => (down ? -1 : 1) * compareValues(key(a, column), key(b, column));
  body.append(...[...body.rows].sort((a, b) => missing(a) - missing(b) || order(a, b)));
};
