// Probabilities of tokens: a shade on each, and what else could have stood there, on hover and focus.
// One token of an answer is in the tab order; arrow keys go from there.

const SHADES = [0.9, 0.6, 0.3, 0.1]; // probabilities below these are shaded, each more than the last
const INVISIBLE = { " ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍" };

const tokensOf = new WeakMap();

export function decorate(span, tokens) {
  const known = tokens.filter((token) => token.logprob !== null);
  if (!known.length) return;
  const probability = Math.exp(known.reduce((sum, token) => sum + token.logprob, 0));
  span.className = `token shade-${SHADES.filter((bound) => probability < bound).length}`;
  span.tabIndex = -1;
  tokensOf.set(span, known);
}

// Details of all tokens inside `container` are shown in `box`.
export function showDetails(container, box) {
  let current = null; // the token whose details are shown
  const hide = () => {
    box.hidden = true;
    current?.removeAttribute("aria-describedby");
    current = null;
  };
  const show = (span) => {
    if (span === current) return;
    hide();
    current = span;
    fill(box, tokensOf.get(span));
    span.setAttribute("aria-describedby", box.id);
    place(box, span);
  };
  const shown = (event) => {
    const span = event.target.closest(".token");
    if (span) show(span);
    else hide();
  };
  container.addEventListener("pointerover", shown);
  container.addEventListener("pointerleave", hide);
  container.addEventListener("focusin", shown);
  container.addEventListener("focusout", hide);
  container.addEventListener("scroll", () => current && place(box, current), { passive: true });
  container.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    const next = neighbour(event);
    if (!next) return;
    event.preventDefault();
    makeReachable(next);
    next.focus();
  });
}

// The tab order has this token of its answer, and no other.
export function makeReachable(span) {
  const before = span.closest(".turn").querySelector('.token[tabindex="0"]');
  if (before) before.tabIndex = -1;
  span.tabIndex = 0;
}

function neighbour(event) {
  const span = event.target.closest(".token");
  if (!span || event.altKey || event.ctrlKey || event.metaKey) return null;
  const all = [...span.closest(".turn").querySelectorAll(".token")];
  const at = all.indexOf(span);
  const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: all.length - 1 }[event.key];
  return all[to] ?? null;
}

function fill(box, tokens) {
  box.replaceChildren();
  for (const token of tokens) {
    const title = document.createElement("p");
    title.append(shownText(token.text), ` ${percent(token.logprob)}`);
    const logprob = document.createElement("small");
    logprob.textContent = ` logprob ${Number(token.logprob.toPrecision(3))}`;
    title.append(logprob);
    box.append(title);
    if (token.top.length) box.append(table(token));
  }
}

function table(token) {
  const list = document.createElement("table");
  list.setAttribute("aria-label", "Alternatives");
  for (const other of token.top) {
    const row = list.insertRow();
    row.className = other.text === token.text ? "chosen" : "";
    row.insertCell().append(shownText(other.text));
    row.insertCell().textContent = percent(other.logprob);
    const bar = document.createElement("div");
    bar.className = "bar";
    bar.style.width = `${(Math.exp(other.logprob) * 6).toFixed(2)}em`;
    row.insertCell().append(bar);
  }
  return list;
}

function shownText(text) {
  const code = document.createElement("code");
  code.textContent = text.replace(/[ \n\t\r]/g, (character) => INVISIBLE[character]) || "(empty)";
  return code;
}

export function percent(logprob) {
  const value = Math.exp(logprob) * 100;
  return `${value >= 0.1 ? value.toFixed(1) : Number(value.toPrecision(1))} %`;
}

function place(box, span) {
  box.style.left = "0"; // all the width that there is, while it is measured
  box.hidden = false;
  const at = span.getClientRects()[0] ?? span.getBoundingClientRect();
  const left = Math.min(at.left, innerWidth - box.offsetWidth - 8);
  const below = at.bottom + 6;
  const fits = below + box.offsetHeight < innerHeight;
  box.style.left = `${Math.max(8, left)}px`;
  box.style.top = `${fits ? below : Math.max(8, at.top - box.offsetHeight - 6)}px`;
}
