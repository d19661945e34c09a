// Small pieces of SVG.

const NAMESPACE = "http://www.w3.org/2000/svg";

export function element(name, attributes = {}, ...children) {
  const node = document.createElementNS(NAMESPACE, name);
  for (const [attribute, value] of Object.entries(attributes)) node.setAttribute(attribute, value);
  node.append(...children);
  return node;
}

// A line for each series, the newest value at the right; null is a gap. All share a scale from 0.
export function sparkline(series, length) {
  const top = Math.max(...series.flat().filter((value) => value !== null), 0) || 1;
  const lines = series.map((values, i) => {
    const first = length - values.length;
    let path = "";
    let isDrawing = false;
    values.forEach((value, j) => {
      const point = `${first + j} ${(23 - (22 * (value ?? 0)) / top).toFixed(1)}`;
      if (value !== null) path += `${isDrawing ? "L" : "M"}${point}`;
      isDrawing = value !== null;
    });
    return element("path", { d: path, class: `line line-${i}` });
  });
  const shape = { viewBox: `0 0 ${length - 1} 24`, preserveAspectRatio: "none", class: "sparkline" };
  return element("svg", { ...shape, "aria-hidden": "true" }, ...lines);
}
