// Makes elements and formats numbers.

const MISSING = "–";

const byId = (id) => document.getElementById(id);

// Text enters the page only as text nodes and attributes, so no name can become markup.
function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

// The number of decimals that shows three digits of the median. One number for a column keeps it aligned.
function decimalsOf(values) {
  const sizes = values.filter((value) => value).map(Math.abs).sort((a, b) => a - b);
  if (!sizes.length) return 2;
  const middle = sizes[sizes.length >> 1];
  return Math.min(6, Math.max(0, 2 - Math.floor(Math.log10(middle))));
}

function numberText(value, decimals) {
  if (value === null) return MISSING;
  return value.toFixed(decimals).replace("-", "−");
}

const percentText = (share) => (share === null ? MISSING : `${Math.round(share * 100)} %`);

const countText = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

const better = (metric) => (metric.higher ? "higher is better" : "lower is better");

const metricTitle = (metric) => `${metric.label}${metric.unit ? ` in ${metric.unit}` : ""}, ${better(metric)}`;
