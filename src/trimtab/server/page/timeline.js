// Where the time of one request went, as bars on one axis: `timings` of an answer.

import { element } from "./svg.js";

const LABEL = 68; // pixels left of the axis
const NOTE = 128; // and right of it
const ROW = 22;
const BAR = 12;

export function milliseconds(value) {
  if (value === null || value === undefined) return "–";
  if (value >= 1000) return `${(value / 1000).toFixed(2)} s`;
  return `${value >= 100 ? value.toFixed(0) : value.toFixed(1)} ms`;
}

// Draws into `container`, again whenever its width changes, until it is called with other timings.
export function drawTimeline(container, timings) {
  observers.get(container)?.disconnect();
  const summary = document.createElement("p");
  summary.textContent = summarize(timings);
  const place = document.createElement("div");
  container.replaceChildren(place, summary);
  const observer = new ResizeObserver(() => draw(place, timings, summary.textContent));
  observer.observe(container);
  observers.set(container, observer);
  draw(place, timings, summary.textContent);
}

const observers = new WeakMap();

function summarize(timings) {
  const { cached_tokens: cached, completion_tokens: generated, decode_ms: decode } =
    timings.choices[0];
  const parts = [
    `First token after ${milliseconds(timings.first_token_ms)}`,
    `${generated} tokens in ${milliseconds(timings.total_ms)}`,
  ];
  if (generated > 1 && decode) parts.push(`${(((generated - 1) * 1000) / decode).toFixed(1)} tokens/s`);
  parts.push(`${cached} of ${timings.prompt_tokens} prompt tokens cached`);
  const { preemptions, drafts, accepted_drafts: accepted } = timings.choices[0];
  if (preemptions) parts.push(`preempted ${preemptions} times`);
  if (drafts) parts.push(`${accepted} of ${drafts} drafts accepted`);
  return `${parts.join("; ")}.`;
}

function rowsOf(timings) {
  const choice = timings.choices[0];
  const read = timings.read_ms ?? 0;
  const tokenize = timings.tokenize_ms ?? 0;
  // The engine has a clock of its own, which starts when it takes the request. What lies between the
  // end of the prefill and the first token out is the way of that token through the server.
  const taken = read + tokenize;
  const chunks = choice.prefill;
  const computed = chunks.reduce((sum, chunk) => sum + chunk.tokens, 0);
  const spent = chunks.reduce((sum, chunk) => sum + chunk.ms, 0);
  return [
    row("read", [bar(0, read, "request read")], milliseconds(timings.read_ms)),
    row("tokenize", [bar(read, tokenize, "prompt tokenized")], milliseconds(timings.tokenize_ms)),
    row("queue", [bar(taken, choice.queue_ms, "waiting")], milliseconds(choice.queue_ms)),
    row(
      "prefill",
      chunks.map((chunk, i) =>
        bar(taken + chunk.start_ms, chunk.ms, `chunk ${i + 1}: ${chunk.tokens} tokens`),
      ),
      `${milliseconds(spent)}, ${computed} tok${chunks.length > 1 ? ` / ${chunks.length}` : ""}`,
    ),
    row(
      "decode",
      [bar(timings.first_token_ms ?? taken, choice.decode_ms, "first token out to last")],
      `${milliseconds(choice.decode_ms)}, ${choice.completion_tokens} tok`,
    ),
  ];
}

const row = (name, bars, note) => ({ name, bars, note });
const bar = (start, length, title) => ({ start, length: length ?? 0, title });

function draw(place, timings, summary) {
  const rows = rowsOf(timings);
  const width = Math.max(place.clientWidth, LABEL + NOTE + 60);
  const span = width - LABEL - NOTE;
  const scale = span / Math.max(timings.total_ms, 1e-3);
  const height = ROW * (rows.length + 2) + 4;
  const svg = element("svg", { width, height, class: "timeline", role: "img", "aria-label": summary });
  rows.forEach(({ name, bars, note }, i) => {
    drawRow(svg, i, name, note);
    for (const { start, length, title } of bars) {
      const at = { x: LABEL + start * scale, y: ROW * i + 6, height: BAR, class: `bar ${name}` };
      const shape = element("rect", { ...at, width: Math.max(length * scale, 1) });
      shape.append(element("title", {}, `${title}, ${milliseconds(length)}`));
      svg.append(shape);
    }
  });
  if (timings.first_token_ms !== null) drawFirstToken(svg, timings, rows.length, scale, span);
  drawPrompt(svg, timings, rows.length + 1, span);
  place.replaceChildren(svg);
}

function drawRow(svg, index, name, note) {
  const y = ROW * index + 16;
  const svgText = (x, text, anchor) => element("text", { x, y, "text-anchor": anchor }, text);
  svg.append(svgText(0, name, "start"), svgText(svg.getAttribute("width"), note, "end"));
}

function drawFirstToken(svg, timings, index, scale, span) {
  const x = LABEL + timings.first_token_ms * scale;
  const isLeft = timings.first_token_ms * scale < span / 2;
  const label = `first token out: ${milliseconds(timings.first_token_ms)}`;
  svg.append(
    element("line", { x1: x, x2: x, y1: 2, y2: ROW * index + 4, class: "first-token" }),
    element(
      "text",
      { x: x + (isLeft ? 4 : -4), y: ROW * index + 14, "text-anchor": isLeft ? "start" : "end" },
      label,
    ),
    element(
      "text",
      { x: svg.getAttribute("width"), y: ROW * index + 14, "text-anchor": "end" },
      `${milliseconds(timings.total_ms)} in all`,
    ),
  );
}

// The prompt has a scale of its own: its tokens, those that were cached first.
function drawPrompt(svg, timings, index, span) {
  const { prompt_tokens: all } = timings;
  const { cached_tokens: cached } = timings.choices[0];
  const share = all ? (span * cached) / all : 0;
  const y = ROW * index + 6;
  drawRow(svg, index, "prompt", `${cached} of ${all} cached`);
  svg.append(
    element("rect", { x: LABEL, y, width: share, height: BAR, class: "bar cached" }),
    element("rect", { x: LABEL + share, y, width: span - share, height: BAR, class: "bar prefill" }),
  );
}
