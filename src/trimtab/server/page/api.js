// The server's API as a browser calls it: the key, errors in the server's own words, event streams.

const KEY_NAME = "trimtab-key";
const UNREACHABLE = "The server cannot be reached.";
const CUT_OFF = "The connection ended before the answer was complete.";

export const key = {
  get: () => sessionStorage.getItem(KEY_NAME),
  set: (value) => sessionStorage.setItem(KEY_NAME, value),
};

export class ApiError extends Error {
  constructor(message, { status = 0, code = null, param = null } = {}) {
    super(message);
    this.status = status; // 0: no HTTP answer at all
    this.code = code;
    this.param = param;
  }
}

// A Response with a good status; everything else is an ApiError, or the AbortError of the signal.
export async function call(path, { body = null, signal = null } = {}) {
  const headers = {};
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  if (body !== null) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body === null ? "GET" : "POST",
      headers,
      body: body === null ? null : JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(UNREACHABLE);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

export async function getJson(path, signal = null) {
  const response = await call(path, { signal });
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(CUT_OFF);
  }
}

// The documents of a stream up to [DONE]. An error event, or an end without [DONE], throws.
export async function* documents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await read(reader);
    if (done) throw new ApiError(CUT_OFF);
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue;
      const data = event.slice("data: ".length);
      if (data === "[DONE]") return;
      const parsed = JSON.parse(data);
      if (parsed.error) throw fromDocument(parsed, 200);
      yield parsed;
    }
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(CUT_OFF);
  }
}

async function refusal(response) {
  try {
    return fromDocument(await response.json(), response.status);
  } catch {
    return new ApiError(`The server answered ${response.status}.`, { status: response.status });
  }
}

function fromDocument({ error }, status) {
  const { code, param } = error;
  return new ApiError(String(error.message), { status, code, param });
}
