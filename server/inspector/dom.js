// Elements, tables and bars; and a colour for each domain.

export const $ = (id) => document.getElementById(id);

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Rows of cells into a table's body; the first cell of each is its header. */
export function fill(id, rows, columns, empty) {
  const lines = rows.map((row) => element("tr", {}, ...row.map((cell, i) => {
    const made = element(i ? "td" : "th", {}, cell instanceof Node ? cell : String(cell));
    if (!i) made.scope = "row";
    return made;
  })));
  if (!lines.length) lines.push(element("tr", {}, element("td", { colSpan: columns }, empty)));
  $(id).replaceChildren(...lines);
}

/** A number and a bar of that share of `most`; the bar only repeats the number, so readers skip it. */
export function bar(value, most, colour) {
  const inner = element("span", { className: colour || "" });
  inner.style.width = `${Math.min(100, 100 * Math.abs(value) / most)}%`;
  const outer = element("span", { className: "bar" }, inner);
  outer.setAttribute("aria-hidden", "true");
  return element("div", {}, value.toFixed(3), outer);
}

/** The class of a domain's colour: the same one everywhere on the page. */
export function colour(domains, name) {
  return `domain-${Math.max(0, domains.indexOf(name)) % 8}`;
}

export function swatch(domains, name) {
  const made = element("span", { className: `swatch ${colour(domains, name)}` });
  made.setAttribute("aria-hidden", "true");
  return made;
}

export function size(bytes) {
  return bytes >= 1e6 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e3).toFixed(1)} kB`;
}
