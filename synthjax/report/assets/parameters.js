// The tables of parameters, one for each group of the synthesizer.

const LARGE_ERROR = 0.1; // As a share of the range; most parameters sound different then.

// [name, predicted text, predicted, true text, true, spread]; places in the range are null for categories.
function isFarOff([, predictedText, predicted, trueText, truth]) {
  if (trueText === null) return false;
  if (predicted === null || truth === null) return predictedText !== trueText;
  return Math.abs(predicted - truth) > LARGE_ERROR;
}

function parameterSection(groups) {
  const rows = groups.flatMap((group) => group.rows);
  const shown = { truth: rows.some((row) => row[3] !== null), spread: rows.some((row) => row[5] !== null) };
  const cards = element("div", { class: "groups" }, ...groups.map((group) => groupTable(group, shown)));
  const section = element("section", { class: "parameters", "aria-label": "Parameters" });
  section.append(parametersHeader(rows, shown, section), cards, legend(shown));
  return section;
}

function parametersHeader(rows, shown, section) {
  const header = element("div", { class: "section-header" }, element("h3", {}, "Parameters"));
  if (!shown.truth) return header;
  const far = rows.filter(isFarOff).length;
  header.append(element("p", { class: "count" }, `${far} of ${rows.length} far off`));
  if (far) {
    const box = element("input", { type: "checkbox" });
    box.addEventListener("change", () => section.classList.toggle("only-far", box.checked));
    header.append(element("label", { class: "toggle" }, box, "Show only these"));
  }
  return header;
}

function groupTable(group, shown) {
  const head = element("tr", {}, element("th", { scope: "col", class: "group" }, group.label));
  head.append(element("th", { scope: "col", class: "value" }, "Predicted"));
  if (shown.truth) head.append(element("th", { scope: "col", class: "value" }, "True"));
  head.append(element("td", { class: "track-cell" }));
  if (shown.spread) head.append(element("th", { scope: "col", class: "spread" }, "Spread"));
  const rows = group.rows.map((row) => parameterRow(row, shown));
  const far = group.rows.some(isFarOff);
  const table = element("table", { class: far ? "has-far" : null });
  table.append(element("thead", {}, head), element("tbody", {}, ...rows));
  return element("div", { class: "scroll-x" }, table);
}

function parameterRow(row, shown) {
  const [name, predictedText, predicted, trueText, truth, spread] = row;
  const far = isFarOff(row);
  const heading = element("th", { scope: "row", title: name }, name);
  if (far) heading.append(element("span", { class: "visually-hidden" }, " (far off)"));
  const cells = [heading, element("td", { class: "value", title: predictedText }, predictedText)];
  if (shown.truth) cells.push(element("td", { class: "value", title: trueText }, trueText ?? MISSING));
  cells.push(element("td", { class: "track-cell" }, predicted === null ? "" : track(predicted, truth, spread)));
  if (shown.spread) cells.push(element("td", { class: "spread" }, percentText(spread)));
  return element("tr", { class: far ? "far" : null }, ...cells);
}

// Draws the place of a parameter in its range. Hidden from screen readers: the texts beside it say the same.
function track(predicted, truth, spread) {
  const percent = (share) => `${(Math.min(1, Math.max(0, share)) * 100).toFixed(2)}%`;
  const bar = element("div", { class: "track", "aria-hidden": "true" });
  if (spread) {
    const [left, right] = [Math.max(0, predicted - spread), Math.min(1, predicted + spread)];
    bar.append(element("span", { class: "band", style: `left: ${percent(left)}; width: ${percent(right - left)}` }));
  }
  if (truth !== null) bar.append(element("span", { class: "true", style: `left: ${percent(truth)}` }));
  bar.append(element("span", { class: "predicted", style: `left: ${percent(predicted)}` }));
  return bar;
}

function legend(shown) {
  const entry = (kind, text) => element("span", { class: "legend-entry" }, element("span", { class: `mark ${kind}` }), text);
  const entries = [entry("predicted", "predicted")];
  if (shown.truth) entries.push(entry("true", "true"));
  if (shown.spread) entries.push(entry("band", "spread over the candidates"));
  const legendLine = element("p", { class: "legend" }, ...entries);
  const sentences = [];
  if (shown.spread) {
    sentences.push("Spread: the standard deviation as a share of the range; for a category, the share of candidates with another one.");
  }
  if (shown.truth) sentences.push("Far off: by more than a tenth of the range, or another category.");
  return element("div", { class: "explanation" }, legendLine, sentences.join(" "));
}
