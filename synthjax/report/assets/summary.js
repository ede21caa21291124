// The table of metrics over all sounds.

const FLOOR_TEXT = "The noise floor compares two renders of the true patch: predictions are not nearer on average.";
const ORACLE_TEXT = "The oracle compares the true patch, rendered again, with the target.";

function showAbout(about) {
  byId("about").append(
    ...about.map(([term, description]) => element("div", {}, element("dt", {}, term), element("dd", {}, description))),
  );
}

function showSummary(rows) {
  if (!rows.length) return;
  const optional = [
    ["floor", "Noise floor"],
    ["oracle", "Oracle"],
  ].filter(([key]) => rows.some((row) => row[key] !== null));
  const heads = ["Mean", "95 % interval", "Median", ...optional.map(([, label]) => label), "Sounds"];
  const head = element("tr", {}, element("th", { scope: "col" }, "Metric"));
  head.append(...heads.map((label) => element("th", { scope: "col", class: "number" }, label)));
  const body = element("tbody", {}, ...rows.map((row) => summaryRow(row, optional)));
  byId("summary-table").append(element("thead", {}, head), body);
  const sentences = ["The 95 % interval is the interval of the mean."];
  if (optional.some(([key]) => key === "floor")) sentences.push(FLOOR_TEXT);
  if (optional.some(([key]) => key === "oracle")) sentences.push(ORACLE_TEXT);
  byId("summary-explanation").append(...sentences.map((sentence) => element("p", {}, sentence)));
  byId("summary").hidden = false;
}

function summaryRow(row, optional) {
  const decimals = decimalsOf([row.mean]);
  const cell = (text, kind = "") => element("td", { class: `number ${kind}` }, text);
  const name = element("th", { scope: "row" }, row.label);
  if (row.unit) name.append(" ", element("span", { class: "unit" }, row.unit));
  name.append(element("span", { class: "direction" }, better(row)));
  return element(
    "tr",
    {},
    name,
    cell(numberText(row.mean, decimals), "mean"),
    cell(row.low === null ? MISSING : `${numberText(row.low, decimals)} to ${numberText(row.high, decimals)}`),
    cell(numberText(row.median, decimals)),
    ...optional.map(([key]) => cell(numberText(row[key], decimals))),
    cell(row.count.toLocaleString("en")),
  );
}
